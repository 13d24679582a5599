"""``batchsim fidelity-hardware``: NVIDIA's operator times against published serving points."""

from __future__ import annotations

from pathlib import Path

import click

from batchsim.cli.options import ERRORS_HELP, INPUT_FILE, OUTPUT_PATH
from batchsim.cli.output import echo_table


@click.command(name="fidelity-hardware")
@click.argument("table", type=INPUT_FILE)
@click.option("-o", "--output-dir", type=OUTPUT_PATH, default=Path("docs"), show_default=True)
@click.option("--errors", type=OUTPUT_PATH, help=ERRORS_HELP)
@click.option(
    "--peers",
    type=INPUT_FILE,
    help="CSV of what AIConfigurator predicts of TABLE (row, metric, predicted_s), to stand beside.",
)
def fidelity_hardware(table: Path, output_dir: Path, errors: Path | None, peers: Path | None) -> None:
    """Predict published closed loops from aiconfigurator-core's operators; write fidelity-hardware.md.

    TABLE is a CSV file as aiconfigurator has it. Rows without a prediction are counted.
    """
    from batchsim.validation.operators.closed_loops import predict_measured_loops
    from batchsim.validation.operators.peers import read_peers
    from batchsim.validation.operators.report import (
        STATISTICS,
        write_operators_ranges,
        write_operators_report,
    )
    from batchsim.validation.tables import error_rows

    by_peer = None if peers is None else read_peers(peers)
    points = predict_measured_loops(table)
    echo_table(
        "Error, predicted / measured - 1",
        ("engine", "metric", *STATISTICS),
        error_rows(points.table, ["framework", "metric"], STATISTICS),
    )
    click.echo(f"written: {write_operators_report(points, output_dir, by_peer)}", err=True)
    if errors is not None:
        write_operators_ranges(points, errors)
        click.echo(f"written: {errors}", err=True)
