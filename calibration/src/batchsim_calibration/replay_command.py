"""``batchsim-calibrate replay``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from batchsim.config import RunConfig, load_config
from batchsim.errors import ConfigError
from batchsim.policies import presets
from batchsim_calibration.measure_command import say
from batchsim_calibration.measuring.grid import PROFILES, Extent, Point, Profile, points_of, slots_of
from batchsim_calibration.measuring.interleaved import Interleaved
from batchsim_calibration.measuring.measure import MeasureSettings, engine_for, load
from batchsim_calibration.measuring.operations import EnginePoints
from batchsim_calibration.provenance import machine, model_identity
from batchsim_calibration.replaying.inbox import Log
from batchsim_calibration.replaying.replay import Limits, settle, trace_of, warm_up
from batchsim_calibration.replaying.replay import replay as replay_on
from batchsim_calibration.replaying.replay_series import Job, replay_series, series_between
from batchsim_calibration.serving.engine import Engine
from batchsim_calibration.serving.models import LoadedModel

_AT_LEAST_1 = click.IntRange(min=1)
_POSITIVE = click.FloatRange(min=0, min_open=True)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(name="replay")
@click.option("--model", metavar="NAME", help="A shipped shape, or a Hugging Face model by name or path.")
@click.option("--random-weights", is_flag=True, help="Build the model from its configuration alone.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option(
    "--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="[default: bf16 on CUDA, else fp32]"
)
@click.option("--attention", type=click.Choice(["sdpa", "eager"]), default="sdpa", show_default=True)
@click.option("--policy", "policies", multiple=True, metavar="NAME", help="As in batchsim; repeatable.")
@click.option("--config", "config_file", type=_FILE, help="A run configuration of batchsim, for the rest.")
@click.option("--trace", metavar="FILE", help="As in batchsim; the embedded trace if left out.")
@click.option("--num-requests", type=_AT_LEAST_1, metavar="N", help="Replay the first N.")
@click.option("--rate", type=_POSITIVE, metavar="PER_S", help="Rescale time to this mean request rate.")
@click.option("--duration", type=_POSITIVE, metavar="S", help="Or so that arrivals span so many seconds.")
@click.option("--max-prompt", type=_AT_LEAST_1, metavar="N", help="Cut longer prompts.")
@click.option("--max-output", type=_AT_LEAST_1, metavar="N", help="Cut longer answers.")
@click.option("--max-num-seqs", type=_AT_LEAST_1, default=16, show_default=True, help="Slots of the engine.")
@click.option(
    "--max-tokens", type=_AT_LEAST_1, metavar="N", help="KV tokens of a slot.  [default: as needed]"
)
@click.option("--repeats", type=_AT_LEAST_1, default=1, show_default=True, help="Replays of each policy.")
@click.option("--calibrate-between", type=_FILE, metavar="CSV", help="Calibrate before, between and after.")
@click.option("--calibration", "profile", type=click.Choice(PROFILES), default="quick", show_default=True)
@click.option("--seed", type=int, help="Of all that is random.")
@click.option("-o", "--output-dir", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--overwrite", is_flag=True, help="Replace runs, and a calibration, that are there.")
@click.option("--resume", is_flag=True, help="Keep the runs of an interrupted series; do the rest.")
@click.pass_context
def replay(
    ctx: click.Context,
    /,
    output_dir: Path,
    policies: tuple[str, ...],
    max_num_seqs: int,
    repeats: int,
    calibrate_between: Path | None,
    profile: Profile,
    overwrite: bool,
    resume: bool,
    **given: Any,
) -> None:
    """Serve a trace in real time on a real model, as one or several policies have it.

    Each replay is a run directory OUTPUT_DIR/POLICY-REPEAT, as a simulation writes it, marked as measured.
    """
    if overwrite and resume:
        raise ConfigError("--overwrite and --resume were both given; give one")
    configs = _configs(policies, given)
    trace = trace_of(
        configs[0],
        trains=any(presets.build(config.policy).queueing.learns for config in configs),
        duration_s=given["duration"],
        max_prompt_tokens=given["max_prompt"],
        max_output_tokens=given["max_output"],
    )
    workload = trace.workload
    longest = int(workload.prompt_tokens.max() + workload.output_tokens.max())
    limits = Limits(max_num_seqs, given["max_tokens"] or longest)
    settled = {
        config.policy.preset.replace(":", "."): settle(config, trace.training, limits) for config in configs
    }
    for notice in workload.source.notices:
        say(f"Notice: {notice}")
    say(
        f"{len(workload)} requests over {workload.arrival_s[-1]:.0f} s, {len(settled) * repeats} times; "
        "longer where the engine does not keep up"
    )

    names = ("model", "random_weights", "device", "dtype", "attention")
    loaded = load(MeasureSettings(**{name: given[name] for name in names}, seed=configs[0].seed))
    points: list[Point] = []
    if calibrate_between is not None:
        points = points_of(profile, loaded.device.type, Extent(max_num_seqs, limits.max_tokens))
    engine = _engine(loaded, limits, points)
    identity = {**model_identity(loaded), **machine(loaded.device)}
    slots = Extent(engine.num_slots, engine.max_tokens)

    def play(job: Job) -> Log:
        warm_up(engine, job.trace.workload)
        return replay_on(engine, job.config, job.trace.workload)

    series = partial(
        replay_series,
        {name: Job(config, trace) for name, config in settled.items()},
        play,
        {**identity, "num_slots": slots.batch_size, "max_tokens": slots.tokens},
        output_dir,
        device=loaded.device,
        num_repeats=repeats,
        overwrite=overwrite,
        resume=resume,
        say=say,
    )
    try:
        if calibrate_between is None:
            runs = series()
        else:
            calibration = Interleaved(
                EnginePoints(engine),
                identity,
                points,
                calibrate_between,
                len(settled) * repeats + 1,
                slots,
                overwrite=overwrite,
                resume=resume,
            )
            runs = series_between(calibration, series, say)
    except KeyboardInterrupt:
        click.echo(
            f"Interrupted: replays that had ended are kept in {output_dir}; the same command with --resume "
            "(and without --overwrite) goes on from there",
            err=True,
        )
        ctx.exit(1)
    for directory in runs:
        click.echo(str(directory))


def _configs(policies: tuple[str, ...], given: dict[str, Any]) -> list[RunConfig]:
    """One configuration for each policy; they agree in all else."""
    if given["rate"] is not None and given["duration"] is not None:
        raise ConfigError("--rate and --duration were both given; give one")
    keys = {
        "trace": "workload.trace",
        "num_requests": "workload.num_requests",
        "rate": "workload.request_rate",
        "seed": "seed",
    }
    overrides = {key: given[name] for name, key in keys.items() if given[name] is not None}
    config = load_config(given["config_file"], overrides)
    names = policies or (config.policy.preset,)
    return [load_config(config, {"policy.preset": name}) for name in dict.fromkeys(names)]


def _engine(loaded: LoadedModel, limits: Limits, points: Sequence[Point]) -> Engine:
    """Make the engine, with room for the points of a calibration too."""
    extent = Extent(limits.num_slots, limits.max_tokens)
    return engine_for(loaded, Extent(*map(max, extent, slots_of(points))) if points else extent)
