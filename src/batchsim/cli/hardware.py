"""``batchsim hardware``: the GPUs and models that are known, or all that is known of one."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import click

from batchsim.cli.output import echo_json, echo_table

if TYPE_CHECKING:
    from batchsim.specs import GPUSpec, ModelSpec


@click.command()
@click.argument("name", required=False, metavar="[NAME_OR_FILE]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def hardware(name: str | None, as_json: bool) -> None:
    """List the GPUs and models that are known; or print one in full, as the JSON file that describes it.

    So `batchsim hardware h100 > mine.json` begins a GPU of your own, for --set cluster.gpu=mine.json.
    NAME_OR_FILE may be a name of Hugging Face or of a driver, or a config.json of Hugging Face.
    """
    from batchsim.specs import load_gpu, load_model, load_spec
    from batchsim.specs.names import shipped

    if name is not None:
        echo_json(_fields(load_spec(name)))
        return
    gpus, models = [load_gpu(one) for one in shipped("gpus")], [load_model(one) for one in shipped("models")]
    if as_json:
        echo_json(
            {
                "gpus": {one.name: _fields(one) for one in gpus},
                "models": {one.name: _fields(one) | _derived(one) for one in models},
            }
        )
        return
    echo_table("GPUs (cluster.gpu)", _GPU_COLUMNS, [_gpu_row(one) for one in gpus])
    echo_table("Models (cluster.model)", _MODEL_COLUMNS, [_model_row(one) for one in models])


def _fields(spec: GPUSpec | ModelSpec) -> dict[str, Any]:
    """What a file of it holds, but for what it does not have."""
    absent = {
        one.name for one in fields(spec) if one.default in (None, False) and not getattr(spec, one.name)
    }
    return {key: value for key, value in asdict(spec).items() if key not in absent}


def _derived(model: ModelSpec) -> dict[str, int]:
    return {
        "num_parameters": model.num_parameters,
        "num_multiplied_parameters": model.num_multiplied_parameters,
        "weight_bytes": model.weight_bytes,
        "kv_bytes_per_token": model.kv_bytes_per_token,
    }


_GPU_COLUMNS = (
    "name",
    "memory (GiB)",
    "bandwidth (GB/s)",
    "bf16 (TFLOP/s)",
    "fp8 (TFLOP/s)",
    "fp4 (TFLOP/s)",
    "link (GB/s)",
)
_MODEL_COLUMNS = (
    "name",
    "parameters (10^9)",
    "met by a token (10^9)",
    "weights (GiB)",
    "layers",
    "KV bytes per token",
    "longest sequence",
)


def _gpu_row(gpu: GPUSpec) -> tuple[str, ...]:
    return (
        gpu.name,
        _in(gpu.memory_bytes, 2**30, 1),
        _in(gpu.memory_bytes_per_s, 1e9, 0),
        _in(gpu.flop_per_s, 1e12, 1),
        _in(gpu.fp8_flop_per_s, 1e12, 1),
        _in(gpu.fp4_flop_per_s, 1e12, 1),
        _in(gpu.link_bytes_per_s, 1e9, 0),
    )


def _model_row(model: ModelSpec) -> tuple[str, ...]:
    return (
        model.name,
        _in(model.num_parameters, 1e9, 2),
        _in(model.num_multiplied_parameters, 1e9, 2),
        _in(model.weight_bytes, 2**30, 1),
        f"{model.num_layers}",
        f"{model.kv_bytes_per_token:,}",
        _in(model.max_model_len, 1, 0),
    )


def _in(value: float | None, unit: float, digits: int) -> str:
    return "-" if value is None else f"{value / unit:,.{digits}f}"
