"""``batchsim hardware``: the GPUs and models that are known, or all that is known of one."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import click

from batchsim.cli.output import echo_json, echo_table
from batchsim.errors import ConfigError, nearest

if TYPE_CHECKING:
    from batchsim.specs import GPUSpec, ModelSpec
    from batchsim.specs.prices import ListPrice


@click.command()
@click.argument("name", required=False, metavar="[NAME_OR_FILE]")
@click.option(
    "--measured", metavar="MODEL", help="List where aiconfigurator-core has measured times of a model."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def hardware(name: str | None, measured: str | None, as_json: bool) -> None:
    """List the GPUs and models that are known; or print one in full, as the JSON file that describes it.

    So `batchsim hardware h100 > mine.json` begins a GPU of your own, for --set cluster.gpu=mine.json.
    NAME_OR_FILE may be a name of Hugging Face or of a driver, or a config.json of Hugging Face.

    Then what NVIDIA measured, by the extra that latency.family = "aiconfigurator" takes its times from.
    """
    from batchsim.latency.profiles.aiconfigurator import is_installed
    from batchsim.specs import load_gpu, load_model, load_spec
    from batchsim.specs.names import shipped
    from batchsim.specs.prices import list_prices

    if measured is not None:
        _echo_measured(measured, as_json)
        return
    if name is not None:
        echo_json(_fields(load_spec(name)))
        return
    gpus, models = [load_gpu(one) for one in shipped("gpus")], [load_model(one) for one in shipped("models")]
    prices = list_prices()
    if as_json:
        echo_json(
            {
                "gpus": {one.name: _fields(one) for one in gpus},
                "prices": {name: one._asdict() for name, one in prices.items()},
                "models": {one.name: _fields(one) | _derived(one) for one in models},
                **({"aiconfigurator": _of_package()} if is_installed() else {}),
            }
        )
        return
    echo_table("GPUs (cluster.gpu)", _GPU_COLUMNS, [_gpu_row(one, prices.get(one.name)) for one in gpus])
    sellers = dict.fromkeys(f"{one.seller}, {one.date}" for one in prices.values())
    click.echo(f"list prices: {'; '.join(sellers)} (--json says where they were read)")
    echo_table("Models (cluster.model)", _MODEL_COLUMNS, [_model_row(one) for one in models])
    _echo_package()


def _echo_package() -> None:
    from batchsim.latency.profiles.aiconfigurator import (
        INSTALL,
        is_installed,
        known,
        package_version,
        support,
    )

    if not is_installed():
        click.echo(f"Measured operators of more GPUs and models: {INSTALL}.")
        return
    tried = Counter((row["system"], row["backend"], row["version"], row["source"]) for row in support())
    rows = [
        (
            system,
            backend,
            f"{number} ({slot})",
            *(f"{tried[system, backend, number, source] or '-'}" for source in _SOURCES),
        )
        for system, backends in known().versions.items()
        for backend, slots in backends.items()
        for slot, number in slots.items()
    ]
    echo_table(f"aiconfigurator-core {package_version()} (latency.system, .backend, .version)", _TRIED, rows)
    click.echo(f"latency.model: {', '.join(known().models)}")


def _echo_measured(model: str, as_json: bool) -> None:
    from batchsim.latency.profiles.aiconfigurator import support

    rows = [row for row in support() if row["model"] == model]
    if not rows:
        raise ConfigError(
            f"aiconfigurator-core's authors tried no model {model!r}; "
            f"{nearest(model, sorted({row['model'] for row in support()}))}"
        )
    if as_json:
        echo_json({"model": model, "tried": [dict(row) for row in rows]})
        return
    columns = ("system", "backend", "version", "source")
    echo_table(f"{model}: times are", columns, [tuple(row[name] for name in columns) for row in rows])


def _of_package() -> dict[str, Any]:
    from batchsim.latency.profiles.aiconfigurator import known, package_version

    return {"version": package_version(), **known()._asdict()}


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


_SOURCES = ("measured", "transferred", "none")
_TRIED = ("system", "backend", "version", "models measured", "transferred", "without times")
_GPU_COLUMNS = (
    "name",
    "memory (GiB)",
    "bandwidth (GB/s)",
    "bf16 (TFLOP/s)",
    "fp8 (TFLOP/s)",
    "fp4 (TFLOP/s)",
    "link (GB/s)",
    "power (W)",
    "list price (USD/hour)",
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


def _gpu_row(gpu: GPUSpec, price: ListPrice | None) -> tuple[str, ...]:
    return (
        gpu.name,
        _in(gpu.memory_bytes, 2**30, 1),
        _in(gpu.memory_bytes_per_s, 1e9, 0),
        _in(gpu.flop_per_s, 1e12, 1),
        _in(gpu.fp8_flop_per_s, 1e12, 1),
        _in(gpu.fp4_flop_per_s, 1e12, 1),
        _in(gpu.link_bytes_per_s, 1e9, 0),
        _in(gpu.power_watts, 1, 0),
        "-" if price is None else f"{price.usd_per_gpu_hour:g}",
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
