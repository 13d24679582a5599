"""Conversations: which requests are turns of one session, what their prompts repeat, and made-up ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.workload.checks import is_number, positive, require
from batchsim.workload.prefixes import TOKENS_PER_ID
from batchsim.workload.request import Workload

PREFIX_COLUMN = "prefix_ids"


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
    """Seconds from each arrival to that of the session's next turn, 0 for its last; ``(num_requests,)``."""
    order, starts = _by_session(workload)
    arrival_s = workload.arrival_s[order]
    gaps_s = np.zeros(len(order))
    gaps_s[order[:-1]] = np.diff(arrival_s)
    gaps_s[order[np.append(starts[1:], len(order)) - 1]] = 0.0
    return gaps_s


def grow_context(workload: Workload) -> Workload:
    """Let each prompt repeat the session's earlier prompts and answers before its own tokens.

    The extra column ``prefix_ids`` names the full blocks of the prompts that result: one id per block, the
    same in all turns of a session and in no other. Sessions that a cut of the trace begins in the middle grow
    from there. An abandoned turn counts like one that was answered.
    """
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


def _by_session(workload: Workload) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows in order of session, then turn; and where in that order each session starts."""
    session = session_numbers(workload)
    first_row = np.arange(len(session))
    in_session = np.flatnonzero(session >= 0)
    _, firsts = np.unique(session[in_session], return_index=True)
    first_row[in_session] = in_session[firsts][session[in_session]]
    order = np.argsort(first_row, kind="stable")
    return order, np.flatnonzero(np.diff(first_row[order], prepend=-1))
