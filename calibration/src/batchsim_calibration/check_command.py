"""``batchsim-calibrate check``."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from batchsim_calibration.measuring.agreement import STRAY_POINTS, TOLERANCE, Agreement, compare

_FILE = click.Path(path_type=Path, dir_okay=False)
#: So many of the points that disagree are shown, the worst first.
_NUM_SHOWN = 10


@click.command()
@click.argument("first", type=_FILE)
@click.argument("second", type=_FILE)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=TOLERANCE,
    show_default=True,
    metavar="SHARE",
    help="What is this near agrees in any case.",
)
@click.option(
    "--clock", type=click.Choice(["wall_s", "cuda_s", "cpu_s"]), default="wall_s", show_default=True
)
@click.pass_context
def check(ctx: click.Context, first: Path, second: Path, tolerance: float, clock: str) -> None:
    """Say whether two calibrations agree within their spread; exit 1 if they do not.

    Intervals (95 %) are a bootstrap over whole trials. Runs agree if the interval of every kind reaches into
    the tolerance, and that of all points but a tenth.
    """
    agreement = compare(first, second, tolerance=tolerance, clock=clock)  # type: ignore[arg-type]
    for notice in agreement.notices:
        click.echo(f"Notice: {notice}", err=True)
    _echo(agreement, f"{second.name} over {first.name}")
    if not agreement.agrees:
        ctx.exit(1)


def _echo(agreement: Agreement, title: str) -> None:
    points = agreement.points
    table = Table(title=title, title_justify="left")
    for column in ("kind", "points", "ratio", "95 % interval", "agrees", "points that disagree"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    stray = points[~points["agrees"]]
    for kind in agreement.kinds.to_dict("records"):
        table.add_row(
            kind["kind"],
            str(kind["num_points"]),
            f"{kind['ratio']:.3f}",
            f"{kind['low']:.3f} to {kind['high']:.3f}",
            "yes" if kind["agrees"] else "no",
            str(int((stray["kind"] == kind["kind"]).sum())),
        )
    # A table is for people: with no terminal it would be cut to 80 columns.
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    for point in (
        stray.sort_values("ratio", key=lambda ratio: -abs(ratio - 1)).head(_NUM_SHOWN).to_dict("records")
    ):
        lengths = ", ".join(
            f"{name.partition('_')[0]} {point[name]}"
            for name in ("prompt_tokens", "output_tokens", "context_tokens")
            if point[name]
        )
        click.echo(
            f"  {point['kind']} of {point['batch_size']} ({lengths}): {point['first_s'] * 1000:.2f} ms, then "
            f"{point['second_s'] * 1000:.2f} ms"
        )
    for num, which in ((agreement.num_only_first, "first"), (agreement.num_only_second, "second")):
        if num:
            click.echo(f"  {num} points are in the {which} alone")
    kinds = agreement.kinds
    hidden = max((kinds["high"] / kinds["ratio"]).max(), (kinds["ratio"] / kinds["low"]).max()) - 1
    verdict = "agree" if agreement.agrees else "DISAGREE"
    click.echo(
        f"The runs {verdict}: {len(stray) / len(points):.0%} of the points are off, "
        f"{STRAY_POINTS:.0%} may be by chance. Their own spread hides differences up to {hidden:.0%}."
    )
