"""Options that several commands share, and how they become dotted overrides of a configuration."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from batchsim.errors import ConfigError

if TYPE_CHECKING:
    from batchsim.study.replications import Stopping

F = TypeVar("F", bound=Callable[..., Any])

INPUT_FILE = click.Path(dir_okay=False, path_type=Path)


class _OutputPath(click.Path):
    """A path to write to; an empty one, as from a variable that is not set, would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if str(value) == "":
            self.fail("a path is needed, not an empty text", param, ctx)
        return super().convert(value, param, ctx)


OUTPUT_PATH = _OutputPath(path_type=Path)

#: Of commands that hold predictions against published points.
ERRORS_HELP = "JSON in which to put the range that runs say they could be off by; others in it stay."

#: Options that set one configuration key as they are.
_PLAIN = {
    "trace": "workload.trace",
    "time_unit": "workload.time_unit",
    "hash_block_tokens": "workload.hash_block_tokens",
    "max_trace_bytes": "workload.max_trace_bytes",
    "max_trace_rows": "workload.max_trace_rows",
    "num_requests": "workload.num_requests",
    "rate_scale": "workload.rate_scale",
    "request_rate": "workload.request_rate",
    "trace_model": "workload.trace_model",
    "log_type": "workload.log_type",
    "num_gpus": "cluster.num_gpus",
    "latency": "latency.file",
    "seed": "seed",
    "batch_size": "policy.batch_size",
    "num_bins": "policy.num_bins",
}


#: How a trace is read, where its columns do not say it all.
_READING = (
    click.option("--time-unit", type=click.Choice(["s", "ms", "us", "ns"]), help="Of the trace's arrivals."),
    click.option(
        "--hash-block-tokens", type=int, metavar="N", help="Prompt tokens per prefix id of the trace."
    ),
    click.option("--max-trace-bytes", type=int, metavar="N", help="Read traces of so many bytes, unpacked."),
    click.option("--max-trace-rows", type=int, metavar="N", help="Read traces of so many rows."),
)


def reading_options(command: F) -> F:
    """Add what says how a trace is read."""
    for option in reversed(_READING):
        command = option(command)
    return command


#: What a limit may be on: a time of each request, or a statistic of all (`config.SloConfig`).
_LIMITED = re.compile(r"(e2e|ttft|tpot)(_mean|_p[1-9]\d?(\.\d+)?)?")


