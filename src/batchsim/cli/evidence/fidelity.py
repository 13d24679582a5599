"""``batchsim fidelity`` and ``fidelity-report``: predict measured runs from operator profiles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click

from batchsim.cli.options import INPUT_FILE, OUTPUT_PATH
from batchsim.cli.output import echo_json, echo_table, notice, warn
from batchsim.latency.choices import ReplayFamily

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("run_dir", type=_FOLDER)
@click.option("--profile", type=_FOLDER, required=True, help="Operator profile of its GPU and model.")
@click.option("--workload", type=INPUT_FILE, required=True, help="The requests that were sent.")
@click.option("--model-config", type=INPUT_FILE, required=True, help="The model's config.json.")
@click.option(
    "--num-kv-blocks",
    type=click.IntRange(2),
    metavar="N",
    help="KV blocks of a replica, vLLM's null block included.",
)
@click.option("--max-num-seqs", type=click.IntRange(1), metavar="N", help="Running requests at most.")
@click.option("--max-num-batched-tokens", type=click.IntRange(1), metavar="N", help="Tokens per iteration.")
@click.option(
    "--latency-family",
    type=click.Choice(get_args(ReplayFamily)),
    default="operator",
    show_default=True,
    help="Sums of operators, or a linear model fitted to them at the iterations of a first replay.",
)
@click.option("-o", "--output-dir", type=OUTPUT_PATH, required=True, help="Write the results here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def fidelity(
    run_dir: Path,
    profile: Path,
    workload: Path,
    model_config: Path,
    latency_family: ReplayFamily,
    output_dir: Path,
    as_json: bool,
    **limits: int | None,
) -> None:
    """Predict a measured run of vLLM; write times of requests, errors and a picture of distributions.

    What the options leave out is read from the run's meta.json.
    """
    from batchsim.figures.measured.validation import plot_fidelity
    from batchsim.files import json_text, write_whole
    from batchsim.files.tables import csv_text
    from batchsim.validation.fidelity.engine_run import read_measured_run
    from batchsim.validation.fidelity.errors import compare_with_measured
    from batchsim.validation.fidelity.kv_memory import read_model_config
    from batchsim.validation.fidelity.predict import (
        PREDICTED_COLUMNS,
        predict,
        profile_of_model,
        read_workload,
    )

    run = read_measured_run(run_dir)
    given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
    notices = tuple(one for one in run.settings.notices if not any(one.startswith(name) for name in given))
    settings = replace(run.settings, **given, notices=notices)
    requests, names = read_workload(workload, run.num_requests)
    model = read_model_config(model_config)
    tables = profile_of_model(profile, run.model)
    prediction = predict(settings, tables, model, requests, names, latency_family)
    errors = compare_with_measured(run, prediction)

    table = csv_text(prediction.requests[list(PREDICTED_COLUMNS)])
    write_whole(output_dir / "predicted_requests.csv", table)
    write_whole(output_dir / "errors.json", json_text(errors))
    picture = plot_fidelity(run, prediction, output_dir / "fidelity")
    if as_json:
        echo_json(errors)
    else:
        _echo(errors)
    for sentence in errors["notices"]:
        notice(sentence)
    if errors["num_extrapolated_iterations"]:
        warn(
            f"{errors['num_extrapolated_iterations']} of {errors['num_iterations']} iterations lie outside "
            "the profile"
        )
    click.echo(f"written: {output_dir}, {picture}", err=True)


@click.command(name="fidelity-report")
@click.argument("data_dir", type=_FOLDER)
@click.option("--timelines", type=_FOLDER, help="Runs of which only the tokens of each second are known.")
@click.option("-o", "--output-dir", type=OUTPUT_PATH, default=Path("docs"), show_default=True)
def fidelity_report(data_dir: Path, timelines: Path | None, output_dir: Path) -> None:
    """Predict all runs of a folder and write fidelity.md with tables and pictures.

    DATA_DIR holds runs/GPU/NAME, profiles/GPU/MODEL, models/MODEL.json and workloads/NAME.jsonl.
    """
    from batchsim.figures.measured.validation import plot_fidelity
    from batchsim.validation.fidelity.report import write_fidelity_report

    for path in write_fidelity_report(data_dir, output_dir, plot_fidelity, timelines):
        click.echo(f"written: {path}", err=True)


def _echo(errors: dict[str, Any]) -> None:
    from batchsim.validation.fidelity.errors import BASES

    for basis in BASES:
        found = errors["bases"].get(basis)
        if found is None:
            continue
        has_peer = "peer_mean_absolute_error" in found
        rows = [
            (
                name,
                _number(row["measured"]),
                _number(row["predicted"]),
                _percent(row["error"]),
                *((_percent(row["peer_error"]),) if has_peer else ()),
            )
            for name, row in found["aggregates"].items()
        ]
        rows.append(
            (
                "mean absolute error",
                "",
                "",
                f"{found['mean_absolute_error']:.2%}",
                *((f"{found['peer_mean_absolute_error']:.2%}",) if has_peer else ()),
            )
        )
        rows.append(
            ("E2E MAPE of requests", "", "", f"{found['e2e_mape']:.2%}", *(("",) if has_peer else ()))
        )
        columns = ("", "measured", "predicted", "error", *((str(errors["peer"]),) if has_peer else ()))
        echo_table(f"{errors['run']}, from {basis} on, {errors['num_compared']} requests", columns, rows)


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{error:+.2%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"
