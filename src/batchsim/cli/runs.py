"""``batchsim run``, ``compare``: one configuration, or several policies on the same requests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchsim.cli.interchange import compare_with
from batchsim.cli.numbers import milliseconds, signed
from batchsim.cli.options import OUTPUT_PATH, overrides, replication_options, run_options, stopping
from batchsim.cli.output import (
    ROWS,
    echo_json,
    echo_summaries,
    echo_table,
    hardware_told,
    notice,
    progress_watch,
    warn,
    warn_about,
)
from batchsim.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from batchsim.cli.output import ProgressWatch
    from batchsim.sim.recording.recorder import Recorder
    from batchsim.study.compare import Comparison, ReplicatedComparison
    from batchsim.study.result import SimulationResult


@click.command()
@run_options
@replication_options
@click.option("--policy", metavar="NAME", help="One of `batchsim policies` (static_fifo), or module:preset.")
@click.option("--timeline", type=OUTPUT_PATH, metavar="FILE", help="Write Chrome trace events, for Perfetto.")
def run(
    config_file: Path | None,
    output_dir: Path | None,
    overwrite: bool,
    as_json: bool,
    verbose: bool,
    timeline: Path | None,
    **given: Any,
) -> None:
    """Simulate one configuration (a TOML file, options, or both) and print its metrics."""
    from batchsim.config import load_config
    from batchsim.files import check_file
    from batchsim.results.store import check_vacant
    from batchsim.results.timeline import write_timeline
    from batchsim.study.replications import replicate
    from batchsim.study.run import simulate

    enough = stopping(given)
    config = load_config(config_file, overrides(given))
    inputs = (config_file, *config.files)
    if output_dir is not None:
        check_vacant(output_dir, overwrite=overwrite, inputs=inputs)
    if timeline is not None:
        check_file(timeline, inputs=inputs, overwrite=overwrite)
    with hardware_told(config), progress_watch() as watch:
        if enough is None:
            result = simulate(config, on_start=lambda recorder: watch.follow(config.policy.preset, recorder))
            done, summary = None, result.summary
        else:
            follow = partial(_follow, watch, config.policy.preset)
            done = replicate(config, **asdict(enough), on_start=follow)
            result, summary = done.first, done.summary
    _notices(result)
    for sentence in done.notices if done is not None else ():
        notice(sentence)
    if output_dir is not None:
        (result if done is None else done).save(output_dir, overwrite=overwrite)
    if timeline is not None:
        write_timeline(result.records, timeline)
    tenants = result.tenants
    if as_json:
        more = {"tenants": tenants.astype(object).to_dict("records")} if len(tenants) else {}
        runs = {} if done is None else {"replications": list(done.summaries)}
        echo_json({**summary, **more, **runs})
        return
    if verbose:
        click.echo(f"active: {summary['combination']}", err=True)
    echo_summaries({str(summary["policy"]): summary})
    if len(tenants):
        _echo_tenants(tenants)
    warn_about(str(summary["policy"]), summary)
    if output_dir is not None:
        click.echo(f"written: {output_dir}", err=True)
    if timeline is not None:
        click.echo(f"written: {timeline} (open it at ui.perfetto.dev)", err=True)


def _follow(watch: ProgressWatch, name: str, k: int, recorder: Recorder) -> None:
    watch.follow(f"{name}, replication {k}", recorder)


@click.command(name="compare")
@run_options
@replication_options
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME",
    help="Repeat or separate by commas; default: all presets of the configured one's world.",
)
@click.option(
    "--measured",
    type=OUTPUT_PATH,
    metavar="RESULT",
    help="What a benchmark measured (file, or folder of import-results): beside simulations of its requests.",
)
def compare_(
    config_file: Path | None,
    output_dir: Path | None,
    overwrite: bool,
    as_json: bool,
    verbose: bool,
    policies: tuple[str, ...],
    measured: Path | None,
    **given: Any,
) -> None:
    """Simulate several policies on the same arrivals; print their metrics and paired differences."""
    from batchsim.config import load_config
    from batchsim.files import check_file, write_whole
    from batchsim.files.tables import csv_text
    from batchsim.policies.presets import find_preset, names_of
    from batchsim.results.store import check_vacant
    from batchsim.study.compare import compare, compare_replications

    enough = stopping(given)
    names = [name for given_names in policies for name in given_names.split(",")]
    if measured is not None:
        if enough is not None:
            raise ConfigError("--measured is a single run; leave out --replications and --precision")
        places = (config_file, output_dir)
        compare_with(measured, names, *places, overwrite=overwrite, as_json=as_json, given=given)
        return
    config = load_config(config_file, overrides(given))
    names = names or names_of(is_iteration_level=find_preset(config.policy.preset).is_iteration_level)
    if output_dir is not None:
        inputs = (config_file, *config.files)
        for file in ("differences.csv", "paired_differences.csv"):
            check_file(output_dir / file, inputs=inputs, overwrite=overwrite)
        for name in names:
            check_vacant(output_dir / folder_of(name), overwrite=overwrite, inputs=inputs)
    with hardware_told(config), progress_watch() as watch:
        if enough is None:
            done, comparison = None, compare(config, names, on_start=watch.follow)
        else:
            done = compare_replications(config, names, stopping=enough, on_start=watch.follow)
            comparison = done.first
    results = comparison.results
    _notices(next(iter(results.values())))
    for sentence in done.notices if done is not None else ():
        notice(sentence)
    if done is not None and done.is_fixed:
        done = None
    differences, twins = (done or comparison).differences, (done or comparison).twins
    if output_dir is not None:
        for name, one in (results if done is None else done.replications).items():
            one.save(output_dir / folder_of(name), overwrite=overwrite)
        file = "differences.csv" if done is None else "paired_differences.csv"
        write_whole(output_dir / file, csv_text(differences))
    summaries = {name: result.summary for name, result in results.items()}
    if done is not None:
        summaries = {name: one.summary for name, one in done.replications.items()}
    if as_json:
        echo_json(
            {
                "summaries": summaries,
                "differences": differences.astype(object).where(differences.notna(), None).to_dict("records"),
                "identical": list(twins),
            }
        )
        return
    if verbose:
        for name, result in results.items():
            click.echo(f"active: {name} = {result.summary['combination']}", err=True)
    echo_summaries(summaries)
    if done is None:
        _echo_differences(comparison)
    else:
        _echo_paired(done)
    for name, summary in summaries.items():
        warn_about(name, summary)
    for sentence in twins:
        warn(sentence)


def folder_of(policy: str) -> str:
    """Name the folder of a policy's results."""
    return policy.replace(":", ".")  # module:preset is no file name everywhere


