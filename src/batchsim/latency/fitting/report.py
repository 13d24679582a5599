"""What a fit gives: the model, and what is known about its errors. `latency.fitting` makes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from batchsim.errors import ConfigError
from batchsim.latency.base import BatchLatency, BatchShape, Domain, Floats, LatencyInfo
from batchsim.latency.fitting.regression import Intervals, Mask, Quality, quality_of
from batchsim.latency.tables.table import Calibration

#: Relative error from which on a fit is warned of, and noise of the points that is worth telling with it.
NOTABLE_ERROR = 0.1
NOTABLE_NOISE = 0.02
#: Drift of a machine's speed from which on another clock than that of the wall is proposed.
NOTABLE_DRIFT = 0.1


@dataclass(frozen=True, slots=True)
class FitReport:
    """A fitted model and what is known about its errors.

    Attributes
    ----------
    model
        Ready for `save_latency`; its details repeat the figures below.
    coefficients
        By name, units included; empty for tables.
    qualities
        One per kind of points used or checked against. The properties give the worst of them.
    warnings
        Sentences a user should see.
    intervals
        95 % intervals of the coefficients, see `intervals_of`; empty if unknown.
    """

    family: str
    model: BatchLatency
    coefficients: Mapping[str, float]
    qualities: tuple[Quality, ...]
    warnings: tuple[str, ...]
    intervals: Intervals = field(default_factory=dict)

    @property
    def num_points(self) -> int:
        """Points fitted, of all kinds."""
        return sum(quality.num_points for quality in self.qualities if not quality.is_unseen)

    @property
    def r2(self) -> float:
        """Smallest coefficient of determination."""
        return min(quality.r2 for quality in self.qualities)

    @property
    def max_error(self) -> float:
        """Largest relative error of the fit at a point."""
        return max(quality.max_error for quality in self.qualities)

    @property
    def heldout_batch_size_mape(self) -> float:
        """Largest, over the kinds of points; NaN if unknown."""
        return float(np.fmax.reduce([quality.heldout_batch_size_mape for quality in self.qualities]))

    @property
    def heldout_length_mape(self) -> float:
        """Largest, over the kinds of points; NaN if unknown."""
        return float(np.fmax.reduce([quality.heldout_length_mape for quality in self.qualities]))

    @property
    def heldout_mape(self) -> float:
        """The larger of the two; NaN if neither is known."""
        return float(np.fmax(self.heldout_batch_size_mape, self.heldout_length_mape))


def fit_info(
    calibration: Calibration,
    qualities: tuple[Quality, ...],
    warnings: list[str],
    intervals: Intervals | None = None,
) -> LatencyInfo:
    """Say what is known about a fit, after adding what its quality warns of to ``warnings``."""
    noise = {quality.kind: calibration.noise_of(quality.kind) for quality in qualities}
    held_out = held_out_warnings(qualities, noise)
    warnings += held_out + (_other_clock(calibration) if held_out else [])
    warnings.extend(calibration.notices)
    details = {
        **calibration.details,
        "calibration": calibration.name,
        "sha256": calibration.sha256,
        "clock": calibration.clock,
        "dropped_trials": dict(calibration.dropped),
        "qualities": [known(quality) for quality in qualities],
        "noise": {kind: _known(value) for kind, value in noise.items()},
        "intervals_95": {name: list(ends) for name, ends in (intervals or {}).items()},
        "warnings": list(warnings),
    }
    named = [str(calibration.details[key]) for key in ("model", "gpu") if key in calibration.details]
    return LatencyInfo(" on ".join(named) or calibration.name, calibration.provenance, details)


def held_out_warnings(qualities: tuple[Quality, ...], noise: Mapping[str, float]) -> list[str]:
    """Say where held-out errors are notable, or unknown; ``noise`` is that of the points, by kind."""
    warnings = []
    for quality in qualities:
        for what, error in (
            ("batch size", quality.heldout_batch_size_mape),
            ("length", quality.heldout_length_mape),
        ):
            if math.isnan(error):
                warnings.append(
                    f"{quality.kind}: too few points to hold out any {what}, so errors are unknown"
                )
            elif error > NOTABLE_ERROR:
                warnings.append(
                    f"{quality.kind}: when a {what} is held out, the error there is {error:.0%}"
                    f"{_of_it_noise(noise[quality.kind])}"
                )
    return warnings


def _other_clock(calibration: Calibration) -> list[str]:
    """Propose the processor's own time where other work made the machine drift, and it is what computed."""
    drift = calibration.details.get("drift")
    is_of_processor = "cpu_s" in calibration.clocks and "cuda_s" not in calibration.clocks
    if calibration.clock != "wall_s" or not is_of_processor or not isinstance(drift, float):
        return []
    if drift <= NOTABLE_DRIFT:
        return []
    return [
        f"the machine's speed drifted by {drift:.0%} while this was measured: --clock cpu_s fits the time of "
        "the processor alone, with which other work interferes less"
    ]