def run_options(command: F) -> F:
    """Add what describes a run: workload, cluster, latency, predictor, SLO, seed."""
    options = [
        click.argument("config_file", type=INPUT_FILE, required=False),
        click.option("--trace", metavar="FILE", help="As published, or our own; default: a synthetic one."),
        *_READING,
        click.option("--num-requests", type=int, metavar="N", help="Evaluate the first N requests."),
        click.option("--window", metavar="START:END", help="Keep arrivals in [START, END) seconds."),
        click.option("--rate-scale", type=float, metavar="X", help="Compress time by this factor."),
        click.option("--request-rate", type=float, metavar="PER_S", help="Bring every hour to this rate."),
        click.option("--trace-model", metavar="NAME", help="Keep the trace's requests to this model."),
        click.option("--log-type", metavar="NAME", help="Keep the trace's requests of this log type."),
        click.option("--num-gpus", type=int, metavar="N", help="GPUs in the cluster; default: 1."),
        click.option("--latency", metavar="FILE", help="latency.json from `batchsim fit`; none: a roofline."),
        click.option("--extrapolate", is_flag=True, help="Leave the calibrated range, counted."),
        click.option("--predictor", metavar="KIND[:KEY=VALUE,...]", help="E.g. lognormal:sigma=0.3."),
        click.option("--slo", multiple=True, metavar="METRIC:MS", help="E.g. e2e:20000 or ttft_p95:500."),
        click.option("--batch-size", type=int, metavar="B", help="Fixed, or the limit of a dynamic size."),
        click.option("--num-bins", type=int, metavar="K", help="Bins of a multi-bin queue."),
        click.option("--seed", type=int, metavar="N", help="Seed of everything random."),
        click.option("--exact-iterations", is_flag=True, help="One event per iteration, for reference."),
        click.option(
            "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other, e.g. cluster.gpu=h100."
        ),
        click.option("-o", "--output-dir", type=OUTPUT_PATH, help="Write results here; appears whole."),
        click.option("--overwrite", is_flag=True, help="Replace results that are there."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else."),
        click.option("-v", "--verbose", is_flag=True, help="Say which combination is active."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def replication_options(command: F) -> F:
    """Add how often a run is repeated; `stopping` reads it."""
    options = [
        click.option("--replications", type=int, metavar="N", help="Runs that differ in the seed alone."),
        click.option(
            "--precision",
            metavar="SHARE",
            help="Repeat until the 95 % interval is within this share of the mean, e.g. 2%.",
        ),
        click.option("--precision-of", metavar="KEY", help="Of this number; default: e2e_mean_s."),
        click.option("--max-replications", type=int, metavar="N", help="At most; default: 50."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def stopping(given: dict[str, Any]) -> Stopping | None:
    """Take how often a run is repeated out of the options; None: it is not."""
    num, precision = given.pop("replications"), given.pop("precision")
    metric, most = given.pop("precision_of"), given.pop("max_replications")
    if precision is None:
        for name, value in (("precision-of", metric), ("max-replications", most)):
            if value is not None:
                raise ConfigError(f"--{name} {value}: says something of --precision; give that, too")
    if num is None and precision is None:
        return None
    from batchsim.study.replications import DEFAULT_NUM, Stopping

    if num is None and most is not None:
        num = min(DEFAULT_NUM, most)
    told = {
        "num": num,
        "precision": None if precision is None else parse_share(precision, "precision"),
        "metric": metric,
        "most": most,
    }
    return Stopping(**{name: value for name, value in told.items() if value is not None})


def parse_share(text: str, option: str) -> float:
    """``2%`` or ``0.02``."""
    number, percent, rest = text.partition("%")
    try:
        return float(number) / (100 if percent else 1) if not rest.strip() else math.nan
    except ValueError as error:
        raise ConfigError(f"--{option} {text!r}: write a share, e.g. 2% or 0.02") from error


def overrides(given: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys from the options that were given; `--set` comes last."""
    dotted = {key: given[name] for name, key in _PLAIN.items() if given.get(name) is not None}
    if given.get("policy") is not None:
        dotted["policy.preset"] = given["policy"]
    if given.get("extrapolate"):
        dotted["latency.outside"] = "extrapolate"
    if given.get("exact_iterations"):
        dotted["engine.exact_iterations"] = True
    if given.get("window") is not None:
        dotted["workload.window"] = _window(given["window"])
    if given.get("predictor") is not None:
        dotted["predictor"] = parse_spec(given["predictor"], "predictor")
    for limit in given.get("slo") or ():
        metric, milliseconds = _slo(limit)
        dotted[f"slo.{metric}_ms"] = milliseconds
    for setting in given.get("settings") or ():
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {setting!r}: write KEY=VALUE, e.g. cluster.memory_margin=0.2")
        dotted[key.strip()] = parse_value(value)
    return dotted


def parse_spec(text: str, name: str) -> dict[str, Any]:
    """``kind:key=value,key=value`` as a table."""
    kind, _, rest = text.partition(":")
    spec: dict[str, Any] = {"kind": kind}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--{name} {text!r}: write KIND:KEY=VALUE,..., not {item!r}")
        spec[key.strip()] = parse_value(value)
    return spec


def parse_value(text: str) -> Any:
    """A TOML value where it is one, else the text itself."""
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError):  # no TOML, or more digits or brackets than Python reads
        return text.strip()


def _window(text: str) -> list[float]:
    try:
        start_s, end_s = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise ConfigError(f"--window {text!r}: write START:END in seconds, e.g. 0:3600") from error
    return [start_s, end_s]


def _slo(text: str) -> tuple[str, float]:
    metric, _, limit = text.partition(":")
    try:
        milliseconds = float(limit)
    except ValueError:
        milliseconds = float("nan")
    if not _LIMITED.fullmatch(metric) or not 0 < milliseconds < float("inf"):
        raise ConfigError(
            f"--slo {text!r}: write METRIC:MILLISECONDS with e2e, ttft or tpot, or a mean or percentile of "
            "one, and a limit > 0, e.g. e2e:20000 or ttft_p95:500"
        )
    return metric, milliseconds
