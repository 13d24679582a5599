"""Formats of published traces: where they keep what we need, in which units, and how it becomes a `Workload`.

Where several formats use the same names, what a file is read as is a notice, and what its values make
unlikely is asked about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.errors import ConfigError, TraceError
from batchsim.workload.columns import LAST_ARRIVAL_S, listed, numbers, refuse, since_first_s, wall_clock_s
from batchsim.workload.prefixes import id_column, read_ids
from batchsim.workload.request import PUBLISHED_FORMAT, Kind, Source, Workload
from batchsim.workload.sessions import DELAY_COLUMN, session_ids, sessions_of_chats, turns_after_delays
from batchsim.workload.tables import Limits
from batchsim.workload.tenants import LABELS, labels_of

FAILED = "failed (0 output tokens)"
NO_PROMPT = "0 prompt tokens"

TimeUnit = Literal["s", "ms", "us", "ns"]
UNITS_PER_S: Mapping[str, float] = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}

# Mean rates beyond which a unit is asked about, not believed.
_FASTEST_PER_S = 100.0
_FASTEST_IN_FRACTIONS_PER_S = 10.0  # milliseconds are written whole
_LONGEST_GAP: Mapping[str, float] = {"s": 3_600.0, "ms": 86_400.0}  # seconds, on average


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """Where a kind of trace keeps what we need.

    Attributes
    ----------
    arrival, prompt, output
        Column names, the case as in the file.
    unit
        Of the arrivals; ``None`` for wall-clock timestamps.
    has_named_unit
        Whether the name of the column says the unit, or the values do: nobody can say otherwise.
    marks
        Further columns that tell it from a format whose columns have the same names.
    kind
        What a file of this format is taken for unless it is labelled or known.
    extra
        Columns kept besides, with our names for them.
    repeated
        Columns that hold nothing which is not in the others.
    tokens_per_id
        Prompt tokens that an id of ``hash_ids`` covers, where it is not as usual.
    """

    name: str
    arrival: str
    prompt: str
    output: str
    unit: TimeUnit | None = "s"
    has_named_unit: bool = True
    marks: tuple[str, ...] = ()
    kind: Kind = PUBLISHED_FORMAT
    extra: Mapping[str, str] = field(default_factory=dict)
    repeated: tuple[str, ...] = ()
    tokens_per_id: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns a file of this format must have."""
        return (self.arrival, self.prompt, self.output, *self.marks)


