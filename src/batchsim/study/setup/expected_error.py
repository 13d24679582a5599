"""How far the answers of a run could be off, told from data that says so of its latency models.

That is what a latency model does to an answer. What policies, traces and front ends leave out comes on top,
except where the data was made with all of these: then it is in the errors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from batchsim.config import EngineConfig
from batchsim.config.hardware import HOST_TIMES
from batchsim.latency.roofline import RooflineLatency
from batchsim.latency.store import default_latency
from batchsim.specs import GPUSpec, ModelSpec, Sharing
from batchsim.study.setup.hardware import AnyLatency, held_out_errors

#: Where `validation.error_ranges` puts what published points tell.
PUBLISHED = "expected_errors.json"
#: Kinds of published points, as the file names them.
PASSES, LOOPS, BATCHES = "aiconfigurator", "roofline, closed loops", "roofline, static batches"
#: Of the roofline: what holds where no point is of the GPU.
ANY_GPU = "any"

METRICS = ("tpot", "ttft", "e2e")


class ErrorRange(NamedTuple):
    """Ends of what predicted / measured - 1 could be."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.low:+.0f} to {100 * self.high:+.0f} %"


@dataclass(frozen=True, slots=True)
class ExpectedError:
    """By metric, what an answer could be off by; None where nothing tells.

    Attributes
    ----------
    basis
        What tells so, or why nothing does.
    """

    basis: str
    tpot: ErrorRange | None = None
    ttft: ErrorRange | None = None
    e2e: ErrorRange | None = None

    @property
    def ranges(self) -> Mapping[str, ErrorRange]:
        """Those that are known, by metric."""
        told = {name: getattr(self, name) for name in METRICS}
        return {name: bounds for name, bounds in told.items() if bounds is not None}

    def __str__(self) -> str:
        if not self.ranges:
            return f"how far times could be off is not known: {self.basis}"
        told = ", ".join(f"{name.upper()} {bounds}" for name, bounds in self.ranges.items())
        return f"times could be off by {told} ({self.basis})"

    def summary(self) -> dict[str, Any]:
        """Keys of a summary: the sentence, and both ends of each range."""
        ends = {
            f"expected_error_{name}_{end}": getattr(self.ranges.get(name), end, None)
            for name in METRICS
            for end in ErrorRange._fields
        }
        return {"expected_error": str(self), **ends}


def expected_error(
    latencies: Sequence[AnyLatency], engine: EngineConfig, *, is_iteration_level: bool
) -> ExpectedError:
    """Tell it of a cluster: of several latency models, the widest."""
    if engine.speculation.num_speculative_tokens:
        return ExpectedError("no published point of speculative decoding was predicted")
    told: list[ExpectedError] = []
    for latency in {id(one): one for one in latencies}.values():  # replicas that are alike share theirs
        one = _of_model(latency, engine, is_iteration_level=is_iteration_level)
        if one not in told:
            told.append(one)
    if len(told) == 1:
        return told[0]
    common = [name for name in METRICS if all(name in one.ranges for one in told)]
    widest = {
        name: ErrorRange(
            min(one.ranges[name].low for one in told), max(one.ranges[name].high for one in told)
        )
        for name in common
    }
    return ExpectedError("; ".join(dict.fromkeys(one.basis for one in told)), **widest)


def _of_model(latency: AnyLatency, engine: EngineConfig, *, is_iteration_level: bool) -> ExpectedError:
    details = latency.info.details
    if details.get("imported_as") == "aiconfigurator":
        return _of_passes(details, engine, is_iteration_level=is_iteration_level)
    if isinstance(qualities := details.get("qualities"), list):
        return _of_fit(qualities)
    if isinstance(uneven := details.get("uneven_contexts"), Mapping):
        return _of_uneven_contexts(uneven)
    if isinstance(latency, RooflineLatency):
        return _of_roofline(latency, is_iteration_level=is_iteration_level)
    return ExpectedError(f"latency model {latency.info.name} ({latency.info.provenance}) says nothing of it")


