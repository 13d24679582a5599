"""The three gates of a measured run: is the logic right, is the latency model, are both together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from batchsim.validation.comparison import MAPE, Comparison, Verdict, compare_requests, overall
from batchsim.validation.replays.measured_replay import Recording
from batchsim.validation.replays.recorded_times import RecordedReplay, replay_recorded

#: Error of a time up to which logic passes, and held-out error up to which a latency model does.
LOGIC_BAR, MODEL_BAR = 0.02, 0.1
#: Busy share of the engine up to which a whole run is judged: beyond, queueing amplifies any error.
MOST_LOAD = 0.6
#: Times that differ by less are the same, written down and read back.
_SAME_S = 1e-8


class Gate(NamedTuple):
    """What one gate says of one subject: a run, a kind of operation, or repeats of a run."""

    gate: Literal["logic", "model", "end to end"]
    subject: str
    verdict: Verdict
    finding: str


def logic_gate(recording: Recording) -> Gate:
    """Gate (a): with the recorded durations, every time within 2 %, and requests one by one on average."""
    replay = replay_recorded(recording)
    comparison = compare_requests([recording.requests], replay.result.requests)
    worst, error = comparison.worst_time
    of_requests = comparison.errors.loc[comparison.errors["statistic"] == MAPE, "error"].max()
    is_sound = max(abs(error), of_requests) <= LOGIC_BAR and not comparison.num_unpaired
    finding = (
        f"largest error {error:+.2%} ({worst}), of single requests {of_requests:.2%} on average (bar "
        f"{LOGIC_BAR:.0%}); {_likeness(replay)}{_unpaired(comparison)}"
    )
    return Gate("logic", recording.directory.name, "pass" if is_sound else "fail", finding)


def model_gates(details: Mapping[str, object]) -> list[Gate]:
    """Gate (b): for each kind of operation, the held-out error that the latency file tells of.

    Where it is above the bar, but would not be without the noise of the points (in squares), it is
    inconclusive.
    """
    qualities = details.get("qualities")
    if not isinstance(qualities, list) or not qualities:
        finding = "the latency file tells of no held-out errors: it was not fitted, or not by `batchsim fit`"
        return [Gate("model", "latency file", "not judged", finding)]
    noise = details.get("noise")
    noise_of = noise if isinstance(noise, dict) else {}
    return [_model_gate(quality, noise_of.get(quality.get("kind"))) for quality in qualities]


def end_to_end_gate(name: str, comparison: Comparison, load: float, speed_spread: float = math.nan) -> Gate:
    """Gate (c): mean, P50 and throughput within 5 %, P90 and above within 10 %, where repeats allow it.

    ``speed_spread`` is how far the machine varied in speed from repeat to repeat, of this run or others.
    """
    worst, error = comparison.worst_time
    finding = f"largest error of a time {error:+.1%} ({worst}), load {load:.0%}"
    if load > MOST_LOAD:
        return Gate("end to end", name, "not judged", f"{finding}: judged up to {MOST_LOAD:.0%} only")
    if comparison.num_unpaired:
        return Gate("end to end", name, "fail", finding + _unpaired(comparison))
    judged = comparison.errors[comparison.errors["bar"].notna()]
    counts = judged["verdict"].value_counts().to_dict()
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    spread = judged["spread"].max()
    varies = (
        "one run does not tell how far the machine varies"
        if math.isnan(spread)
        else f"the machine varies by up to {spread:.1%}"
    )
    if not math.isnan(speed_spread):
        varies += f", its speed by {speed_spread:.1%}"
    return Gate("end to end", name, overall(judged["verdict"].tolist()), f"{finding}; {told}; {varies}")


def _likeness(replay: RecordedReplay) -> str:
    likeness = f"{replay.num_alike} of {replay.num_operations} operations alike"
    if replay.first_mismatch is not None:
        return f"{likeness}, first difference: {replay.first_mismatch}"
    if replay.largest_difference_s < _SAME_S:
        return f"{likeness}, every request at its time"
    return f"{likeness}, no request's time off by more than {replay.largest_difference_s:.1g} s"


def _unpaired(comparison: Comparison) -> str:
    num = comparison.num_unpaired
    return f"; {num} requests finished on one side only" if num else ""


def _model_gate(quality: Mapping[str, Any], noise: float | None) -> Gate:
    """Judge one kind; an error that the noise of the measured points may explain proves nothing."""
    held_out = {
        name.removeprefix("heldout_").removesuffix("_mape").replace("_", " "): error
        for name, error in quality.items()
        if name.startswith("heldout_") and name.endswith("_mape")
    }
    known = [error for error in held_out.values() if error is not None]
    shown = ", ".join(
        f"{'unknown' if error is None else f'{error:.1%}'} ({what} held out)"
        for what, error in held_out.items()
    )
    verdict: Verdict = "not judged"
    if known:
        without_noise = math.sqrt(max(max(known) ** 2 - (noise or 0.0) ** 2, 0.0))
        verdict = (
            "pass" if max(known) < MODEL_BAR else "inconclusive" if without_noise < MODEL_BAR else "fail"
        )
    finding = f"mean absolute error {shown or 'unknown'}; bar {MODEL_BAR:.0%}"
    if noise is not None:
        finding += f"; the measured points themselves are unsure by {noise:.1%}"
    return Gate("model", str(quality.get("kind", "operations")), verdict, finding)