#: More rows are no table that anybody reads; `tenants.parquet` has them all.
_MOST_TENANTS = 30


def _echo_tenants(tenants: pd.DataFrame) -> None:
    """Who was served: a row for each tenant and class."""
    times = {"TTFT mean": "ttft_mean_s", "TTFT P99": "ttft_p99_s", "TPOT mean": "tpot_mean_s",
             "E2E mean": "e2e_mean_s", "E2E P99": "e2e_p99_s"}  # fmt: skip
    shown, title = [], "By tenant and class, times in ms"
    if len(tenants) > _MOST_TENANTS:
        title = f"{title}: the {_MOST_TENANTS} of {len(tenants):,} that were served most"
        tenants = tenants.nlargest(_MOST_TENANTS, "service_tokens")
    for row in tenants.to_dict("records"):
        told = [row[key] for key in times.values()]
        fair = row["fair_tokens"]
        shown.append((
            f"{row['kind']} {row['name'] or '(none)'}",
            f"{row['num_finished']:,} of {row['num_requests']:,}",
            _or_dash(row["slo_attainment"], "{:.2%}"),
            *("-" if math.isnan(time_s) else milliseconds(time_s * 1000) for time_s in told),
            _or_dash(row["output_throughput_tokens_per_s"], "{:,.1f}"),
            _or_dash(row["service_tokens"] / fair if fair > 0 else math.nan, "{:.3f}"),
        ))  # fmt: skip
    columns = ("", "finished", "SLO", *times, "tokens/s", "service / fair share")
    echo_table(title, columns, shown)


