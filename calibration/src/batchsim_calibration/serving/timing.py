"""How long something took: by the wall clock, by the process's CPU clock and, on CUDA, by device events."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

#: Below this share of CPU time in wall time, something else had the core for part of the time.
CLEAN_CPU_SHARE = 0.97
#: The process clock of Windows moves in ticks of 15.6 ms: shorter times say nothing about the share.
_SHORTEST_JUDGED_S = 1.0 if sys.platform == "win32" else 0.0


class Timing(NamedTuple):
    """Seconds; ``cuda_s`` is NaN on a CPU."""

    wall_s: float
    cpu_s: float
    cuda_s: float

    @property
    def cpu_share(self) -> float:
        """CPU time per wall time; near 1 when one busy thread has a core to itself."""
        return self.cpu_s / self.wall_s

    def is_disturbed(self, device: torch.device) -> bool:
        """Whether other work on the machine took part of the time; on CUDA the CPU's share tells nothing."""
        return device.type == "cpu" and self.wall_s >= _SHORTEST_JUDGED_S and self.cpu_share < CLEAN_CPU_SHARE


def timed(device: torch.device, action: Callable[[], object]) -> Timing:
    """Run once, with nothing left to do on the device before and after."""
    if device.type != "cuda":
        return Timing(*clocked(action), math.nan)
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def on_device() -> None:
        start.record()
        action()
        end.record()
        torch.cuda.synchronize(device)

    with torch.cuda.device(device):
        torch.cuda.synchronize(device)
        wall_s, cpu_s = clocked(on_device)
    return Timing(wall_s, cpu_s, start.elapsed_time(end) / 1e3)


def clocked(action: Callable[[], object]) -> tuple[float, float]:
    """Run once; return the seconds by the wall, and those of the process's CPU clock."""
    start_ns, cpu_start_ns = time.perf_counter_ns(), time.process_time_ns()
    action()
    cpu_ns, wall_ns = time.process_time_ns() - cpu_start_ns, time.perf_counter_ns() - start_ns
    return wall_ns / 1e9, cpu_ns / 1e9


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection and no autograd meanwhile."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        if was_enabled:
            gc.enable()
