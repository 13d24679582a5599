"""``batchsim validate`` and ``pace``: measured runs beside their simulation, and traces to measure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchsim.cli.numbers import milliseconds
from batchsim.cli.options import INPUT_FILE, OUTPUT_PATH, overrides
from batchsim.cli.output import echo_json, echo_table, notice, warn
from batchsim.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from batchsim.validation.replays.cases import Case, Validation

_GATES = {"logic": "(a) logic", "model": "(b) model", "end to end": "(c) end to end"}


@click.command()
@click.argument("paths", nargs=-1, required=True, type=OUTPUT_PATH, metavar="MEASURED... PREDICTED")
@click.option("--policy", metavar="NAME", help="Simulate measured results so; default: vllm_v1.")
@click.option("--num-gpus", type=int, metavar="N", help="GPUs that measured results are of.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other setting of theirs.")
@click.option("-o", "--output-dir", type=OUTPUT_PATH, help="Write validation.csv, .json and figures here.")
@click.option("--report", type=OUTPUT_PATH, metavar="FILE", help="Write it as a page of Markdown, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def validate(
    paths: tuple[Path, ...],
    output_dir: Path | None,
    report: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Compare MEASURED runs with PREDICTED: a latency file, or the directory of a run.

    MEASURED are run directories of `batchsim-calibrate replay` or `replay-vllm`, or folders of such. With a
    latency file, three gates are judged: scheduling logic, latency model, both together. Exit status 1 if
    the logic fails.

    Or they are results of vLLM bench (--save-detailed), SGLang bench (--output-details), GuideLLM (JSON) or
    AIPerf (profile_export.jsonl), whose requests are simulated when they were sent; errors are shown, not
    judged.
    """
    from batchsim.validation.replays.validate import validate as validate_runs

    *measured, predicted = paths
    if not measured:
        raise ConfigError(
            f"after {predicted}, PREDICTED is missing: the latency file, or the directory of a run, to "
            "compare it with"
        )
    validation = validate_runs(measured, predicted, overrides(given))
    for sentence in validation.notices:
        notice(sentence)
    if as_json:
        echo_json(validation.to_json())
    else:
        _echo(validation)
    if output_dir is not None:
        _write(validation, output_dir)
    if report is not None:
        from batchsim.files import write_whole
        from batchsim.validation.replays.page import page_of

        write_whole(report, page_of(validation))
        click.echo(f"written: {report}", err=True)
    if not validation.is_logic_sound:
        raise SystemExit(1)


@click.command()
@click.argument("config_file", type=INPUT_FILE)
@click.option("--latency", type=INPUT_FILE, required=True, metavar="FILE", help="latency.json of the engine.")
@click.option("--busy", "shares", type=float, multiple=True, required=True, metavar="SHARE", help="E.g. 0.7.")
@click.option("-o", "--output-dir", type=OUTPUT_PATH, required=True, help="Write busy70.csv ... here.")
def pace(config_file: Path, latency: Path, shares: tuple[float, ...], output_dir: Path) -> None:
    """Write the requests of a configuration so that one engine is busy for such shares of the time.

    These are traces to serve for real, as with `batchsim-calibrate replay-vllm`.
    """
    from batchsim.config import load_config
    from batchsim.latency.store import load_latency
    from batchsim.study.setup.pacing import paced, requests_of
    from batchsim.workload.formats import write_trace

    config, model = load_config(config_file), load_latency(latency)
    workload = requests_of(config)
    output_dir.mkdir(parents=True, exist_ok=True)
    for share in shares:
        trace, rate_per_s = paced(config, workload, model, share)
        path = output_dir / f"busy{100 * share:g}.csv"
        write_trace(trace, path)
        click.echo(f"{path}: {len(trace):,} requests, {rate_per_s:.4g} per second")


def _echo(validation: Validation) -> None:
    for case in validation.cases:
        echo_table(_title(case, validation.prediction), _COLUMNS, _rows(case.comparison.errors))
    runs = validation.runs
    echo_table("Runs", _RUN_COLUMNS[: runs.shape[1]], [_run_row(row) for row in runs.to_dict("records")])
    if validation.gates:
        gates = [(_GATES[gate], *rest) for gate, *rest in validation.gates]
        echo_table("Gates", ("gate", "of", "verdict", "finding"), gates)
    for case in validation.cases:
        for side, ids in (
            ("measured", case.comparison.only_measured),
            ("predicted", case.comparison.only_predicted),
        ):
            if ids:
                named = ", ".join(map(str, ids[:5])) + (" ..." if len(ids) > 5 else "")
                warn(f"{case.name}: {len(ids)} requests finished in the {side} run only: {named}")
        if case.num_extrapolated:
            warn(
                f"{case.name}: {case.num_extrapolated} simulated operations lie outside the calibrated range "
                "of the latency model"
            )


_COLUMNS = ("metric", "statistic", "measured", "predicted", "unit", "error", "repeats vary by", "verdict")
_RUN_COLUMNS = (
    "run",
    "case",
    "requests",
    "operations",
    "preemptions",
    "load",
    "bias of total time",
    "outside the range",
)


def _title(case: Case, prediction: str) -> str:
    num = len(case.measured)
    return (
        f"{case.name}: {case.comparison.num_requests:,} requests, {num} measured run{'s' if num > 1 else ''} "
        f"({case.measured_on}), predicted by {prediction}"
    )


def _rows(errors: pd.DataFrame) -> list[tuple[str, ...]]:
    return [_rate_or_time_row(row) for row in errors.to_dict("records")]


def _rate_or_time_row(row: dict[Any, Any]) -> tuple[str, ...]:
    from batchsim.validation.comparison import MAPE, THROUGHPUT

    metric = "Throughput" if row["metric"] == THROUGHPUT else row["metric"].upper()
    statistic = row["statistic"]
    if statistic == MAPE:
        return metric, "of single requests, mean", "", "", "", f"{row['error']:.1%}", "", ""
    unit, shown = "ms", [milliseconds(row[which] * 1000) for which in ("measured", "predicted")]
    if row["metric"] == THROUGHPUT:
        unit, statistic = f"{statistic}/s", ""
        shown = [f"{row[which]:,.2f}" for which in ("measured", "predicted")]
    return (
        metric,
        statistic if statistic in ("", "mean") else statistic.upper(),
        *shown,
        unit,
        f"{row['error']:+.1%}",
        _share(row["spread"]),
        row["verdict"],
    )


def _run_row(row: dict[Any, Any]) -> tuple[str, ...]:
    shares = {
        name: f"{row[name]:{form}}" for name, form in (("load", ".0%"), ("bias", "+.1%")) if name in row
    }
    return tuple(map(str, {**row, **shares}.values()))


def _share(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.1%}"


def _write(validation: Validation, folder: Path) -> None:
    from batchsim.figures.measured.validation import plot_validation
    from batchsim.files import json_text, write_whole
    from batchsim.files.tables import csv_text

    write_whole(folder / "validation.csv", csv_text(validation.errors))
    write_whole(folder / "validation.json", json_text(validation.to_json()))
    pictures = plot_validation(validation, folder)
    named = ", ".join(
        str(path) for path in (folder / "validation.csv", folder / "validation.json", *pictures)
    )
    click.echo(f"written: {named}", err=True)