def _of_passes(
    details: Mapping[str, Any], engine: EngineConfig, *, is_iteration_level: bool
) -> ExpectedError:
    name = str(details.get("engine")).partition(" ")[0]
    published = _published(PASSES).get(name)
    if published is None:
        return ExpectedError(f"no published point of {name} was predicted")
    if not is_iteration_level:
        return ExpectedError(f"published points of {name} were not batches that run to completion")
    if engine.host != HOST_TIMES.get(name):
        return ExpectedError(
            f"published points of {name} were predicted with its host's times, which this run has not "
            f'(engine.frontend = "{name}")'
        )
    return ExpectedError(_basis(published, f"closed loops of {name}"), **_ranges(published))


def _of_roofline(latency: RooflineLatency, *, is_iteration_level: bool) -> ExpectedError:
    if _constants(latency) != _usual_constants(latency.model, latency.gpu, latency.sharing):
        return ExpectedError("published points were predicted with other efficiencies than this roofline's")
    loops, batches = _published(LOOPS), _published(BATCHES)
    gpu = latency.gpu.name
    if is_iteration_level and (gpu in loops or gpu not in batches):
        published, what = loops, "closed loops"
    else:
        published, what = batches, "static batches"
    of_gpu = published.get(gpu) or published.get(ANY_GPU)
    if of_gpu is None or (latency.model.num_experts and not of_gpu["has_experts"]):
        return ExpectedError("no published point of a model with experts was predicted by a roofline")
    if gpu in published:
        basis = _basis(of_gpu, f"{what} on {gpu}")
    else:
        basis = _basis(of_gpu, f"{what} on GPUs other than {gpu}", "GPU")
    return ExpectedError(basis, **_ranges(of_gpu))


@cache
def _usual_constants(model: ModelSpec, gpu: GPUSpec, sharing: Sharing) -> tuple[float, ...]:
    return _constants(default_latency(model, gpu, sharing=sharing))


def _constants(latency: RooflineLatency) -> tuple[float, ...]:
    return latency.compute_efficiency, latency.bandwidth_efficiency, latency.overhead_s


def _of_fit(qualities: Sequence[Any]) -> ExpectedError:
    """Of passes, or batches, alone: what the fit was off where it was not shown the points."""
    worst: dict[str, float] = {}
    for kind, _, error in held_out_errors(qualities):
        if kind in _KINDS:
            worst[_KINDS[kind]] = max(error, worst.get(_KINDS[kind], 0.0))
    ranges = {metric: ErrorRange(-error, error) for metric, error in worst.items()}
    if not ranges:
        return ExpectedError("its fit held no point out")
    return ExpectedError(
        "mean error of the fit where points were held out of it; queues not counted", **ranges
    )


#: What a kind of measured point tells of.
_KINDS = {"decode": "tpot", "prefill": "ttft", "batch": "e2e"}


def _of_uneven_contexts(told: Mapping[str, Any]) -> ExpectedError:
    """Of a profile that says how much less or more than told a pass of decodes could take."""
    low, high = told.get("low"), told.get("high")
    if not (_is_share(low) and _is_share(high)):
        return ExpectedError("the profile does not tell uneven contexts")
    bounds = ErrorRange(1 / (1 + high) - 1, 1 / (1 + low) - 1)  # type: ignore[operator]
    return ExpectedError("by uneven contexts of decodes alone", tpot=bounds)


def _is_share(value: object) -> bool:
    return isinstance(value, float | int) and -1 < value < math.inf


def _ranges(published: Mapping[str, Any]) -> dict[str, ErrorRange]:
    """By metric; static batches tell the time of whole requests."""
    return {
        {"batch": "e2e"}.get(metric, metric): ErrorRange(error["low"], error["high"])
        for metric, error in published["errors"].items()
    }


def _basis(published: Mapping[str, Any], what: str, group: str = "model") -> str:
    """Which points tell, and how many a range holds that was told without their model or GPU."""
    covered = [error["held_out_coverage"] for error in published["errors"].values()]
    shares = sorted(round(100 * share) for share in covered if share is not None)
    basis = f"as 8 in 10 published {what}"
    if not shares:
        return f"{basis}, all of one {group}"
    held = f"{shares[0]} to {shares[-1]} %" if shares[0] != shares[-1] else f"{shares[0]} %"
    return f"{basis}; of a {group} left out, {held}"


@cache
def _published(kind: str) -> Mapping[str, Any]:
    """Ranges of a kind of points, by engine or GPU."""
    text = (files("batchsim.latency") / "data" / PUBLISHED).read_text(encoding="utf-8")
    return dict(json.loads(text).get(kind, {}).get("ranges", {}))
