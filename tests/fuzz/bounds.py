"""What reading a damaged file may take: nobody waits longer for a sentence, or buys memory for it."""

import functools
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: Seconds of the processor, and by the wall: a machine that has other work to do makes nothing hang.
MOST_S, MOST_WALL_S = 30, 300
MOST_BYTES = 2 * 2**30

_BYTES_OF_PEAK = 1 if sys.platform == "darwin" else 1024


class HangError(AssertionError):
    """A file takes longer than it may."""


def peak_bytes() -> int:
    """The most memory that this process held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_OF_PEAK


def _give_up(signum: int, frame: FrameType | None) -> None:
    raise HangError("no end in time")


@contextmanager
def _timer(timer: int, alarm: signal.Signals, most_s: float) -> Iterator[None]:
    before = signal.signal(alarm, _give_up)
    signal.setitimer(timer, most_s)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(alarm, before)


@contextmanager
def within_bounds(most_s: float = MOST_S, most_bytes: int = MOST_BYTES) -> Iterator[None]:
    """Fail what hangs, and what makes the most memory that this process ever held grow by so much."""
    start_bytes = peak_bytes()
    wall_s = most_s * MOST_WALL_S / MOST_S
    with (
        _timer(signal.ITIMER_PROF, signal.SIGPROF, most_s),
        _timer(signal.ITIMER_REAL, signal.SIGALRM, wall_s),
    ):
        yield
    grown_bytes = peak_bytes() - start_bytes
    assert grown_bytes <= most_bytes, f"took {grown_bytes:,} bytes of memory"


def bounded(test: Callable[..., None]) -> Callable[..., None]:
    """Hold each example of a test within these bounds."""

    @functools.wraps(test)
    def inside(*args: Any, **kwargs: Any) -> None:
        with within_bounds():
            test(*args, **kwargs)

    return inside