def known(quality: Quality) -> dict[str, Any]:
    """Return a quality as a table for JSON: null where it is not known."""
    return {name: _known(value) for name, value in asdict(quality).items()}


def _known(value: Any) -> Any:
    return None if value != value else value


def _of_it_noise(noise: float) -> str:
    return f" (the points themselves are unsure by {noise:.0%})" if noise >= NOTABLE_NOISE else ""


def unseen_batches(
    calibration: Calibration, without: Callable[[Floats], BatchLatency]
) -> tuple[Quality, ...]:
    """Tell how well a model of phases or iterations meets the whole batches, if any were measured.

    Parameters
    ----------
    without
        Makes the model of all its points but those of these batch sizes. Where it cannot be made without, it
        is taken with them: the whole batches are unseen in any case.
    """
    points = calibration.of_kind("batch").dropna(subset=["prompt_tokens", "output_tokens"])
    if points.empty:
        return ()
    columns = points[["batch_size", "prompt_tokens", "output_tokens"]].astype("int64")
    shapes = [BatchShape(*shape) for shape in columns.itertuples(index=False)]
    batch_size, prompt, output = (column(columns[name]) for name in columns)

    def predict(shown: Mask, asked: Mask) -> Floats:
        try:
            model = without(np.setdiff1d(batch_size[asked], batch_size[shown]))
        except ConfigError:
            model = without(np.array([]))
        return np.array([model.batch_time(shapes[row]).total_s for row in np.flatnonzero(asked)])

    quality = quality_of("batch", predict, column(points["mean_s"]), batch_size, prompt + output)
    return (replace(quality, is_unseen=True),)


def points_of(calibration: Calibration, kind: str) -> pd.DataFrame:
    """Return the points of one kind; raise `ConfigError` if there are none."""
    points = calibration.of_kind(kind)
    if points.empty:
        raise ConfigError(f"no {kind} points; this family needs them")
    return points


def need_two_sizes(calibration: Calibration) -> None:
    """Raise `ConfigError` if all points share one batch size."""
    sizes = calibration.points["batch_size"].unique()
    if len(sizes) < 2:
        raise ConfigError(
            f"{calibration.name}: batch size {', '.join(map(str, sizes))} alone; at least two are needed "
            "to tell how the time grows with it"
        )


def column(values: pd.Series[Any]) -> Floats:
    """Return a column as floats."""
    return values.to_numpy(dtype=np.float64)


def common_range(*columns: Floats) -> tuple[int, int]:
    """Return the range that all columns cover."""
    return int(max(column.min() for column in columns)), int(min(column.max() for column in columns))


def batch_domain(prefill: pd.DataFrame, decode: pd.DataFrame) -> Domain:
    """Return the range of whole batches that these points tell of."""
    sizes = common_range(column(prefill["batch_size"]), column(decode["batch_size"]))
    if sizes[0] > sizes[1]:
        raise ConfigError("prefill and decode points have no range of batch sizes in common")
    low, high = common_range(column(decode["context_tokens"]))
    return Domain(
        batch_size=sizes,
        prompt_tokens=common_range(column(prefill["prompt_tokens"])),
        # The last of ``output - 1`` steps finds ``prompt + output - 2`` tokens in the cache.
        length=(low, high + 2),
    )
