"""From a `WorkloadConfig` to the requests of a run: read or generate, cut, set training aside, pace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from batchsim.config import WorkloadConfig
from batchsim.errors import ConfigError, TraceError
from batchsim.workload.formats import Reading, read_trace
from batchsim.workload.request import Workload
from batchsim.workload.tables import Limits
from batchsim.workload.tenants import assign_tenants
from batchsim.workload.transform import (
    even_out,
    filter_rows,
    peak_to_mean,
    resample,
    rescale_time,
    rescale_to_rate,
    split_at,
    split_training,
    window,
)

EMBEDDED_TRACE = Path("workloads") / "burstgpt_like.csv.gz"

#: A busiest hour with so many times the mean rate is told of.
_PEAK_TO_TELL = 2.0

_MOST_OVERSAMPLING = 64  # a selection that leaves less than 1 in 64 generated requests is taken for a mistake


def load_trace(path: str | Path, reading: Reading | None = None) -> Workload:
    """Read a trace as `read_trace` does, once per process while the file stays the same."""
    path = Path(path)
    try:
        stat = path.stat()
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: no such file") from error
    return _read_once(path.absolute(), stat.st_mtime_ns, stat.st_size, reading or Reading())


def embedded_trace() -> Path:
    """Find the BurstGPT-like trace of the repository, from the current folder or the package upwards.

    Raises
    ------
    ConfigError
        If neither has it above; name a trace then.
    """
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / EMBEDDED_TRACE).is_file():
                return folder / EMBEDDED_TRACE
    raise ConfigError(
        f"{EMBEDDED_TRACE.as_posix()} was not found above {Path.cwd()} or the package; "
        "name a file as workload.trace, or a generator as workload.generator"
    )


def prepare(
    config: WorkloadConfig,
    num_gpus: int,
    rng: np.random.Generator,
    workload: Workload | None = None,
    training_fraction: float = 0.0,
) -> tuple[Workload, Workload]:
    """Make the requests of a run, in the order of steps that `WorkloadConfig` gives.

    Parameters
    ----------
    config
        What to read or generate, and what to do with it.
    num_gpus
        Turns ``request_rate_per_gpu`` into a rate, and ``num_requests_per_gpu`` into a number.
    rng
        For generators, blocks and tenants; a trace draws nothing.
    workload
        Used instead of the trace or generator that ``config`` names.
    training_fraction
        Share set aside, first in time. A generator makes the training part in addition, so that
        ``num_requests`` are evaluated; a trace gives this share of all its rows, then ``num_requests`` of the
        others.

    Returns
    -------
    training, evaluated
        The training part may be empty; where it is not, the first evaluated request arrives at 0. A
        ``request_rate`` is the mean rate of the evaluated requests, in every hour of the trace (`even_out`).

    Raises
    ------
    ConfigError, TraceError
        If the file or a setting cannot be used, or fewer requests are there than ``num_requests``.
    """
    if config.num_requests_per_gpu is not None:
        update = {"num_requests": config.num_requests_per_gpu * num_gpus, "num_requests_per_gpu": None}
        config = config.model_copy(update=update)
    if workload is None and config.generator is not None:
        training, evaluated = _generate(config, config.generator, rng, training_fraction)
    else:
        if workload is None:
            workload = load_trace(config.trace or embedded_trace(), reading_of(config))
        training, evaluated = split_training(_select(workload, config), training_fraction)
        if config.resample_s is not None:
            evaluated = resample(evaluated, config.resample_s, rng, config.num_requests)
        if config.num_requests is not None:
            _check_enough(len(evaluated), config.num_requests, workload.source.name, len(training))
            evaluated = evaluated.take(slice(0, config.num_requests))
    evaluated = _set_rate(evaluated, config, num_gpus)
    if config.tenants:
        evaluated = assign_tenants(evaluated, config.tenants, rng.spawn(1)[0])
    return training, evaluated


def reading_of(config: WorkloadConfig) -> Reading:
    """Return how a configuration wants its trace read."""
    usual = Limits()
    limits = Limits(config.max_trace_bytes or usual.max_bytes, config.max_trace_rows or usual.max_rows)
    return Reading(config.time_unit, config.hash_block_tokens, limits)


def _generate(
    config: WorkloadConfig, spec: Mapping[str, object], rng: np.random.Generator, training_fraction: float
) -> tuple[Workload, Workload]:
    from batchsim.workload.generators.synthetic import generate  # few runs make their requests up

    num_requests = config.num_requests
    if num_requests is None:
        raise ConfigError(
            "workload.num_requests is missing; a generator needs to know how many requests to make"
        )
    num_training = round(num_requests * training_fraction / (1 - training_fraction))
    if training_fraction > 0:
        num_training = max(1, num_training)
    num_rows = num_training + num_requests
    workload = _select(generate(spec, num_rows, rng), config)
    oversampling = 4
    while len(workload) < num_rows and oversampling <= _MOST_OVERSAMPLING:
        workload = _select(generate(spec, num_rows * oversampling, rng), config)
        oversampling *= 4
    _check_enough(len(workload) - num_training, num_requests, workload.source.name, num_training)
    return split_at(workload.take(slice(0, num_rows)), num_training)


def _select(workload: Workload, config: WorkloadConfig) -> Workload:
    workload = filter_rows(workload, config.trace_model, config.log_type)
    return window(workload, *config.window) if config.window is not None else workload


def _set_rate(workload: Workload, config: WorkloadConfig, num_gpus: int) -> Workload:
    if config.rate_scale is not None:
        return rescale_time(_warn_of_peak(workload), config.rate_scale)
    if config.request_rate is not None:
        return rescale_to_rate(even_out(workload), config.request_rate)
    if config.request_rate_per_gpu is not None:
        return rescale_to_rate(even_out(workload), config.request_rate_per_gpu * num_gpus)
    return workload


def _warn_of_peak(workload: Workload) -> Workload:
    """Say that a squeezed trace has its busiest hour in it, where that stands out."""
    peak = peak_to_mean(workload)
    if peak < _PEAK_TO_TELL:
        return workload
    notice = (
        f"workload.rate_scale squeezes days with their nights: the busiest hour of {workload.source.name} "
        f"has {peak:.1f} times its mean rate, so that a cluster that takes the mean may be overloaded for "
        "long; workload.request_rate gives every hour the same rate"
    )
    return replace(workload, source=replace(workload.source, notices=(*workload.source.notices, notice)))


def _check_enough(num_present: int, num_asked: int, name: str, num_training: int) -> None:
    if num_present < num_asked:
        aside = f" besides the {num_training} set aside for training" if num_training else ""
        raise ConfigError(
            f"workload.num_requests is {num_asked}, but {name} has only {max(0, num_present)} requests{aside}"
        )


@lru_cache(maxsize=2)
def _read_once(path: Path, mtime_ns: int, num_bytes: int, reading: Reading) -> Workload:
    """Time and size serve as the key: a file that changes is read again."""
    return read_trace(path, reading=reading)
