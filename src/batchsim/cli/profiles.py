"""``batchsim import-profile``: what others measured, as a latency file of ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from batchsim.cli.options import INPUT_FILE, OUTPUT_PATH
from batchsim.cli.output import echo_json, echo_table, warn
from batchsim.errors import ConfigError
from batchsim.latency.choices import Family, ProfileKind

if TYPE_CHECKING:
    from batchsim.latency.store import Model


@click.command(name="import-profile")
@click.argument("source", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("-o", "--output-file", type=OUTPUT_PATH, default=Path("latency.json"), show_default=True)
@click.option(
    "--kind", type=click.Choice(get_args(ProfileKind)), help="Left out: by what the source looks like."
)
@click.option("--model-config", type=INPUT_FILE, help="config.json of the model, for operators.")
@click.option("--model", metavar="NAME", help="Which model of the file.")
@click.option("--hardware", metavar="NAME", help="Which hardware of the file.")
@click.option("--tensor-parallel", type=click.IntRange(1), default=1, show_default=True, metavar="N")
@click.option("--expert-parallel", type=click.IntRange(1), default=1, show_default=True, metavar="N")
@click.option("--pipeline-parallel", type=click.IntRange(1), default=1, show_default=True, metavar="N")
@click.option("--data-parallel", type=click.IntRange(1), default=1, show_default=True, metavar="N")
@click.option("--system", metavar="NAME", help="GPU as aiconfigurator-core names it, e.g. h200_sxm.")
@click.option(
    "--backend",
    default="vllm",
    show_default=True,
    metavar="NAME",
    help="vllm, sglang or trtllm, of the same.",
)
@click.option(
    "--backend-version",
    default="current",
    show_default=True,
    metavar="V",
    help="current, previous, next, or a number.",
)
@click.option("--link-bytes-per-s", type=float, metavar="X", help="Rate of the link between the GPUs.")
@click.option("--link-latency-s", type=float, default=0.0, show_default=True, metavar="S")
@click.option(
    "--family",
    type=click.Choice(["phase", "linear", "iteration_table"]),
    default="phase",
    show_default=True,
    help="What to fit to splitwise-sim's table.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def import_profile(
    source: Path | None,
    output_file: Path,
    kind: ProfileKind | None,
    model_config: Path | None,
    model: str | None,
    hardware: str | None,
    tensor_parallel: int,
    expert_parallel: int,
    pipeline_parallel: int,
    data_parallel: int,
    system: str | None,
    backend: str,
    backend_version: str,
    link_bytes_per_s: float | None,
    link_latency_s: float,
    family: Family,
    as_json: bool,
) -> None:
    """Make a latency file of an operator profile, of DistServe's coefficients or of splitwise-sim's table.

    Or, with --kind aiconfigurator and no SOURCE, of what NVIDIA measured of a --model on a --system.
    """
    from batchsim.files import check_file
    from batchsim.latency.profiles.aiconfigurator import SetUp, aiconfigurator_latency
    from batchsim.latency.profiles.importing import (
        Wanted,
        import_distserve,
        import_operators,
        import_splitwise,
        kind_of,
    )
    from batchsim.latency.store import save_latency

    check_file(output_file, inputs=[source, model_config])
    if (kind == "aiconfigurator") != (source is None):
        raise ConfigError(
            "a folder or file with a profile is needed, or --kind aiconfigurator"
            if source is None
            else f"--kind aiconfigurator is of no file; leave {source.name} out"
        )
    wanted = Wanted(model, hardware, tensor_parallel)
    imported: Model
    if source is None:
        imported = aiconfigurator_latency(
            SetUp(
                _needed("--system", system),
                _needed("--model", model),
                backend,
                backend_version,
                tensor_parallel,
                pipeline_parallel,
                expert_parallel,
                data_parallel,
            )
        )
    elif (kind := kind or kind_of(source)) == "operators":
        imported = import_operators(
            source,
            model_config,
            wanted,
            expert_parallel=expert_parallel,
            link_bytes_per_s=link_bytes_per_s,
            link_latency_s=link_latency_s,
        )
    elif model_config is not None:
        raise ConfigError(f"--model-config is for operators; {source.name} is of kind {kind}")
    elif kind == "distserve":
        imported = import_distserve(source, wanted)
    else:
        imported = import_splitwise(source, wanted, family)
    save_latency(imported, output_file)
    info = imported.info
    notices = [info.details.get(name) for name in ("notices", "warnings", "low_fidelity")]
    if as_json:
        echo_json({"name": info.name, "provenance": info.provenance, "details": info.details})
    else:
        shown = ("gpu", "model", "engine", "tensor_parallel", "expert_parallel", "num_layers")
        rows = [(key.replace("_", " "), str(info.details[key])) for key in shown if info.details.get(key)]
        echo_table(f"{info.name} ({info.provenance})", ("", "value"), rows)
    for sentence in (one for some in notices if isinstance(some, list) for one in some):
        warn(sentence)
    click.echo(f"written: {output_file}", err=True)


def _needed(option: str, value: str | None) -> str:
    if value is None:
        raise ConfigError(f"--kind aiconfigurator needs {option}")
    return value
