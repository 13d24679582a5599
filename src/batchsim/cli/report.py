"""``batchsim report``: a sweep as one page to explore."""

from __future__ import annotations

from pathlib import Path

import click

from batchsim.cli.options import OUTPUT_PATH
from batchsim.cli.output import warn


@click.command()
@click.argument("results_dir", type=OUTPUT_PATH)
@click.option("-o", "--output", type=OUTPUT_PATH, default=Path("report.html"), show_default=True)
@click.option(
    "--closeups",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    metavar="N",
    help="Runs of a sweep to look at closely; one without tables is simulated again if it is short.",
)
def report(results_dir: Path, output: Path, closeups: int) -> None:
    """Make one page of a sweep, or of all in a folder, to explore in a browser without a network."""
    from batchsim.report import write_page

    for what in write_page(results_dir, output, closeups=closeups):
        warn(f"{output}: no room for {what}")
    click.echo(str(output))
