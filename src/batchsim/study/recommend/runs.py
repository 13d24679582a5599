"""Replications of candidates, simulated here or in processes: the outcomes are the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from batchsim.errors import BatchsimError
from batchsim.study.processes import Processes
from batchsim.study.recommend.draws import Draw
from batchsim.study.recommend.evidence import Outcome, measure
from batchsim.study.worker import Failure


class Runs(Protocol):
    """Simulates some draws and gives back, in their order, the outcomes or why there is none."""

    def __call__(self, draws: Sequence[Draw]) -> list[Outcome | str]:
        """Simulate each once."""
        ...


@contextmanager
def running(share: float, jobs: int) -> Iterator[Runs]:
    """Offer so many processes for the block; one is this one.

    Raises
    ------
    BatchsimError
        If a process dies: what it was at cannot be left out of a race.
    """
    act = partial(_attempt, share=share)
    if jobs < 2:
        yield lambda draws: list(map(act, draws))
        return
    with Processes(jobs) as processes:

        def run(draws: Sequence[Draw]) -> list[Outcome | str]:
            outcomes = {k: _told(outcome) for k, outcome in processes.each(act, draws)}
            return [outcomes[k] for k in range(len(draws))]

        yield run


def _told(outcome: Outcome | str | Failure) -> Outcome | str:
    if isinstance(outcome, Failure):
        raise BatchsimError(f"a replication was not simulated to its end: {outcome.sentence}")
    return outcome


def _attempt(draw: Draw, share: float) -> Outcome | str:
    try:
        return measure(draw, share)
    except BatchsimError as error:  # a model that does not fit, say: others may
        return str(error)
