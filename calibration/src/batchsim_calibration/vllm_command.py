"""``batchsim-calibrate vllm``, and the options that it shares with ``replay-vllm``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from batchsim_calibration.measure_command import grid_options, progress, say, tell_outcome
from batchsim_calibration.vllm_engine.engine import VllmSettings
from batchsim_calibration.vllm_engine.measure import VllmGrid, measure_vllm

_MODEL_OPTIONS = (
    click.argument("model", metavar="MODEL_OR_CONFIG", default="tiny"),
    click.option(
        "--random-weights", is_flag=True, help="Weights that nobody has trained: vLLM's dummy ones."
    ),
    click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True),
    click.option(
        "--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="[default: bf16 on CUDA, else fp32]"
    ),
    click.option("--block-size", type=click.IntRange(min=1), metavar="N", help="[default: CPU 128, CUDA 16]"),
    click.option("--enforce-eager", is_flag=True, help="No compilation, no CUDA graphs."),
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says which engine is meant."""
    for option in reversed(_MODEL_OPTIONS):
        command = option(command)
    return command


def settings_of(given: dict[str, Any], **more: Any) -> VllmSettings:
    """Take the options of `model_options` out of those given."""
    names = ("model", "random_weights", "device", "dtype", "block_size", "enforce_eager")
    return VllmSettings(**{name: given.pop(name) for name in names}, **more)


@click.command()
@model_options
@grid_options
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    show_default="here",
)
@click.option("--name", metavar="STEM", help="Name of the table.  [default: model_vllmVERSION_device_dtype]")
@click.option("--overwrite", is_flag=True, help="Replace a table that is there.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the order of points, and of prompts."
)
def vllm(output_dir: Path, name: str | None, overwrite: bool, seed: int, **given: Any) -> None:
    """Measure a calibration table of the vLLM that is installed here.

    MODEL_OR_CONFIG is a shipped shape, a config.json (both with random weights), or a Hugging Face model by
    name or path. An interrupted run goes on where it stopped when the same command is given again.
    """
    settings = settings_of(given, seed=seed)
    with progress() as on_progress:
        path, outcome = measure_vllm(
            settings,
            VllmGrid(**given),
            output_dir,
            name=name,
            overwrite=overwrite,
            say=say,
            on_progress=on_progress,
        )
    tell_outcome(outcome)
    click.echo(str(path))
