"""How an operation is timed on CUDA, with a stand-in for the device."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from batchsim_calibration.serving.timing import timed


class FakeDevice:
    """Notes what is asked of it; its events say that 5 ms passed between any two."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._num_events = 0

    def event(self, enable_timing: bool) -> FakeEvent:
        assert enable_timing
        self._num_events += 1
        return FakeEvent(self, f"event {self._num_events}")

    def synchronize(self, device: torch.device) -> None:
        self.asked.append("wait")


class FakeEvent:
    def __init__(self, device: FakeDevice, name: str) -> None:
        self._device = device
        self._name = name

    def record(self) -> None:
        self._device.asked.append(self._name)

    def elapsed_time(self, other: FakeEvent) -> float:
        return 5.0


def test_both_clocks_hold_the_operation_and_nothing_before_or_after(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDevice()
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "synchronize", fake.synchronize)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)

    timing = timed(torch.device("cuda"), lambda: fake.asked.append("operation"))

    assert fake.asked == ["wait", "event 1", "operation", "event 2", "wait"]
    assert timing.cuda_s == 0.005
    assert 0 < timing.wall_s < 1
    assert not timing.is_disturbed(torch.device("cuda"))  # a CPU that waits for its GPU is not disturbed