OWN_FORMAT = TraceFormat("batchsim", "arrival_s", "prompt_tokens", "output_tokens", kind="unknown")
_JSON_COLUMNS = ("timestamp", "input_length", "output_length")
FORMATS: Mapping[str, TraceFormat] = {
    known.name: known
    for known in (
        OWN_FORMAT,
        TraceFormat(
            "burstgpt",
            "Timestamp",
            "Request tokens",
            "Response tokens",
            has_named_unit=False,
            extra={"Model": "model", "Log Type": "log_type", "Session ID": "session_id"},
            repeated=("Total tokens",),
        ),
        TraceFormat("azure", "TIMESTAMP", "ContextTokens", "GeneratedTokens", unit=None),
        # before Mooncake, whose columns it has, too
        TraceFormat(
            "bailian",
            *_JSON_COLUMNS,
            has_named_unit=False,
            marks=("chat_id", "parent_chat_id"),
            extra={"type": "log_type"},
            repeated=("turn",),
            tokens_per_id=16,
        ),
        TraceFormat(
            "mooncake",
            *_JSON_COLUMNS,
            unit="ms",
            has_named_unit=False,
            extra={"session_id": "session_id"},
            repeated=("turn", "delay"),
        ),
        # its generator draws the arrivals, whatever the prompts are
        TraceFormat(
            "llmservingsim",
            "arrival_time_ns",
            "input_toks",
            "output_toks",
            "ns",
            kind="synthetic",
            repeated=("input_tok_ids", "output_tok_ids", "request_id"),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What a person says about a trace that its columns do not, or not rightly.

    Attributes
    ----------
    time_unit
        Of the arrivals, where no column name says it.
    hash_block_tokens
        Prompt tokens that a prefix id covers.
    limits
        How large the file may be.
    """

    time_unit: TimeUnit | None = None
    hash_block_tokens: int | None = None
    limits: Limits = field(default_factory=Limits)


def convert(table: pd.DataFrame, known: TraceFormat, source: Source, reading: Reading) -> Workload:
    """Make a workload of a table in a foreign format; what is shifted and dropped, `read_trace` says."""
    where = source.name
    extra: dict[str, Any] = {ours: table[theirs] for theirs, ours in known.extra.items() if theirs in table}
    if "session_id" in extra:
        extra["session_id"] = session_ids(extra["session_id"], where)
    elif "chat_id" in known.marks:
        extra["session_id"] = sessions_of_chats(table, where)
    extra |= labels_of(table, where)
    arrival_s = _arrival_s(table, known, extra, where, reading)
    prompt_tokens = numbers(table, known.prompt, where)
    output_tokens = numbers(table, known.output, where)
    ids, remarks = ids_of(table, prompt_tokens, known, where, reading)
    if reading.time_unit is None and known.arrival == "timestamp":
        _check_unit(table[known.arrival], arrival_s, known, where)
    has_failed = output_tokens == 0
    has_no_prompt = (prompt_tokens == 0) & ~has_failed
    keep = ~(has_failed | has_no_prompt)
    counts = {FAILED: int(has_failed.sum()), NO_PROMPT: int(has_no_prompt.sum())}
    if not keep.any():
        raise TraceError(f"{where}: no row has prompt and output tokens; at least one is needed")
    source = replace(
        source,
        dropped={reason: num for reason, num in counts.items() if num},
        notices=_notices(table, known, extra, remarks, where, reading),
    )
    frame = pd.DataFrame(
        {
            "arrival_s": arrival_s - arrival_s[keep].min(),
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            **extra,
            **ids,
        },
        index=table.index,
    )
    return Workload.from_frame(frame[keep], source)


def ids_of(
    table: pd.DataFrame, prompt_tokens: NDArray[Any], known: TraceFormat, where: str, reading: Reading
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The column of prefix ids, if there is one, and what was inferred about it."""
    name = id_column(table.columns)
    if name is None:
        if reading.hash_block_tokens is not None:
            raise ConfigError(
                f"--hash-block-tokens (workload.hash_block_tokens) is {reading.hash_block_tokens}, but "
                f"{where} has no column of prefix ids"
            )
        return {}, ()
    usual = known.tokens_per_id if name == "hash_ids" else None
    found = read_ids(table[name], prompt_tokens, where, usual, reading.hash_block_tokens)
    return {found.name: found.ids}, found.remarks


def _arrival_s(
    table: pd.DataFrame, known: TraceFormat, extra: dict[str, Any], where: str, reading: Reading
) -> NDArray[np.float64]:
    """Seconds since the first arrival; delays between turns, if there are any, go into the extra columns."""
    if known.unit is None:
        return wall_clock_s(table, known.arrival, where)
    unit = reading.time_unit or known.unit
    if not ("delay" in known.repeated and "delay" in table and "session_id" in extra):
        return since_first_s(table, known.arrival, where, UNITS_PER_S[unit])
    delay_s = extra[DELAY_COLUMN] = delays_s(table, "delay", where, UNITS_PER_S[unit])
    has_time = table[known.arrival].notna().to_numpy() | ~(delay_s >= 0)
    if not has_time.any():
        refuse(table[known.arrival], 0, where, "the first turn of a session needs one")
    arrival_s = np.full(len(table), np.nan)
    timed = table[[known.arrival]][has_time]
    arrival_s[has_time] = since_first_s(timed, known.arrival, where, UNITS_PER_S[unit])
    if not has_time.all():
        arrival_s = turns_after_delays(arrival_s, delay_s, np.asarray(extra["session_id"]))
        if np.isnan(arrival_s).any():
            needed = "the first turn of a session needs one"
            refuse(table[known.arrival], int(np.argmax(np.isnan(arrival_s))), where, needed)
    return arrival_s


def _check_unit(column: pd.Series, arrival_s: NDArray[np.float64], known: TraceFormat, where: str) -> None:
    """Ask for the unit, where several formats use the name, if requests would come too fast or too slowly."""
    assert known.unit is not None
    span_s, num_gaps = float(arrival_s.max()), int(column.notna().sum()) - 1
    has_fractions = column.dtype.kind == "f" and bool((column.dropna() % 1 != 0).any())
    fastest = _FASTEST_IN_FRACTIONS_PER_S if has_fractions and known.unit == "ms" else _FASTEST_PER_S
    if (num_gaps <= fastest * span_s and span_s <= _LONGEST_GAP[known.unit] * num_gaps) or not span_s:
        return
    spans_s = {unit: span_s * UNITS_PER_S[known.unit] / per_s for unit, per_s in UNITS_PER_S.items()}
    choices = " or ".join(f"--time-unit {unit} ({span:,.4g} s)" for unit, span in spans_s.items())
    raise TraceError(
        f"{where}: {len(arrival_s):,} requests within {span_s:,.4g} s, if {known.arrival} is in {known.unit} "
        f"as {known.name} has it, are not believed; say what it is in: {choices}, or workload.time_unit"
    )


def delays_s(table: pd.DataFrame, name: str, where: str, units_per_s: float) -> NDArray[np.float64]:
    """Seconds from an answer to the session's next turn; NaN where there is none."""
    delay_s = np.full(len(table), np.nan)
    is_given = table[name].notna().to_numpy()
    most = LAST_ARRIVAL_S * units_per_s
    delay_s[is_given] = numbers(table[is_given], name, where, most=most) / units_per_s
    return delay_s


def _notices(
    table: pd.DataFrame,
    known: TraceFormat,
    extra: Mapping[str, Any],
    remarks: tuple[str, ...],
    where: str,
    reading: Reading,
) -> tuple[str, ...]:
    """What was inferred, and what was left out: a sentence each."""
    inferred = list(remarks)
    if known.arrival == "timestamp" and reading.time_unit is None:
        inferred.insert(0, f"{known.arrival} in {known.unit}")
    if "chat_id" in known.marks:
        inferred.append("sessions by parent_chat_id")
    if DELAY_COLUMN in extra and table[known.arrival].isna().any():
        inferred.append("turns without timestamp as if answers took no time, unless clients wait for them")
    used = {*known.columns, *known.extra, *known.repeated, *LABELS, id_column(table.columns)}
    left_out = [name for name in table.columns if name not in used]
    notices = []
    if inferred:
        notices.append(
            f"{where}: read as {known.name}: {', '.join(inferred)}; "
            "--time-unit and --hash-block-tokens say otherwise"
        )
    if left_out:
        notices.append(f"{where}: left out: {listed(left_out)}")
    return tuple(notices)
