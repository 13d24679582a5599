"""``batchsim export``, ``import-results``: runs as results of other tools, and theirs as runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from batchsim.cli.numbers import milliseconds
from batchsim.cli.options import INPUT_FILE, OUTPUT_PATH, overrides
from batchsim.cli.output import (
    echo_json,
    echo_summaries,
    echo_table,
    hardware_told,
    notice,
    progress_watch,
    warn_about,
)


@click.command()
@click.argument("run_dir", type=OUTPUT_PATH)
@click.argument("target", type=OUTPUT_PATH)
@click.option("--to", "form", type=click.Choice(["vllm-bench", "aiperf"]), required=True, help="Its form.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def export(run_dir: Path, target: Path, form: str, overwrite: bool) -> None:
    """Write a run (`batchsim run -o RUN_DIR`) as a result of vLLM bench (JSON) or AIPerf (JSON lines).

    vLLM's is what `vllm bench serve --save-detailed` saves, AIPerf's its profile_export.jsonl; gaps between
    tokens are those of the simulation.
    """
    from batchsim.files import check_file
    from batchsim.results.exchange.export import export_run

    check_file(target, inputs=[run_dir], overwrite=overwrite)
    for sentence in export_run(run_dir, target, form):
        notice(sentence)
    click.echo(f"written: {target}", err=True)


@click.command(name="import-results")
@click.argument("file", type=INPUT_FILE)
@click.option("-o", "--output-dir", type=OUTPUT_PATH, required=True, help="Appears whole.")
@click.option("--slo", multiple=True, metavar="METRIC:MS", help="A limit to hold it against; repeatable.")
@click.option("--overwrite", is_flag=True, help="Replace results that are there.")
def import_results(file: Path, output_dir: Path, overwrite: bool, **given: Any) -> None:
    """Read what a benchmark measured into a run directory: requests.parquet, a summary, the trace.

    Read are results of vLLM bench (--save-detailed), SGLang bench (--output-details), GuideLLM (JSON) and
    AIPerf (profile_export.jsonl). Of a file with several runs each gets a folder, run-1 and so on.
    """
    from batchsim.config import load_config
    from batchsim.results.exchange.imported import save_measured
    from batchsim.results.measured_tables import read_measured
    from batchsim.results.store import check_vacant

    slo = load_config(None, overrides(given)).slo
    runs = read_measured(file)
    folders = [output_dir / f"run-{number}" for number in range(1, len(runs) + 1)]
    for run, folder in zip(runs, folders if len(runs) > 1 else [output_dir], strict=True):
        check_vacant(folder, overwrite=overwrite, inputs=[file])
        for sentence in run.notices:
            notice(sentence)
        summary = save_measured(run, file, folder, slo, overwrite=overwrite)
        click.echo(f"written: {folder}: {summary['num_requests']:,} requests of {run.tool}", err=True)


def compare_with(
    measured: Path,
    policies: Sequence[str],
    config_file: Path | None,
    output_dir: Path | None,
    *,
    overwrite: bool,
    as_json: bool,
    given: Mapping[str, Any],
) -> None:
    """Do what ``batchsim compare --measured`` asks for."""
    from batchsim.cli.runs import folder_of
    from batchsim.config import load_config
    from batchsim.errors import ConfigError
    from batchsim.files import check_file, write_whole
    from batchsim.files.tables import csv_text
    from batchsim.results.exchange.imported import read_results
    from batchsim.results.store import check_vacant
    from batchsim.study.measured import compare_measured

    policies = policies or ["vllm_v1"]
    config = load_config(config_file, overrides(dict(given)))
    if output_dir is not None:
        inputs = (config_file, measured, *config.files)
        check_file(output_dir / "differences.csv", inputs=inputs, overwrite=overwrite)
        for policy in policies:
            check_vacant(output_dir / folder_of(policy), overwrite=overwrite, inputs=inputs)
    runs = read_results(measured)
    if len(runs) > 1:
        raise ConfigError(
            f"{measured}: holds {len(runs)} runs; `batchsim import-results {measured} -o DIR` gives each a "
            "folder, of which one can be compared"
        )
    for sentence in runs[0].notices:
        notice(sentence)
    with hardware_told(config), progress_watch() as watch:
        compared = compare_measured(config, policies, runs[0], measured.name, on_start=watch.follow)
    first = next(iter(compared.results.values()))
    for sentence in first.manifest["notices"]:
        notice(sentence)
    if output_dir is not None:
        for policy, result in compared.results.items():
            result.save(output_dir / folder_of(policy), overwrite=overwrite)
        write_whole(output_dir / "differences.csv", csv_text(compared.differences))
    summaries = {policy: result.summary for policy, result in compared.results.items()}
    differences = compared.differences.astype(object).where(compared.differences.notna(), None)
    if as_json:
        tables = {"measured": compared.measured, "summaries": summaries}
        echo_json({**tables, "differences": differences.to_dict("records")})
        return
    heading = {key: first.summary[key] for key in _OF_SIMULATIONS}
    kind = "simulated" if runs[0].is_simulated else "measured"
    echo_summaries({f"{kind} ({runs[0].tool})": {**compared.measured, **heading}, **summaries})
    rows = [_difference(row, summaries) for row in compared.differences.itertuples(index=False)]
    title = f"E2E against {measured.name}, same requests (ms)"
    echo_table(title, ("policy", "difference", "95 % interval", "pairs"), rows)
    for policy, summary in summaries.items():
        warn_about(policy, summary)


#: What the heading of a table of results says of the simulations in it.
_OF_SIMULATIONS = ("cluster", "latency_model", "latency_provenance", "predictor", "num_training")


def _difference(row: Any, summaries: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    from batchsim.cli.runs import difference_interval

    mean_s, pairs = row.e2e_difference_mean_s, f"{row.num_paired:,}"
    if mean_s != mean_s:
        return row.policy, "-", "none: arrivals were drawn", pairs
    told = difference_interval(mean_s, row.e2e_difference_ci95_s, [summaries[row.policy]])
    return row.policy, milliseconds(mean_s * 1000, "+"), told, pairs
