"""Write a `Workload` as BurstGPT, Mooncake, or what GuideLLM replays, so that other tools send its requests.

Sources: the columns of ``BurstGPT_1.csv`` (github.com/HPMLL/BurstGPT); of the traces of Mooncake
(github.com/kvcache-ai/Mooncake, FAST25-release), which AIPerf (``docs/benchmark-modes/trace-replay.md``) and
GuideLLM (``kind=mooncake``) read; ``guidellm/data/deserializers/trace_synthetic.py`` and
``docs/guides/trace_replay.md`` of GuideLLM.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.errors import ConfigError, nearest
from batchsim.files.tables import csv_text
from batchsim.workload.columns import listed
from batchsim.workload.prefixes import TOKENS_PER_ID, PrefixIds, id_column, prefix_ids
from batchsim.workload.request import Workload
from batchsim.workload.sessions import DELAY_COLUMN
from batchsim.workload.tables import write_text

_UNKNOWN = "unknown"
_MOONCAKE_TOKENS = TOKENS_PER_ID["hash_ids"]


@dataclass(frozen=True, slots=True)
class ForeignFormat:
    """How a trace is written for others.

    Attributes
    ----------
    suffix
        Of its files, which may be gzipped besides.
    carried
        Extra columns of a workload that it has a place for; prefix ids are ``hash_ids``.
    text
        Makes the content of a file, and says what was changed on the way.
    """

    suffix: str
    carried: tuple[str, ...]
    text: Callable[[Workload], tuple[str, list[str]]]


def write_foreign(workload: Workload, path: str | Path, name: str) -> tuple[str, ...]:
    """Write a workload in a format of `FOREIGN`; the first request arrives at 0.

    Returns
    -------
    tuple of str
        What the format cannot carry, or what was changed: a sentence each.

    Raises
    ------
    ConfigError
        For an unknown format, or another suffix than it has.
    """
    if name not in FOREIGN:
        raise ConfigError(f"trace format {name!r} cannot be written; {nearest(name, list(FOREIGN))}")
    known, path = FOREIGN[name], Path(path)
    if "".join(path.suffixes[-2:]) != f"{known.suffix}.gz" and path.suffix != known.suffix:
        raise ConfigError(f"{path}: {name} is written as {known.suffix} or {known.suffix}.gz; name it so")
    text, changed = known.text(workload)
    write_text(path, text, known.suffix)
    notices = [*_left_out(workload, known), *changed]
    kind = workload.source.kind
    if kind == "real" or (kind == "synthetic" and kind not in path.name.lower()):
        hint = "; a name with 'synthetic' in it says so" if kind == "synthetic" else ""
        notices.append(f"that its requests are {kind} has no place in it{hint}")
    return tuple(f"{path.name}: as {name}, {sentence}" for sentence in notices)


def _left_out(workload: Workload, known: ForeignFormat) -> Iterator[str]:
    ids = id_column(workload.extra)
    carried = {*known.carried, *([ids] if ids and "hash_ids" in known.carried else [])}
    names = [name for name in workload.extra if name not in carried]
    if not np.array_equal(workload.request_id, np.arange(len(workload))):
        names.append("request_id")
    if names:
        yield f"{listed(names)} cannot be carried"


def _burstgpt(workload: Workload) -> tuple[str, list[str]]:
    """Seconds, as a row of the published file has them, with fractions where there are any."""
    since_s = _since_first_s(workload)
    is_whole = bool((since_s == np.floor(since_s)).all())
    size = len(workload)
    columns: dict[str, Any] = {
        "Timestamp": since_s.astype(np.int64) if is_whole else since_s,
        "Model": workload.extra.get("model", np.full(size, _UNKNOWN, dtype=object)),
        "Request tokens": workload.prompt_tokens,
        "Response tokens": workload.output_tokens,
        "Total tokens": workload.prompt_tokens + workload.output_tokens,
        "Log Type": workload.extra.get("log_type", np.full(size, _UNKNOWN, dtype=object)),
    }
    if "session_id" in workload.extra:  # the last: vLLM's loader takes the lengths from the columns 3 and 4
        columns["Session ID"] = workload.extra["session_id"]
    changed = []
    if not is_whole:
        changed.append("Timestamp has fractions of a second, where the published file has whole ones")
    missing = [theirs for theirs, ours in _NAMES if ours not in workload.extra]
    if missing:
        changed.append(
            f"{' and '.join(missing)} not known: {_UNKNOWN!r} stands there "
            "(vLLM's loader takes rows whose Model is GPT-4 alone)"
        )
    return csv_text(pd.DataFrame(columns)), changed


_NAMES = (("Model", "model"), ("Log Type", "log_type"))


def _mooncake(workload: Workload) -> tuple[str, list[str]]:
    """Whole milliseconds, and an id for each block of 512 prompt tokens, the last one too, full or not."""
    since_s = _since_first_s(workload)
    times_ms = np.rint(since_s * 1e3).astype(np.int64)
    changed = []
    off_ms = float(np.abs(since_s * 1e3 - times_ms).max())
    if off_ms > 1e-6:  # rounding of the numbers themselves
        changed.append(f"arrivals are rounded to whole milliseconds, by {off_ms:.2g} ms at most")
    columns: dict[str, Iterable[Any]] = {
        "timestamp": times_ms.tolist(),
        "input_length": workload.prompt_tokens.tolist(),
        "output_length": workload.output_tokens.tolist(),
        "hash_ids": _hash_ids(workload, changed),
    }
    if "session_id" in workload.extra:
        columns["session_id"] = map(_text_id, workload.extra["session_id"].tolist())
        if DELAY_COLUMN in workload.extra:
            columns["delay"] = (np.asarray(workload.extra[DELAY_COLUMN], np.float64) * 1e3).tolist()
    return _json_lines(columns), changed


def _text_id(value: Any) -> Any:
    """An id as text, which AIPerf takes alone; as it is where there is none."""
    if isinstance(value, float) and value.is_integer():  # of a column in which some have none
        value = int(value)
    return str(value) if isinstance(value, int) else value


def _hash_ids(workload: Workload, changed: list[str]) -> list[list[int]]:
    """Ids of 512 tokens, numbered as they come. One of a part of such a block says nothing of the whole."""
    found = prefix_ids(workload)
    num_blocks = (-(-workload.prompt_tokens // _MOONCAKE_TOKENS)).tolist()
    if found is not None and _MOONCAKE_TOKENS % found.tokens_per_id:
        changed.append(f"prefix ids of {found.tokens_per_id} tokens do not make blocks of {_MOONCAKE_TOKENS}")
        found = None
    if found is None:
        changed.append("no prompts are known to begin alike: every block has an id of its own")
        found = PrefixIds(_MOONCAKE_TOKENS, [[]] * len(workload))
    elif found.tokens_per_id < _MOONCAKE_TOKENS:
        changed.append(
            f"prompts that begin alike share whole blocks of {_MOONCAKE_TOKENS} tokens, not of "
            f"{found.tokens_per_id}"
        )
    # An id stands for the prompt up to the end of its block: every so many-th is that of a larger block.
    step = _MOONCAKE_TOKENS // found.tokens_per_id
    fresh, numbers = count(), dict[int, int]()
    rows = []
    for ids, num in zip(found.ids, num_blocks, strict=True):
        full = ids[step - 1 :: step]
        known = [numbers[id_] if id_ in numbers else numbers.setdefault(id_, next(fresh)) for id_ in full]
        rows.append([*known, *(next(fresh) for _ in range(num - len(known)))])
    return rows


def _guidellm(workload: Workload) -> tuple[str, list[str]]:
    """Seconds from the first request on, which `guidellm --data kind=trace_synthetic` replays."""
    columns = {
        "timestamp": _since_first_s(workload).tolist(),
        "input_length": workload.prompt_tokens.tolist(),
        "output_length": workload.output_tokens.tolist(),
    }
    return _json_lines(columns), ["timestamp is in seconds: batchsim reads it with --time-unit s"]


def _since_first_s(workload: Workload) -> NDArray[np.float64]:
    return np.asarray(workload.arrival_s - workload.arrival_s[0])


def _json_lines(columns: Mapping[str, Iterable[Any]]) -> str:
    """An object a line, without what a row does not have."""
    rows = zip(*columns.values(), strict=True)
    return "".join(f"{json.dumps(_told(list(columns), row), allow_nan=False)}\n" for row in rows)


def _told(names: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in zip(names, row, strict=True)
        if value is not None and not (isinstance(value, float) and value != value)
    }


#: The formats that are written for others, by their names.
FOREIGN: Mapping[str, ForeignFormat] = {
    "burstgpt": ForeignFormat(".csv", ("model", "log_type", "session_id"), _burstgpt),
    "mooncake": ForeignFormat(".jsonl", ("session_id", DELAY_COLUMN, "hash_ids"), _mooncake),
    "guidellm": ForeignFormat(".jsonl", (), _guidellm),
}
