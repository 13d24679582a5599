"""``batchsim capacity``: how much a cluster can take, how many GPUs a rate needs, and of which kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from batchsim.cli.options import overrides, replication_options, run_options, stopping
from batchsim.cli.output import by_name, echo_json, echo_table, hardware_told, notice, plain, stderr, warn
from batchsim.errors import ConfigError

if TYPE_CHECKING:
    from batchsim.config import RunConfig
    from batchsim.study.capacity import Capacity
    from batchsim.study.replications import Stopping
    from batchsim.study.trials import Trial


class _Case(NamedTuple):
    """A policy, on a kind of GPU where kinds are compared."""

    policy: str
    gpu: str | None

    def __str__(self) -> str:
        return self.policy if self.gpu is None else f"{self.policy} on {self.gpu}"


@click.command()
@run_options
@replication_options
@click.option("--policy", "policies", multiple=True, metavar="NAME", help="Repeat or separate by commas.")
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    metavar="NAME",
    help="Kinds of GPU to compare by cost; repeat or separate by commas.",
)
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
@click.option(
    "--split-pools",
    is_flag=True,
    help="Let some replicas compute prompts and the others decode, as many of each as is best.",
)
@click.option("--tolerance", type=float, default=0.01, show_default=True, help="Of the rate, relative.")
def capacity(
    config_file: Path | None,
    output_dir: Path | None,
    overwrite: bool,
    as_json: bool,
    verbose: bool,
    policies: tuple[str, ...],
    gpus: tuple[str, ...],
    share: float,
    parts: int,
    split_pools: bool,
    tolerance: float,
    **given: Any,
) -> None:
    """Find the highest request rate that attains an SLO; with --request-rate, the fewest GPUs for it.

    All policies meet the same requests, paced to the rate that is tried. At least one --slo is needed. With
    --gpu h100,l40s each kind of GPU is tried, and the one that serves a request for least is named.
    """
    from batchsim.config import load_config
    from batchsim.results.store import check_vacant
    from batchsim.study.cheapest import cheapest, for_gpus
    from batchsim.study.compare import for_policies

    enough = stopping(given)
    base = load_config(config_file, overrides(given))
    if given["num_gpus"] is not None and base.workload.request_rate is not None:
        notice(
            "for a rate the fewest GPUs are searched, however many are given: "
            f"{given['num_gpus']} is not heeded"
        )
    names = [name for given_names in policies for name in given_names.split(",")] or [base.policy.preset]
    kinds = [kind for given_kinds in gpus for kind in given_kinds.split(",")]
    if output_dir is not None:
        check_vacant(output_dir, overwrite=overwrite, inputs=(config_file, *base.files))
    of_kinds = [*for_gpus(base, kinds).items()] if kinds else [(None, base)]
    cases = {
        _Case(name, gpu): config
        for gpu, of_kind in of_kinds
        for name, config in for_policies(of_kind, names).items()
    }
    with hardware_told(base):
        found, failures = _search(
            cases, enough, share=share, num_parts=parts, tolerance=tolerance, split_pools=split_pools
        )
    best = cheapest(found) if kinds else None
    for sentence in dict.fromkeys(said for one in found.values() for said in one.assumptions):
        notice(sentence)
    results = {str(case): _as_json(case, one, is_cheapest=case == best) for case, one in found.items()}
    results |= {str(case): {**_named(case), "failure": said} for case, said in failures.items()}
    if as_json:
        echo_json(results)
    else:
        if verbose:
            for case, one in found.items():
                click.echo(f"{case}: {len(one.trials)} simulations", err=True)
        _echo(base, found, share)
        if best is not None:
            _echo_cheapest(best, found[best])
        for case, one in found.items():
            for sentence in [*one.cautions, *(_unpriced(case, one) if kinds else ())]:
                warn(f"{case}: {sentence}")
        for case, said in failures.items():
            warn(f"{case}: {said}")
    if output_dir is not None:  # last: the disk may be full
        _write(output_dir, results, found, is_replicated=enough is not None)


def _write(
    directory: Path, results: Mapping[str, Any], found: Mapping[_Case, Capacity], *, is_replicated: bool
) -> None:
    import pandas as pd

    from batchsim.files import json_text, write_whole
    from batchsim.files.tables import csv_text

    write_whole(directory / "capacity.json", json_text(results))
    trials = [
        pd.DataFrame(search.trials).assign(**_named(case), **({"replication": k} if is_replicated else {}))
        for case, one in found.items()
        for k, search in enumerate(one.replications or (one,))
    ]
    write_whole(directory / "trials.csv", csv_text(pd.concat(trials, ignore_index=True)))


def _search(
    cases: Mapping[_Case, RunConfig], enough: Stopping | None, **options: Any
) -> tuple[dict[_Case, Capacity], dict[_Case, str]]:
    """What each case can take, or why that cannot be told of one kind of GPU while it can of another."""
    from batchsim.study.capacity import find_capacity, replicate_capacity

    found: dict[_Case, Capacity] = {}
    failures: dict[_Case, str] = {}
    with stderr().status("") as status:
        for case, config in cases.items():

            def show(trial: Trial, case: _Case = case) -> None:
                status.update(
                    f"{plain(str(case))}: {trial.request_rate_per_s:.4g} requests/s on {trial.num_gpus} GPUs "
                    f"{'attain' if trial.attains else 'miss'} the SLO ({trial.num_requests:,} requests)"
                )

            try:
                if enough is None:
                    found[case] = find_capacity(config, on_trial=show, **options)
                else:
                    found[case] = replicate_capacity(config, enough, on_trial=show, **options)
            except ConfigError as error:
                failures[case] = str(error)
                if case.gpu is None or len(failures) == len(cases):
                    raise
    return found, failures


def _echo(config: RunConfig, found: Mapping[_Case, Capacity], share: float) -> None:
    is_asked = config.workload.request_rate is not None
    columns: dict[str, Callable[[_Case, Capacity], str]] = {
        "policy": lambda case, one: case.policy,
        "GPU": lambda case, one: str(case.gpu),
        "GPUs": lambda case, one: f"{one.num_gpus}",
        "enough in": lambda case, one: _enough_in(one),
        "prefill replicas": lambda case, one: f"{one.best.num_prefill_replicas}",
        "requests/s": lambda case, one: _rate(one),
        "attains, misses": lambda case, one: _bracket(one),
        "bounded by": lambda case, one: one.binding or "-",
        "good": lambda case, one: _known(one.best.slo_attainment, ".2%"),
        "USD/hour": lambda case, one: _known(one.best.usd_per_hour, ",.2f"),
        "USD/million output tokens": lambda case, one: _known(one.usd_per_million_output_tokens, ",.3f"),
    }
    if not any(one.best.num_prefill_replicas for one in found.values()):
        del columns["prefill replicas"]
    if all(case.gpu is None for case in found):
        del columns["GPU"]
    if is_asked:
        del columns["attains, misses"]
    if not any(one.binding for one in found.values()):
        del columns["bounded by"]
    if not is_asked or not any(one.replications for one in found.values()):
        del columns["enough in"]
    if all(one.best.usd_per_hour is None for one in found.values()):
        del columns["USD/hour"], columns["USD/million output tokens"]
    echo_table(
        f"{'Fewest GPUs' if is_asked else 'Highest rate'} with {limits_in_words(config, share)}",
        list(columns),
        [[cell(case, one) for cell in columns.values()] for case, one in found.items()],
    )
    for case, one in found.items():
        click.echo(
            f"{case}: {one.best.num_requests:,} requests of {one.best.workload} on {one.best.latency}"
            + (
                ""
                if one.half_width_per_s is None
                else f"; ± is the 95 % interval of the rate over {_over(one)}"
            )
            + ("" if one.best.prices is None else f"; {one.best.prices}")
        )
    for sentence in by_name({str(case): one.best.expected_error for case, one in found.items()}):
        click.echo(sentence)


def _echo_cheapest(case: _Case, one: Capacity) -> None:
    assert one.usd_per_request is not None, "a cheapest one has a price"
    click.echo(
        f"cheapest: {case.policy} on {one.num_gpus} {case.gpu}, {one.best.usd_per_hour:,.2f} USD/hour for "
        f"{one.request_rate_per_s:.4g} requests/s, {1000 * one.usd_per_request:.4g} USD per 1,000 requests"
    )


def _unpriced(case: _Case, one: Capacity) -> list[str]:
    if one.best.usd_per_hour is not None:
        return []
    return [
        f"no price is known, so that its cost is not compared; cost.usd_per_gpu_hour.{case.gpu} gives one"
    ]


def limits_in_words(config: RunConfig, share: float) -> str:
    """What is wanted: the share within the limits per request, and those on statistics."""
    per_request = [f"{name} <= {limit:,.7g} ms" for name, limit in config.slo.told_ms.items()]
    of_many = [f"{name} <= {limit_s * 1000:,.7g} ms" for name, limit_s in config.slo.statistics_s.items()]
    first = [f"{100 * share:.4g}% of the requests within {', '.join(per_request)}"] if per_request else []
    return " and ".join(first + of_many)


def _rate(one: Capacity) -> str:
    mean = f"{one.request_rate_per_s:.4g}"
    if one.is_unbounded:
        return f"at least {mean}"
    return mean if one.half_width_per_s is None else f"{mean} ± {one.half_width_per_s:.2g}"


def _over(one: Capacity) -> str:
    return f"{len(one.replications)} replications (Student's t)" if one.replications else "the parts"


def _enough_in(one: Capacity) -> str:
    """In how many replications each number of GPUs was enough: "3 in 7 of 10, 4 in 10 of 10"."""
    needed = sorted(search.num_gpus for search in one.replications)
    if not needed:
        return "-"
    return ", ".join(
        f"{num} in {sum(other <= num for other in needed)} of {len(needed)}" for num in dict.fromkeys(needed)
    )


def _bracket(one: Capacity) -> str:
    return "-" if one.is_unbounded else f"{one.request_rate_per_s:.4g}, {one.missed_per_s:.4g}"


def _known(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _named(case: _Case) -> dict[str, str]:
    """What a result is of, besides where it stands."""
    return {"policy": case.policy} if case.gpu is None else {"policy": case.policy, "gpu": case.gpu}


def _as_json(case: _Case, found: Capacity, *, is_cheapest: bool) -> dict[str, Any]:
    compared = {} if case.gpu is None else {**_named(case), "is_cheapest": is_cheapest}
    return {
        **compared,
        "num_gpus": found.num_gpus,
        "num_prefill_replicas": found.best.num_prefill_replicas,
        "request_rate_per_s": found.request_rate_per_s,
        "request_rate_ci95_per_s": found.half_width_per_s,
        "missed_rate_per_s": found.missed_per_s if found.missed_per_s < float("inf") else None,
        "is_lower_bound": found.is_unbounded,
        "bounded_by": found.binding or None,
        "slo_attainment": found.best.slo_attainment,
        "verdict": found.best.verdict,
        "workload": found.best.workload,
        "latency_model": found.best.latency,
        "expected_error": found.best.expected_error,
        "num_requests": found.best.num_requests,
        "num_simulations": len(found.trials),
        "num_replications": max(len(found.replications), 1),
        "replications": [
            {"request_rate_per_s": one.request_rate_per_s, "num_gpus": one.num_gpus}
            for one in found.replications
        ],
        "usd_per_hour": found.best.usd_per_hour,
        "usd_per_request": found.usd_per_request,
        "usd_per_million_output_tokens": found.usd_per_million_output_tokens,
        "prices": found.best.prices,
        "notices": found.notices,
    }
