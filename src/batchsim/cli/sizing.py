"""``batchsim capacity``: how much a cluster can take, or how many GPUs a rate needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchsim.cli.options import overrides, run_options
from batchsim.cli.output import echo_json, echo_table, notice, plain, stderr, warn

if TYPE_CHECKING:
    from batchsim.config import RunConfig
    from batchsim.study.capacity import Capacity
    from batchsim.study.trials import Trial


@click.command()
@run_options
@click.option("--policy", "policies", multiple=True, metavar="NAME", help="Repeat or separate by commas.")
@click.option(
    "--attainment",
    "share",
    type=float,
    default=0.9,
    show_default=True,
    help="Share of requests that must meet every limit per request.",
)
@click.option(
    "--parts",
    type=int,
    default=20,
    show_default=True,
    help="Consecutive parts of the requests, for intervals.",
)
@click.option("--tolerance", type=float, default=0.01, show_default=True, help="Of the rate, relative.")
def capacity(
    config_file: Path | None,
    output_dir: Path | None,
    overwrite: bool,
    as_json: bool,
    verbose: bool,
    policies: tuple[str, ...],
    share: float,
    parts: int,
    tolerance: float,
    **given: Any,
) -> None:
    """Find the highest request rate that attains an SLO; with --request-rate, the fewest GPUs for it.

    All policies meet the same requests, paced to the rate that is tried. At least one --slo is needed.
    """
    import pandas as pd

    from batchsim.config import load_config
    from batchsim.files import json_text, write_whole
    from batchsim.files.tables import csv_text
    from batchsim.results.store import check_vacant
    from batchsim.study.capacity import find_capacity
    from batchsim.study.compare import for_policies

    base = load_config(config_file, overrides(given))
    names = [name for given_names in policies for name in given_names.split(",")] or [base.policy.preset]
    if output_dir is not None:
        check_vacant(output_dir, overwrite=overwrite, inputs=(config_file, *base.files))
    found: dict[str, Capacity] = {}
    with stderr().status("") as status:
        for name, config in for_policies(base, names).items():

            def show(trial: Trial, name: str = name) -> None:
                status.update(
                    f"{plain(name)}: {trial.request_rate_per_s:.4g} requests/s on {trial.num_gpus} GPUs "
                    f"{'attain' if trial.attains else 'miss'} the SLO ({trial.num_requests:,} requests)"
                )

            found[name] = find_capacity(
                config, share=share, num_parts=parts, tolerance=tolerance, on_trial=show
            )
    for sentence in dict.fromkeys(said for one in found.values() for said in one.assumptions):
        notice(sentence)
    results = {name: _as_json(one) for name, one in found.items()}
    if output_dir is not None:
        write_whole(output_dir / "capacity.json", json_text(results))
        trials = [pd.DataFrame(one.trials).assign(policy=name) for name, one in found.items()]
        write_whole(output_dir / "trials.csv", csv_text(pd.concat(trials, ignore_index=True)))
    if as_json:
        echo_json(results)
        return
    if verbose:
        for name, one in found.items():
            click.echo(f"{name}: {len(one.trials)} simulations", err=True)
    _echo(base, found, share)
    for name, one in found.items():
        for sentence in one.cautions:
            warn(f"{name}: {sentence}")


def _echo(config: RunConfig, found: Mapping[str, Capacity], share: float) -> None:
    is_asked = config.workload.request_rate is not None
    rows = [
        (
            name,
            f"{one.num_gpus}",
            _rate(one),
            "-" if is_asked else _bracket(one),
            one.binding or "-",
            "-" if one.best.slo_attainment is None else f"{one.best.slo_attainment:.2%}",
        )
        for name, one in found.items()
    ]
    echo_table(
        f"{'Fewest GPUs' if is_asked else 'Highest rate'} with {_limits(config, share)}",
        ("policy", "GPUs", "requests/s", "attains, misses", "bounded by", "good"),
        rows,
    )
    for name, one in found.items():
        click.echo(
            f"{name}: {one.best.num_requests:,} requests of {one.best.workload} on {one.best.latency}"
            + ("" if one.half_width_per_s is None else "; ± is the 95 % interval of the rate over the parts")
        )


def _limits(config: RunConfig, share: float) -> str:
    per_request = [f"{name.upper()} <= {limit:,.7g} ms" for name, limit in config.slo.per_request_ms.items()]
    of_many = [f"{name} <= {limit_s * 1000:,.7g} ms" for name, limit_s in config.slo.statistics_s.items()]
    first = [f"{share:.0%} of the requests within {', '.join(per_request)}"] if per_request else []
    return " and ".join(first + of_many)


def _rate(one: Capacity) -> str:
    mean = f"{one.request_rate_per_s:.4g}"
    if one.is_unbounded:
        return f"at least {mean}"
    return mean if one.half_width_per_s is None else f"{mean} ± {one.half_width_per_s:.2g}"


def _bracket(one: Capacity) -> str:
    return "-" if one.is_unbounded else f"{one.request_rate_per_s:.4g}, {one.missed_per_s:.4g}"


def _as_json(found: Capacity) -> dict[str, Any]:
    return {
        "num_gpus": found.num_gpus,
        "request_rate_per_s": found.request_rate_per_s,
        "request_rate_ci95_per_s": found.half_width_per_s,
        "missed_rate_per_s": found.missed_per_s if found.missed_per_s < float("inf") else None,
        "is_lower_bound": found.is_unbounded,
        "bounded_by": found.binding or None,
        "slo_attainment": found.best.slo_attainment,
        "verdict": found.best.verdict,
        "workload": found.best.workload,
        "latency_model": found.best.latency,
        "num_requests": found.best.num_requests,
        "num_simulations": len(found.trials),
        "notices": found.notices,
    }
