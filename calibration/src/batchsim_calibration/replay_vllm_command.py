"""``batchsim-calibrate replay-vllm``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from batchsim.config import load_config
from batchsim.errors import ConfigError
from batchsim_calibration.measure_command import say
from batchsim_calibration.measuring.grid import PROFILES, Extent, Profile
from batchsim_calibration.measuring.interleaved import Interleaved
from batchsim_calibration.provenance import machine
from batchsim_calibration.replaying.inbox import Log
from batchsim_calibration.replaying.replay import Trace, trace_of
from batchsim_calibration.replaying.replay_series import Job, replay_series, series_between
from batchsim_calibration.vllm_command import model_options, settings_of
from batchsim_calibration.vllm_engine.engine import Limits, VllmEngine
from batchsim_calibration.vllm_engine.measure import VllmGrid, block_size_of, limits_told
from batchsim_calibration.vllm_engine.points import VllmPoints, limits_for
from batchsim_calibration.vllm_engine.replay import check_fits, recorded, serve, settled, warm_up

_AT_LEAST_1 = click.IntRange(min=1)


@click.command(name="replay-vllm")
@model_options
@click.option(
    "--trace",
    "traces",
    multiple=True,
    metavar="FILE[@BLOCKS]",
    help="As in batchsim; repeatable. Behind an @, KV blocks to serve it with.",
)
@click.option("--num-requests", type=_AT_LEAST_1, metavar="N", help="Serve the first N of each.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), metavar="PER_S", help="Mean request rate."
)
@click.option("--max-prompt", type=_AT_LEAST_1, metavar="N", help="Cut longer prompts.")
@click.option("--max-output", type=_AT_LEAST_1, metavar="N", help="Cut longer answers.")
@click.option("--max-num-seqs", type=_AT_LEAST_1, default=16, show_default=True, help="As in vLLM.")
@click.option(
    "--max-num-batched-tokens", type=_AT_LEAST_1, default=2048, show_default=True, help="As in vLLM."
)
@click.option("--num-kv-blocks", type=_AT_LEAST_1, metavar="N", help="[default: what vLLM has]")
@click.option("--repeats", type=_AT_LEAST_1, default=1, show_default=True, help="Replays of each trace.")
@click.option(
    "--calibrate-between",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="CSV",
    help="Calibrate before, between and after.",
)
@click.option("--calibration", "profile", type=click.Choice(PROFILES), default="quick", show_default=True)
@click.option("--max-tokens", type=_AT_LEAST_1, metavar="N", help="Longest context that is calibrated.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of prompts, and of the order of points."
)
@click.option("-o", "--output-dir", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--overwrite", is_flag=True, help="Replace runs, and a calibration, that are there.")
@click.option("--resume", is_flag=True, help="Keep the runs of an interrupted series; do the rest.")
def replay_vllm(
    output_dir: Path,
    traces: tuple[str, ...],
    repeats: int,
    calibrate_between: Path | None,
    profile: Profile,
    seed: int,
    overwrite: bool,
    resume: bool,
    **given: Any,
) -> None:
    """Serve traces in real time on the vLLM that is installed here, under limits of its scheduler.

    Each replay is a run directory OUTPUT_DIR/TRACE-REPEAT, as a simulation writes it, marked as measured. All
    are served by one engine, whose scheduler is made anew.
    """
    if overwrite and resume:
        raise ConfigError("--overwrite and --resume were both given; give one")
    settings = settings_of(given, seed=seed)
    cases = {
        name: (trace, blocks) for name, trace, blocks in map(partial(_case, given, seed), traces or ("",))
    }
    limits = {
        name: Limits(given["max_num_seqs"], given["max_num_batched_tokens"], blocks or given["num_kv_blocks"])
        for name, (_, blocks) in cases.items()
    }
    longest = max(int((t.workload.prompt_tokens + t.workload.output_tokens).max()) for t, _ in cases.values())
    block_size = block_size_of(settings)
    grid = VllmGrid(profile, max_batch_size=given["max_num_seqs"], max_tokens=given["max_tokens"] or longest)
    points = grid.points(settings.device, block_size) if calibrate_between else []
    made_for, extent = _room(
        list(limits.values()), longest, limits_for(points, block_size) if points else None
    )
    say(f"loading vLLM for {len(cases)} traces, {repeats} times each")
    engine = VllmEngine(settings, made_for, extent.tokens)
    if settings.device == "cpu":
        say("warming up: a pass of each number of tokens")
        warm_up(engine, given["max_num_batched_tokens"], longest, seed)
    identity = {**machine(engine.device), **engine.identity, **limits_told(engine, extent)}
    jobs = {}
    for name, (trace, _) in cases.items():
        sizes = {"block_size": engine.block_size, "num_kv_blocks": engine.num_kv_blocks}
        check_fits(trace.workload, limits[name], **sizes)
        jobs[name] = Job(settled(limits[name], version=engine.version, **sizes, seed=seed), trace)
    names = {id(job): name for name, job in jobs.items()}

    def play(job: Job) -> Log:
        limit = limits[names[id(job)]]
        engine.limit(limit)
        turns = serve(engine, job.trace.workload, seed)
        return recorded(turns, job.trace.workload, limit.num_kv_blocks or engine.num_kv_blocks)

    series = partial(
        replay_series,
        jobs,
        play,
        identity,
        output_dir,
        device=engine.device,
        num_repeats=repeats,
        overwrite=overwrite,
        resume=resume,
        say=say,
    )
    if calibrate_between is None:
        runs = series()
    else:
        measured = VllmPoints(engine, extent.tokens, seed, limits=made_for)
        calibration = Interleaved(
            measured,
            identity,
            points,
            calibrate_between,
            len(jobs) * repeats + 1,
            extent,
            seed=seed,
            overwrite=overwrite,
            resume=resume,
            told={"wake_s": measured.wake_s(points)},
        )
        runs = series_between(calibration, series, say)
    for directory in runs:
        click.echo(str(directory))


def _case(given: dict[str, Any], seed: int, named: str) -> tuple[str, Trace, int | None]:
    """Read a trace; return the name of its runs, and the KV blocks that it is to have."""
    file, at, blocks = named.rpartition("@")
    if not at:
        file, blocks = named, ""
    elif not blocks.isdecimal() or not int(blocks):
        raise ConfigError(f"--trace {named}: {blocks!r} is no number of KV blocks; a whole number is needed")
    keys = {
        "workload.trace": file or None,
        "workload.num_requests": given["num_requests"],
        "workload.request_rate": given["rate"],
        "seed": seed,
    }
    config = load_config({}, {key: value for key, value in keys.items() if value is not None})
    trace = trace_of(config, max_prompt_tokens=given["max_prompt"], max_output_tokens=given["max_output"])
    stem = Path(file).name.partition(".")[0] or "embedded"
    return f"{stem}_{blocks}blocks" if blocks else stem, trace, int(blocks) if blocks else None


def _room(
    limits: list[Limits], longest: int, of_points: tuple[Limits, Extent] | None
) -> tuple[Limits, Extent]:
    """Return the limits of an engine that has room for all of the replays, and for the points."""
    num_seqs = max(one.max_num_seqs for one in limits)
    extent = Extent(num_seqs, longest + 1)
    blocks = [one.num_kv_blocks for one in limits]
    most = None if None in blocks else max(one for one in blocks if one is not None)
    budget = max(one.max_num_batched_tokens for one in limits)
    if of_points is None:
        return Limits(num_seqs, budget, most, prefix_caching=True), extent
    points, slots = of_points
    if most is not None and points.num_kv_blocks is not None:
        most = max(most, points.num_kv_blocks)
    return (
        Limits(
            max(num_seqs, points.max_num_seqs),
            max(budget, points.max_num_batched_tokens),
            most,
            prefix_caching=True,
        ),
        Extent(*map(max, extent, slots)),
    )