def _or_dash(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def _echo_differences(comparison: Comparison) -> None:
    baseline, first = next(iter(comparison.results.items()))
    rows = []
    for row in comparison.differences.to_dict("records"):
        mean_s, half_width_s = row["e2e_difference_mean_s"], row["e2e_difference_ci95_s"]
        summaries = first.summary, comparison.results[row["policy"]].summary
        mean = "-" if math.isnan(mean_s) else milliseconds(mean_s * 1000, "+")
        told = difference_interval(mean_s, half_width_s, summaries)
        rows.append((row["policy"], mean, told, f"{row['num_paired']:,}"))
    columns = ("policy", "difference", "95 % interval", "pairs")
    echo_table(f"E2E against {baseline}, same requests (ms)", columns, rows)


#: What is shown of paired differences; the file and `--json` have all.
_PAIRED = (
    "e2e_mean_s", "e2e_p99_s", "ttft_mean_s", "ttft_p99_s", "tpot_mean_s", "slo_attainment",
    "goodput_requests_per_s", "output_throughput_tokens_per_s", "usd_per_million_output_tokens",
)  # fmt: skip


def _echo_paired(comparison: ReplicatedComparison) -> None:
    rows = []
    shown = comparison.differences[comparison.differences["metric"].isin(_PAIRED)]
    titles = {key: (title, factor, digits, unit) for title, key, factor, digits, unit in ROWS}
    for row in shown.to_dict("records"):
        title, factor, digits, unit = titles[row["metric"]]
        difference, low, high = (
            signed(row[name] * factor, digits) for name in ("difference", "ci95_low", "ci95_high")
        )
        interval = "none: the same in all replications" if math.isnan(row["ci95_low"]) else f"{low} to {high}"
        share = f"{row['difference'] / row['baseline_mean']:+.1%}" if row["baseline_mean"] else "-"
        chance = "-" if math.isnan(row["p_value"]) else _p_value(row["p_value"])
        rows.append((row["policy"], title, difference, share, interval, chance, unit))
    columns = ("policy", "", "difference", "", "95 % interval", "p-value", "unit")
    baseline, one = next(iter(comparison.replications.items()))
    echo_table(f"Against {baseline}, over {len(one.summaries)} replications in pairs", columns, rows)


def _p_value(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def difference_interval(mean_s: float, half_width_s: float, summaries: Sequence[Mapping[str, Any]]) -> str:
    """Both ends of the interval of a difference of mean times, in ms, or why nothing can be told."""
    if any(summary["saturated"] for summary in summaries):
        return "none: saturated"
    if math.isnan(half_width_s):
        return "none: too few independent stretches"
    if half_width_s > max(summary["e2e_mean_s"] for summary in summaries):
        return "wider than either mean: no difference can be told"
    low, high = (milliseconds(end_s * 1000, "+") for end_s in (mean_s - half_width_s, mean_s + half_width_s))
    return f"{low} to {high}"


def _notices(result: SimulationResult) -> None:
    workload = result.manifest["workload"]
    for sentence in [*workload["notices"], *result.manifest["notices"]]:
        notice(sentence)
    for reason, count in workload["dropped"].items():
        notice(f"{workload['name']}: {count} rows dropped, {reason}")
    refusals = list(result.manifest["refusals"].items())
    if refusals:
        request_id, reason = refusals[0]
        notice(f"{len(refusals)} requests refused; request {request_id}: {reason}")
