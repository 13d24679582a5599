"""``batchsim capacity``: how much a cluster can take, or how many GPUs a rate needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchsim.cli.options import overrides, run_options
from batchsim.cli.output import echo_json, echo_table, plain, stderr, warn

if TYPE_CHECKING:
    import pandas as pd

    from batchsim.config import RunConfig
    from batchsim.metrics.statistics import Interval
    from batchsim.study.capacity import Capacity, Trial


@click.command()
@run_options
@click.option("--policy", "policies", multiple=True, metavar="NAME", help="Repeat or separate by commas.")
@click.option(
    "--attainment",
    "share",
    type=float,
    default=0.9,
    show_default=True,
    help="Share of requests that must meet every limit.",
)
@click.option(
    "--replications", type=int, default=5, show_default=True, help="Parts to cut the requests into."
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
    replications: int,
    tolerance: float,
    **given: Any,
) -> None:
    """Find the highest request rate that attains an SLO; with --request-rate, the fewest GPUs for it.

    Replications are consecutive parts of the requests, paced to the rate that is tried: all policies meet the
    same. At least one --slo is needed.
    """
    from batchsim.config import load_config
    from batchsim.files import write_whole
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
                    f"{plain(name)}: {trial.slo_attainment:.1%} good at {trial.request_rate_per_s:.4g} "
                    f"requests/s on {trial.num_gpus} GPUs (part {trial.replication + 1} of {replications})"
                )

            found[name] = find_capacity(
                config,
                share=share,
                num_replications=replications,
                tolerance=tolerance,
                on_trial=show,
            )
    results = {name: _as_json(one) for name, one in found.items()}
    if output_dir is not None:
        write_whole(output_dir / "capacity.json", json.dumps(results, indent=2))
        write_whole(output_dir / "trials.csv", _trials(found).to_csv(index=False))
    if as_json:
        echo_json(results)
        return
    if verbose:
        for name, one in found.items():
            click.echo(f"{name}: {len(one.trials)} simulations", err=True)
    _echo(base, found, share, replications)
    for name, one in found.items():
        if not one.request_rate_per_s.mean:
            warn(f"{name}: even requests that are served alone miss the SLO too often")


def _echo(config: RunConfig, found: Mapping[str, Capacity], share: float, num_replications: int) -> None:
    limits = ", ".join(
        f"{metric} <= {limit:g} ms"
        for metric, limit in (
            ("E2E", config.slo.e2e_ms),
            ("TTFT", config.slo.ttft_ms),
            ("TPOT", config.slo.tpot_ms),
        )
        if limit is not None
    )
    rows = [
        (
            name,
            f"{one.num_gpus}",
            _with_interval(one.request_rate_per_s, ".3f"),
            _with_interval(one.attainment, ".2%"),
        )
        for name, one in found.items()
    ]
    is_asked = config.workload.request_rate is not None
    echo_table(
        f"{'Fewest GPUs' if is_asked else 'Highest rate'} with {share:.0%} of the requests within {limits} "
        f"(mean and 95 % interval over {num_replications} parts of the requests)",
        ("policy", "GPUs", "requests/s", "good"),
        rows,
    )


def _with_interval(interval: Interval, digits: str) -> str:
    mean, half_width = interval
    return f"{mean:{digits}} ± {half_width:{digits}}" if half_width else f"{mean:{digits}}"


def _as_json(found: Capacity) -> dict[str, Any]:
    return {
        "num_gpus": found.num_gpus,
        "request_rate_per_s": found.request_rate_per_s.mean,
        "request_rate_ci95_per_s": found.request_rate_per_s.half_width,
        "slo_attainment": found.attainment.mean,
        "slo_attainment_ci95": found.attainment.half_width,
        "num_simulations": len(found.trials),
    }


def _trials(found: Mapping[str, Capacity]) -> pd.DataFrame:
    import pandas as pd

    tables = [pd.DataFrame(one.trials).assign(policy=name) for name, one in found.items()]
    return pd.concat(tables, ignore_index=True)
