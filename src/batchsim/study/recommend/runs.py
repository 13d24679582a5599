"""Replications of candidates, simulated here or in processes: the outcomes are the same."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from batchsim.errors import BatchsimError
from batchsim.study.recommend.draws import Draw
from batchsim.study.recommend.evidence import Outcome, measure


class Runs(Protocol):
    """Simulates some draws and gives back, in their order, the outcomes or why there is none."""

    def __call__(self, draws: Sequence[Draw]) -> list[Outcome | str]:
        """Simulate each once."""
        ...


@contextmanager
def running(share: float, jobs: int) -> Iterator[Runs]:
    """Offer so many processes for the block; one is this one."""
    act = partial(_attempt, share=share)
    if jobs < 2:
        yield lambda draws: list(map(act, draws))
        return
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _leave_ctrl_c)
    try:
        yield lambda draws: list(pool.map(act, draws, chunksize=max(1, len(draws) // (8 * jobs))))
    except BrokenProcessPool as error:
        raise BatchsimError("a process died while it simulated (out of memory?)") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_ctrl_c() -> None:
    """Let the parent alone tell of it, and end the processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _attempt(draw: Draw, share: float) -> Outcome | str:
    try:
        return measure(draw, share)
    except BatchsimError as error:  # a model that does not fit, say: others may
        return str(error)
