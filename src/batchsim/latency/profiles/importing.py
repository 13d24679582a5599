"""Turning what others measured into latency models of ours.

- ``operators``: a folder as `profiles.operator_profile` reads it;
- ``distserve``: DistServe's JSON of fitted coefficients, by model and tensor-parallel degree (arXiv
  2401.09670);
- ``splitwise``: splitwise-sim's table of prompt phases and decode steps (arXiv 2311.18677).

What has no file, but is a package, is in `profiles.aiconfigurator`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from batchsim.errors import ConfigError, TraceError, nearest
from batchsim.files import MAX_COUNT, read_json
from batchsim.files.tables import read_csv
from batchsim.latency.base import Domain, IterationDomain, LatencyInfo
from batchsim.latency.choices import Family, ProfileKind
from batchsim.latency.fitting.fit import fit
from batchsim.latency.linear import LinearIterationLatency
from batchsim.latency.operators import OperatorTableLatency
from batchsim.latency.profiles.operator_profile import read_operator_profile
from batchsim.latency.tables.table import MAX_BATCH_SIZE, Calibration
from batchsim.specs import load_gpu
from batchsim.specs.names import known_gpu


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which of a file's set-ups to import; a name may be left out where there is only one.

    Attributes
    ----------
    model, hardware
        As the file names them.
    """

    model: str | None = None
    hardware: str | None = None
    tensor_parallel: int = 1


def kind_of(source: Path) -> ProfileKind:
    """Tell the kind by what the source looks like."""
    if source.is_dir():
        return "operators"
    if source.suffix == ".json":
        return "distserve"
    if source.name.endswith((".csv", ".csv.gz")):
        return "splitwise"
    raise ConfigError(
        f"{source}: neither a folder, nor a .json, .csv or .csv.gz file; name the kind: "
        f"{', '.join(get_args(ProfileKind))}"
    )


def import_operators(
    source: Path,
    model_config: Path | None,
    wanted: Wanted,
    *,
    expert_parallel: int = 1,
    link_bytes_per_s: float | None = None,
    link_latency_s: float = 0.0,
) -> OperatorTableLatency:
    """Sum an operator profile over the layers that a model's ``config.json`` names."""
    if model_config is None:
        raise ConfigError(f"{source}: an operator profile is of one layer; a model's config.json is needed")
    return read_operator_profile(
        source,
        _json(model_config),
        tensor_parallel=wanted.tensor_parallel,
        expert_parallel=expert_parallel,
        link_bytes_per_s=link_bytes_per_s,
        link_latency_s=link_latency_s,
    )


def import_distserve(source: Path, wanted: Wanted) -> LinearIterationLatency:
    """Take DistServe's coefficients over as a linear model; they were fitted by others, so it is derived.

    Prefill takes ``a + b tokens + c (sum of squared prompts)``: a prompt has half its square in pairs, so a
    pair costs ``2 c``, or nothing where ``c`` came out negative. Decodes take ``a + b context + c
    sequences``, with other numbers from a number of sequences on: the model takes those below, and ends
    there. It has one constant, that of the decodes; the prefill's stands in the details beside it, as do the
    numbers left out.
    """
    tree = _json(source)
    name = _only(source, "model", tree, wanted.model)
    degrees = _object(source, tree[name])
    degree = str(wanted.tensor_parallel)
    if degree not in degrees:
        raise ConfigError(f"{source}: {name} has no tensor_parallel {degree}; known: {', '.join(degrees)}")
    fitted = _object(source, degrees[degree])
    prefill = _three(source, fitted, "prefill")
    small, large = _three(source, fitted, "decoding_smallbs"), _three(source, fitted, "decoding_largebs")
    threshold = fitted.get("decoding_large_small_bs_threshold")
    if type(threshold) is not int or not 2 <= threshold <= MAX_COUNT:
        raise TraceError(
            f"{source}: decoding_large_small_bs_threshold is {threshold!r:.60}; a whole number >= 2 is needed"
        )
    notices = [
        f"the constant is that of decodes, {small[0]:.4g} s; a prefill's is {prefill[0]:.4g} s",
        f"the numbers for {threshold} sequences and more are left out: so many decodes lie outside",
    ]
    if prefill[2] < 0:
        notices.append(f"the square of the prompt has the factor {prefill[2]:.3g}, below 0; it is held at 0")
    details = {
        "model": name,
        "tensor_parallel": wanted.tensor_parallel,
        "imported_as": "distserve",
        "source": source.name,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "prefill_fixed_s": prefill[0],
        "left_out": {"from_decode_seqs": threshold, "decode_fixed_context_seqs_s": list(large)},
        "notices": notices,
    }
    try:
        return LinearIterationLatency(
            fixed_s=small[0],
            per_prefill_token_s=prefill[1],
            per_prefill_pair_s=max(0.0, 2 * prefill[2]),
            per_decode_seq_s=small[2],
            per_context_token_s=small[1],
            domain=Domain(batch_size=(1, threshold - 1)),
            iteration_domain=IterationDomain(decode_seqs=(0, threshold - 1)),
            info=LatencyInfo(f"{name} x{degree}, {source.name}", "derived", details),
        )
    except ConfigError as error:
        raise TraceError(f"{source}: {name} x{degree}: {error}") from error


