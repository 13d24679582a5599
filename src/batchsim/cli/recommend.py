"""``batchsim recommend``: the cheapest of many configurations that attains an SLO, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchsim.cli.groups import given_command
from batchsim.cli.options import overrides, parse_share, parse_value, run_options
from batchsim.cli.output import echo_json, echo_table, hardware_told, notice, plain, stderr, warn
from batchsim.cli.sizing import limits_in_words
from batchsim.errors import ConfigError

if TYPE_CHECKING:
    from batchsim.metrics.statistics import Interval
    from batchsim.study.recommend.recommendation import Recommendation, Standing


@click.command()
@run_options
@click.option("--policy", "policies", multiple=True, metavar="NAME", help="Repeat or separate by commas.")
@click.option("--gpu", "gpus", multiple=True, metavar="NAME", help="Kinds of GPU; likewise.")
@click.option(
    "--vary",
    multiple=True,
    metavar="KEY[=VALUE,...],...",
    help="Settings to try, e.g. num_gpus=2,4,8,tensor_parallel; repeatable. Without values: the usual ones.",
)
@click.option(
    "--attainment",
    metavar="SHARE",
    default="90%",
    show_default=True,
    help="Share of requests that must meet every limit per request.",
)
@click.option(
    "--confidence",
    metavar="SHARE",
    default="95%",
    show_default=True,
    help="With which the answer is to be right.",
)
@click.option("--replications", type=int, metavar="N", help="Of one configuration, at most.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
def recommend(
    config_file: Path | None,
    output_dir: Path | None,
    overwrite: bool,
    as_json: bool,
    verbose: bool,
    policies: tuple[str, ...],
    gpus: tuple[str, ...],
    vary: tuple[str, ...],
    attainment: str,
    confidence: str,
    replications: int | None,
    jobs: int,
    **given: Any,
) -> None:
    """Find the cheapest configuration that attains an SLO, of all combinations of what is varied.

    All meet the same requests at the same pace, in replications of --num-requests (1,000 if left out): drawn
    anew from a generator, or parts of a trace. Those that cannot be the answer are dropped early. With -o,
    all candidates are written as CSV and JSON, and the Pareto fronts are drawn.
    """
    from batchsim.config import load_config
    from batchsim.study.recommend import recommend as search

    base = load_config(config_file, overrides(given))
    share = parse_share(attainment, "attainment")
    if output_dir is not None:
        _check_vacant(output_dir, overwrite=overwrite, inputs=(config_file, *base.files))
    with hardware_told(base), stderr().status("") as status:
        found = search(
            base,
            vary=parse_vary(vary),
            gpus=_listed(gpus),
            policies=_listed(policies),
            share=share,
            confidence=parse_share(confidence, "confidence"),
            replications=replications,
            jobs=jobs,
            on_look=lambda said: status.update(plain(said)),
        )
    for sentence in found.notices:
        notice(sentence)
    wanted = limits_in_words(base, share)
    if as_json:
        echo_json(_as_json(found, wanted))
    else:
        _echo(found, wanted, verbose=verbose)
    for sentence in found.cautions:
        warn(sentence)
    if output_dir is not None:  # last: the disk may be full
        _write(output_dir, found, wanted)


def parse_vary(given: Sequence[str]) -> dict[str, list[Any]]:
    """``num_gpus=1,2,tensor_parallel`` as keys and their values; none where only the key is given.

    Values follow their key up to the next KEY= or a setting that is usually varied.
    """
    from batchsim.study.recommend.candidates import USUAL

    keys: dict[str, list[Any]] = {}
    for text in given:
        values: list[Any] | None = None
        for word in filter(None, (word.strip() for word in text.split(","))):
            key, equals, value = word.partition("=")
            if values is not None and not equals and word not in USUAL:
                values.append(parse_value(word))
                continue
            if key in keys:
                raise ConfigError(f"--vary {text!r}: {key} is given twice")
            keys[key] = [parse_value(value)] if equals else []
            values = keys[key] if equals else None
    return keys


def _listed(given: Sequence[str]) -> list[str]:
    return [name for names in given for name in names.split(",")]


def _check_vacant(directory: Path, *, overwrite: bool, inputs: Sequence[str | Path | None]) -> None:
    """Raise as `store.check_vacant`; what another search left is replaced where that is asked for."""
    from batchsim.results.store import check_vacant
    from batchsim.study.recommend import RECOMMENDATION

    if not (directory / RECOMMENDATION).exists():
        check_vacant(directory, overwrite=overwrite, inputs=inputs)
    elif not overwrite:
        raise ConfigError(
            f"{directory}: holds a recommendation already; choose another directory, or replace it with "
            "--overwrite"
        )


def _write(directory: Path, found: Recommendation, wanted: str) -> None:
    from batchsim.figures.studies.pareto import draw_fronts
    from batchsim.files import json_text, write_whole
    from batchsim.files.tables import csv_text
    from batchsim.study.recommend import CANDIDATES, RECOMMENDATION

    told = {"command": given_command(), **_as_json(found, wanted)}
    write_whole(directory / RECOMMENDATION, json_text(told))
    write_whole(directory / CANDIDATES, csv_text(found.table()))
    draw_fronts(directory)
    click.echo(f"written: {directory}", err=True)


def _echo(found: Recommendation, wanted: str, *, verbose: bool) -> None:
    shown = found.standings if verbose else [*([found.best] if found.best else []), *found.runners_up()]
    names = [
        name for name in shown[0].settings if len({str(one.settings[name]) for one in found.standings}) > 1
    ]
    echo_table(
        f"Cheapest with {wanted}",
        [*names, "USD/hour", f"{found.counted} (95 %)", "against the best", "replications", "verdict"],
        [
            [
                *(str(one.settings[name]) for name in names),
                f"{one.usd_per_hour:,.2f}",
                _percent(one.attained),
                "" if one is found.best else _points(found.against_best(one)),
                str(one.num_replications),
                one.verdict if one is found.best else f"{one.verdict}: {one.reason}",
            ]
            for one in shown
        ],
    )
    click.echo(_answer(found))
    counts = Counter(one.verdict for one in found.standings)
    told = ", ".join(f"{num} {verdict}" for verdict, num in counts.items())
    parts = "" if found.num_parts is None else f", of {found.num_parts:,} parts of the trace"
    click.echo(
        f"{len(found.standings):,} configurations ({told}); {found.num_simulations:,} replications of "
        f"{found.num_requests:,} requests{parts}"
    )
    for sentence in found.stands_on:
        click.echo(sentence)


def _answer(found: Recommendation) -> str:
    best = found.best
    sure = f"{100 * found.confidence:.4g} % sure"
    if best is None:
        return f"no configuration attains the SLO for sure ({sure})"
    return (
        f"cheapest that attains, {sure}: {best.name}; {best.usd_per_hour:,.2f} USD/hour, "
        f"{best.attained.mean:.2%} of the requests are {found.counted}"
    )


def _percent(share: Interval) -> str:
    if share.mean != share.mean:
        return "-"
    return f"{share.mean:.1%} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def _points(difference: Interval | None) -> str:
    if difference is None:
        return "-"
    return f"{100 * difference.mean:+.1f} ± {100 * difference.half_width:.1f} points"


def _as_json(found: Recommendation, wanted: str) -> dict[str, Any]:
    rows = found.table().to_dict("records")
    best = next((row for row in rows if row["verdict"] == "best"), None)
    return {
        "wanted": wanted,
        "share": found.share_of_good,
        "confidence": found.confidence,
        "best": best,
        "undecided": [one.name for one in found.undecided],
        "runners_up": [_named(one) for one in found.runners_up()],
        "num_candidates": len(rows),
        "num_simulations": found.num_simulations,
        "num_requests": found.num_requests,
        "num_parts": found.num_parts,
        "most_replications": found.most,
        "stands_on": found.stands_on,
        "notices": [*found.notices, *found.cautions],
        "candidates": rows,
    }


def _named(one: Standing) -> dict[str, Any]:
    return {"name": one.name, "verdict": one.verdict, "reason": one.reason}
