"""``batchsim roofline-error``: the roofline, without a calibration, against published measurements."""

from __future__ import annotations

from pathlib import Path

import click

from batchsim.cli.options import ERRORS_HELP, INPUT_FILE, OUTPUT_PATH
from batchsim.cli.output import echo_table


@click.command(name="roofline-error")
@click.argument("tables", type=INPUT_FILE, nargs=-1, required=True)
@click.option("-o", "--output-dir", type=OUTPUT_PATH, default=Path("docs"), show_default=True)
@click.option("--errors", "errors_file", type=OUTPUT_PATH, help=ERRORS_HELP)
def roofline_error(tables: tuple[Path, ...], output_dir: Path, errors_file: Path | None) -> None:
    """Predict published measurements with the default roofline; write roofline.md and a picture.

    TABLES are CSV files of static batches (as LLM-Inference-Bench has them) or of closed loops (as
    aiconfigurator has them), known by their columns. Rows without a prediction are counted.
    """
    from batchsim.figures.measured.roofline import plot_roofline_errors
    from batchsim.validation.roofline.report import (
        STATISTICS,
        predict_tables,
        write_roofline_ranges,
        write_roofline_report,
    )
    from batchsim.validation.tables import error_rows, skipped_rows

    errors = predict_tables(tables)
    echo_table(
        "Error of the default roofline, predicted / measured - 1",
        ("metric", "GPU", *STATISTICS),
        error_rows(errors.points, ["metric", "gpu"], STATISTICS),
    )
    echo_table(
        f"Left out: {errors.num_skipped:,} of {errors.num_rows:,} rows",
        ("why", "rows", "which"),
        skipped_rows(errors.skipped),
    )
    for path in write_roofline_report(errors, output_dir, plot_roofline_errors):
        click.echo(f"written: {path}", err=True)
    if errors_file is not None:
        write_roofline_ranges(errors, errors_file)
        click.echo(f"written: {errors_file}", err=True)
