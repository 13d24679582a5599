"""A calibration of vLLM from end to end: which points, under which limits, into which table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchsim.errors import ConfigError
from batchsim_calibration.measuring.grid import (
    Extent,
    Point,
    Profile,
    budget_of,
    chunks_of,
    extent_of,
    points_of,
    trials_of,
)
from batchsim_calibration.measuring.outcome import Outcome
from batchsim_calibration.measuring.protocol import OnProgress, calibrate_latency_grid
from batchsim_calibration.provenance import device_state, machine, provenance, slug
from batchsim_calibration.vllm_engine.engine import VllmEngine, VllmSettings
from batchsim_calibration.vllm_engine.points import VllmPoints, limits_for

#: Blocks of the points where none are asked for: vLLM's own choice is known only once it runs.
DEFAULT_BLOCK_SIZE = {"cpu": 128, "cuda": 16}


@dataclass(frozen=True, slots=True)
class VllmGrid:
    """What to measure; None is for the default of the device or profile."""

    profile: Profile = "full"
    num_trials: int | None = None
    budget_s: float | None = None
    max_batch_size: int | None = None
    max_tokens: int | None = None

    def points(self, device: str, block_size: int) -> list[Point]:
        """Return the points of single passes: vLLM has no whole batches."""
        extent = extent_of(
            self.profile, device, max_batch_size=self.max_batch_size, max_tokens=self.max_tokens
        )
        points = [point for point in points_of(self.profile, device, extent) if point.kind != "batch"]
        return points + chunks_of(self.profile, device, extent, block_size)


def block_size_of(settings: VllmSettings) -> int:
    """Return the size of KV blocks that is asked for, or usual on the device."""
    return settings.block_size or DEFAULT_BLOCK_SIZE[settings.device]


def measure_vllm(
    settings: VllmSettings,
    grid: VllmGrid,
    output_dir: Path,
    *,
    name: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
    on_progress: OnProgress = lambda *_: None,
) -> tuple[Path, Outcome]:
    """Measure into ``output_dir``; return the table's path and how steady the machine was.

    Raises
    ------
    ConfigError
        If vLLM, its device or the model cannot be had, or the table is there already.
    """
    block_size = block_size_of(settings)
    points = grid.points(settings.device, block_size)
    num_trials, max_extra_trials = trials_of(grid.profile, settings.device)
    num_trials = grid.num_trials or num_trials
    limits, extent = limits_for(points, block_size)
    say(f"loading vLLM for {extent.batch_size} sequences of {extent.tokens} tokens")
    engine = VllmEngine(settings, limits, extent.tokens)
    identity: dict[str, Any] = {**machine(engine.device), **engine.identity}
    path = output_dir / f"{name or automatic_name(identity)}.csv"
    configuration = {
        "profile": grid.profile,
        "num_trials": num_trials,
        "seed": settings.seed,
        "num_points": len(points),
        **limits_told(engine, extent),
    }
    say(f"{len(points)} points, {num_trials} trials each, into {path.name}")
    state_before = device_state(engine.device)
    measured = VllmPoints(engine, extent.tokens, settings.seed)
    told = {**identity, "wake_s": measured.wake_s(points)}
    outcome = calibrate_latency_grid(
        measured,
        points,
        path,
        num_trials=num_trials,
        max_extra_trials=max_extra_trials,
        budget_s=grid.budget_s or budget_of(grid.profile, settings.device),
        configuration={**identity, **configuration},
        seed=settings.seed,
        overwrite=overwrite,
        describe=lambda outcome: provenance(
            told, engine.device, outcome, configuration=configuration, state_before=state_before
        ),
        on_estimate=lambda seconds: say(f"about {seconds:.0f} s to go, more where other work disturbs"),
        on_progress=on_progress,
    )
    return path, outcome


def limits_told(engine: VllmEngine, extent: Extent) -> dict[str, int]:
    """Limits of an engine, for a provenance; `ConfigError` if its KV blocks do not do for the points."""
    needed = extent.batch_size * -(-extent.tokens // engine.block_size)
    if needed > engine.num_kv_blocks:
        raise ConfigError(
            f"{extent.batch_size} sequences of {extent.tokens} tokens take {needed} KV blocks; vLLM has "
            f"{engine.num_kv_blocks}: give a smaller --max-batch-size or --max-tokens"
        )
    return {
        "num_slots": extent.batch_size,
        "max_tokens": extent.tokens,
        "block_size": engine.block_size,
        "num_kv_blocks": engine.num_kv_blocks,
    }


def automatic_name(identity: dict[str, Any]) -> str:
    """Return model, engine, device and dtype, such as ``tiny_vllm0.32.0_epyc_fp32``."""
    version = identity["vllm"]["version"]
    return f"{identity['model']}_vllm{version}_{slug(identity['gpu'])}_{identity['dtype']}"
