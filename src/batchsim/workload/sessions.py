"""Conversations: which requests are turns of one session, what their prompts repeat, and made-up ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.errors import ConfigError, TraceError
from batchsim.workload.checks import is_number, positive, require
from batchsim.workload.columns import numbers, refuse
from batchsim.workload.prefixes import TOKENS_PER_ID, PrefixIds, id_column
from batchsim.workload.request import Workload

PREFIX_COLUMN = "prefix_ids"
DELAY_COLUMN = "delay_s"


def session_numbers(workload: Workload) -> NDArray[np.int64]:
    """Number the sessions by first arrival; shape ``(num_requests,)``, -1 for a request without session."""
    if "session_id" not in workload.extra:
        return np.full(len(workload), -1, dtype=np.int64)
    return pd.factorize(np.asarray(workload.extra["session_id"]))[0].astype(np.int64)


def session_rows(workload: Workload) -> list[list[int]]:
    """Rows of each session, turn by turn, in order of first arrival; a request without session is alone."""
    order, starts = _by_session(workload)
    return [rows.tolist() for rows in np.split(order, starts[1:])]


def gaps_to_next_turn_s(workload: Workload) -> NDArray[np.float64]:
    """Seconds from each arrival to that of the session's next turn, 0 for its last; ``(num_requests,)``.

    Where the trace says how long after an answer the next turn comes (column ``delay_s``), it is that.
    """
    order, starts = _by_session(workload)
    arrival_s = workload.arrival_s[order]
    to_next_s = np.diff(arrival_s)
    if DELAY_COLUMN in workload.extra:
        delay_s = np.asarray(workload.extra[DELAY_COLUMN], dtype=np.float64)[order][1:]
        to_next_s = np.where(delay_s >= 0, delay_s, to_next_s)
    gaps_s = np.zeros(len(order))
    gaps_s[order[:-1]] = to_next_s
    gaps_s[order[np.append(starts[1:], len(order)) - 1]] = 0.0
    return gaps_s


def check_sessions(workload: Workload) -> None:
    """Raise `ConfigError` where no request belongs to a session."""
    if not (session_numbers(workload) >= 0).any():
        raise ConfigError(
            f'clients.kind is "sessions", but {workload.source.name} has none: a column session_id, or '
            "chat_id and parent_chat_id, is needed"
        )


def grow_context(workload: Workload) -> Workload:
    """Let each prompt repeat the session's earlier prompts and answers before its own tokens.

    The extra column ``prefix_ids`` names the full blocks of the prompts that result: one id per block, the
    same in all turns of a session and in no other. Sessions that a cut of the trace begins in the middle grow
    from there. An abandoned turn counts like one that was answered.

    Raises
    ------
    ConfigError
        For a workload with prefix ids: its prompts hold the earlier turns already.
    """
    name = id_column(workload.extra)
    if name is not None:
        raise ConfigError(
            f"clients.grow_context: prompts of {workload.source.name} repeat earlier turns already, as its "
            f"column {name} says"
        )
    order, starts = _by_session(workload)
    num_turns = np.diff(np.append(starts, len(order)))
    prompts, outputs = workload.prompt_tokens[order], workload.output_tokens[order]
    before = np.cumsum(prompts + outputs) - prompts - outputs
    grown = before - np.repeat(before[starts], num_turns) + prompts

    num_blocks = grown // TOKENS_PER_ID[PREFIX_COLUMN]
    most_blocks = num_blocks[starts + num_turns - 1]  # of a session: those of its last turn
    first_ids = np.repeat(np.cumsum(most_blocks) - most_blocks, num_turns)
    ids = np.empty(len(order), dtype=object)
    for row, first, num in zip(order.tolist(), first_ids.tolist(), num_blocks.tolist(), strict=True):
        ids[row] = list(range(first, first + num))
    prompt_tokens = np.empty_like(workload.prompt_tokens)
    prompt_tokens[order] = grown

    source = workload.source
    notice = f"{source.name}: prompts repeat the earlier turns of their session"
    return replace(
        workload,
        prompt_tokens=prompt_tokens,
        extra={**workload.extra, PREFIX_COLUMN: ids},
        source=replace(source, notices=(*source.notices, notice)),
    )


def answer_ids(workload: Workload, prefixes: PrefixIds) -> list[Sequence[int]]:
    """Find ids of the blocks that each answer fills: the session's next turn repeats it behind the prompt.

    There are none where no turn follows, or one that does not repeat the prompt or is too short for both.
    """
    size, ids = prefixes.tokens_per_id, prefixes.ids
    prompt_tokens = workload.prompt_tokens.tolist()
    whole_tokens = (workload.prompt_tokens + workload.output_tokens).tolist()
    found: list[Sequence[int]] = [()] * len(ids)
    for rows in session_rows(workload):
        for row, after in pairwise(rows):
            own, repeated = ids[row], ids[after]
            if prompt_tokens[after] >= whole_tokens[row] and own == repeated[: len(own)]:
                # the last token of an answer is never stored
                found[row] = repeated[len(own) : (whole_tokens[row] - 1) // size]
    return found


def session_ids(column: pd.Series, where: str) -> pd.Series:
    """Return ids that are all numbers or all text, as the file has them; what is neither is refused.

    Raises
    ------
    TraceError
        For a list, an object and the like.
    """
    if column.dtype.kind in "iuf" or isinstance(column.dtype, pd.CategoricalDtype):
        return column
    is_known = column.notna()
    kinds = set(map(type, column[is_known].to_list()))
    if not kinds <= {str, int, float}:
        is_odd = is_known & ~column.map(lambda value: isinstance(value, str | int | float))
        if is_odd.any():
            refuse(column, int(np.argmax(is_odd)), where, "text or a number is needed")
    return column if len(kinds) < 2 else column.astype(object).where(~is_known, column.map(str))


def sessions_of_chats(table: pd.DataFrame, where: str) -> NDArray[Any]:
    """Return the first chat of each chat's line of parents (columns ``chat_id``, ``parent_chat_id``).

    A parent that is not in the table is the first of its line; one below 0, or none, stands for no parent.

    Raises
    ------
    TraceError
        For a chat that stands twice, or is its own parent, be it through others.
    """
    chats, parents = (_chat_numbers(table, name, where) for name in ("chat_id", "parent_chat_id"))
    known = pd.Index(chats)
    if known.has_duplicates:
        row = int(np.argmax(known.duplicated()))
        raise TraceError(f"{where}, row {table.index[row]}: chat_id {chats[row]:g} stands twice")
    rows = np.arange(len(chats))
    before = known.get_indexer(pd.Index(parents))
    first = np.where(before >= 0, before, rows)
    # each step goes twice as far as the one before
    for _ in range(len(chats).bit_length()):
        first = first[first]
    if (before[first] >= 0).any():
        row = int(np.argmax(before[first] >= 0))
        raise TraceError(f"{where}, row {table.index[row]}: chat_id {chats[row]:g} is its own parent")
    is_cut = parents[first] >= 0
    return np.where(is_cut, parents[first], chats[first]).astype(np.int64)


def turns_after_delays(
    arrival_s: NDArray[np.float64], delay_s: NDArray[np.float64], sessions: NDArray[Any]
) -> NDArray[np.float64]:
    """Fill in arrivals that are NaN: so long after the session's turn before, as if its answer took no time.

    Turns stand in the order of the table. Where a session begins with one that has no arrival, it stays NaN.
    """
    filled = arrival_s.copy()
    last_s: dict[Any, float] = {}
    for row, session in enumerate(sessions.tolist()):
        if filled[row] != filled[row]:
            filled[row] = last_s.get(session, np.nan) + delay_s[row]
        last_s[session] = filled[row]
    return filled


@dataclass(frozen=True, slots=True)
class Sessions:
    """Poisson arrivals of sessions, each with a geometric number of turns at exponential gaps.

    With 2.8 turns in the mean, 36 % of the sessions have one turn, the median is 2 and the upper quartile 4,
    as published for BurstGPT's conversations. Requests arrive at ``sessions_per_s * mean_turns`` once the
    first sessions are under way.

    Attributes
    ----------
    sessions_per_s
        Sessions that begin per second.
    mean_turns
        Requests of a session.
    turn_gap_s
        Mean seconds from one turn's arrival to the next; the default is chosen, not published.
    """

    sessions_per_s: float
    mean_turns: float = 2.8
    turn_gap_s: float = 60.0

    def __post_init__(self) -> None:
        positive(self, "sessions_per_s", "turn_gap_s")
        require(self, "mean_turns", is_number(self.mean_turns) and self.mean_turns >= 1, "a number >= 1")

    def sample(self, num: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Draw the first ``num`` requests in time: arrivals in seconds, and session ids."""
        # Each session has a turn at its start, so no later one than the ``num``-th can matter.
        start_s = np.cumsum(rng.exponential(1 / self.sessions_per_s, num))
        num_turns = rng.geometric(1 / self.mean_turns, num)
        session = np.repeat(np.arange(num), num_turns)
        first = np.cumsum(num_turns) - num_turns
        gaps_s = rng.exponential(self.turn_gap_s, len(session))
        gaps_s[first] = 0.0
        since_s = np.cumsum(gaps_s)
        arrival_s = start_s[session] + since_s - since_s[first][session]
        order = np.lexsort((session, arrival_s))[:num]
        return arrival_s[order], session[order]


def _chat_numbers(table: pd.DataFrame, name: str, where: str) -> NDArray[np.float64]:
    """Chats as numbers; -1 for none."""
    is_known = table[name].notna().to_numpy()
    values = np.full(len(table), -1.0)
    values[is_known] = numbers(table[is_known], name, where, least=-(2**53))
    return np.asarray(np.maximum(values, -1.0))


def _by_session(workload: Workload) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows in order of session, then turn; and where in that order each session starts."""
    session = session_numbers(workload)
    first_row = np.arange(len(session))
    in_session = np.flatnonzero(session >= 0)
    _, firsts = np.unique(session[in_session], return_index=True)
    first_row[in_session] = in_session[firsts][session[in_session]]
    order = np.argsort(first_row, kind="stable")
    return order, np.flatnonzero(np.diff(first_row[order], prepend=-1))