def import_splitwise(source: Path, wanted: Wanted, family: Family = "phase") -> Any:
    """Fit a family to splitwise-sim's rows, as `fit` does to a calibration; return the model.

    ``prompt_time`` is that of a prefill; ``token_time`` that of a decode at the context in the middle of the
    answer. Repeated rows are trials of one point. Power, where the table has it, stays in the details, see
    `_power`.
    """
    table = read_csv(source)
    words, times_ms = ("model", "hardware"), ("prompt_time", "token_time")
    counts = ("tensor_parallel", "prompt_size", "batch_size", "token_size")
    table.need([*words, *counts, *times_ms])
    if table.frame.empty:
        raise TraceError(f"{source}: no rows in it; at least one is needed")
    frame = pd.DataFrame(
        {
            **{name: table.words(name) for name in words},
            **{name: table.counts(name, most=MAX_BATCH_SIZE).astype("int64") for name in counts},
            **{name: table.times(name, 1e-3) for name in times_ms},
            **{name: table.numbers(name, 0, _MOST_OF_TDP) for name in _POWER if name in table.frame},
        }
    )
    model = _only(source, "model", frame["model"].unique(), wanted.model)
    frame = frame[frame["model"] == model]
    hardware = _only(source, "hardware", frame["hardware"].unique(), wanted.hardware)
    frame = frame[frame["hardware"] == hardware]
    degrees = sorted(frame["tensor_parallel"].unique().tolist())
    frame = frame[frame["tensor_parallel"] == wanted.tensor_parallel]
    if frame.empty:
        raise ConfigError(
            f"{source}: {model} on {hardware} has no tensor_parallel {wanted.tensor_parallel}; known: "
            f"{', '.join(map(str, degrees))}"
        )
    power, notices = _power(frame, hardware)
    calibration = Calibration(
        name=source.name,
        points=_splitwise_points(frame),
        provenance="measured",
        details={
            "model": model,
            "gpu": hardware,
            "tensor_parallel": wanted.tensor_parallel,
            "imported_as": "splitwise",
            **power,
        },
        is_raw=False,
        sha256=table.sha256,
        dropped={},
        notices=notices,
    )
    try:
        return fit(calibration, family).model
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


#: Columns of power as a share of TDP, which a GPU leaves for moments only.
_POWER = ("average_power", "peak_power")
_MOST_OF_TDP = 2.0


def _power(frame: pd.DataFrame, hardware: str) -> tuple[dict[str, object], tuple[str, ...]]:
    """Power in the rows that have it (elsewhere it is 0), for the details, and what to know of it.

    ``average_power`` is the mean over a whole request, prompt and answer, and does not tell them apart: where
    the share of the prompt changes, so do batch and memory use. Both phases are given the median over the
    rows, in watts where a spec of the GPU has its TDP.
    """
    if not set(_POWER) <= set(frame):
        return {}, ()
    told = frame[frame["average_power"] > 0]
    if told.empty:
        return {}, ("the table has no power of these rows: no energy can be told",)
    average, peak = told["average_power"], told["peak_power"]
    share = float(average.median())
    details: dict[str, object] = {
        "power_share_of_tdp": {"average": share, "peak": float(peak.median()), "num_rows": len(told)}
    }
    gpu = known_gpu(hardware)
    tdp_watts = None if gpu is None else load_gpu(gpu).power_watts
    if tdp_watts is not None:
        watts = share * tdp_watts
        details["power_watts"] = {"prefill": watts, "decode": watts, "idle": None}
    return details, (
        f"power is {share:.0%} of TDP, the median over {len(told)} rows ({average.min():.0%} to "
        f"{average.max():.0%}) of means over whole requests: prompts are taken to draw as much as answers, "
        f"although the peak is {peak.median():.0%}",
    )


def _splitwise_points(frame: pd.DataFrame) -> pd.DataFrame:
    prefill = pd.DataFrame(
        {
            "kind": "prefill",
            "batch_size": frame["batch_size"],
            "prompt_tokens": frame["prompt_size"].astype("float64"),
            "context_tokens": float("nan"),
            "time_s": frame["prompt_time"] / 1000,
        }
    )
    decode = prefill.assign(
        kind="decode",
        prompt_tokens=float("nan"),
        context_tokens=(frame["prompt_size"] + frame["token_size"] // 2).astype("float64"),
        time_s=frame["token_time"] / 1000,
    )
    trials = pd.concat([prefill, decode], ignore_index=True)
    groups = trials.groupby(["kind", "batch_size", "prompt_tokens", "context_tokens"], dropna=False)["time_s"]
    points = groups.agg(mean_s="mean", std_s="std", num_trials="count").reset_index()
    return points.assign(output_tokens=float("nan"), max_seq_len=float("nan"))


def _json(path: Path) -> dict[str, Any]:
    return _object(path, read_json(path))


def _object(source: Path, tree: Any) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise TraceError(f"{source}: holds {tree!r:.60}; an object is needed")
    return tree


def _three(source: Path, fitted: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    """Return three coefficients in seconds; the file has milliseconds."""
    values = fitted.get(name)
    is_number = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not is_number or values is None or len(values) != 3:
        raise TraceError(f"{source}: {name} is {values!r:.60}; three numbers are needed")
    first, second, third = (value / 1000 for value in values)
    return first, second, third


def _only(source: Path, what: str, known: Iterable[str], name: str | None) -> str:
    known = [str(one) for one in known]
    for one in known:
        if not one.isprintable():
            raise TraceError(f"{source}: {what} is {one!r:.60}; one line of text is needed")
    if name is None and len(known) == 1:
        return known[0]
    if name is None:
        raise ConfigError(f"{source}: holds several of {what}; choose one: {', '.join(known)}")
    if name not in known:
        raise ConfigError(f"{source}: no {what} {name!r}; {nearest(name, known)}")
    return name
