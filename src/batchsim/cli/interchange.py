"""``batchsim export``: a saved run in the files of other tools' benchmarks."""

from __future__ import annotations

from pathlib import Path

import click

from batchsim.cli.options import OUTPUT_PATH
from batchsim.cli.output import notice


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
