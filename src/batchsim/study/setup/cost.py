"""From a configuration to what its GPUs cost and draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from batchsim.config import CostConfig
from batchsim.errors import ConfigError, nearest
from batchsim.latency.base import LatencyInfo
from batchsim.metrics.cost import Expense, Power
from batchsim.specs import GPUSpec
from batchsim.specs.names import shipped
from batchsim.specs.prices import list_prices

#: What a GPU can draw, in watts: numbers outside are in other units.
_LEAST_WATTS, _MOST_WATTS = 1.0, 1e4


def expenses(cost: CostConfig, replicas: Iterable[tuple[GPUSpec, int, LatencyInfo]]) -> list[Expense]:
    """What each replica takes: of so many GPUs, with the power that its latency model was measured at.

    Raises
    ------
    ConfigError
        For a price of a GPU that neither ships nor is one of these, and for power that is none.
    """
    taken = [
        Expense(gpu.name, num_gpus, gpu_usd_per_hour(cost, gpu.name), _power(latency), gpu.power_watts)
        for gpu, num_gpus, latency in replicas
    ]
    check_priced(cost, [one.gpu for one in taken])
    return taken


def check_priced(cost: CostConfig, gpus: Iterable[str]) -> None:
    """Raise `ConfigError` for a price of a GPU that neither ships nor is one of these."""
    known = dict.fromkeys([*shipped("gpus"), *gpus])
    for name in cost.usd_per_gpu_hour if isinstance(cost.usd_per_gpu_hour, Mapping) else ():
        if name not in known:
            raise ConfigError(f"cost.usd_per_gpu_hour: unknown GPU {name!r:.60}; {nearest(name[:60], known)}")


def gpu_usd_per_hour(cost: CostConfig, gpu: str) -> float | None:
    """What a GPU of this name costs by the hour: as configured, else its list price; None where not known."""
    return _quote(cost, gpu)[0]


def describe_prices(cost: CostConfig, gpus: Iterable[str]) -> str | None:
    """What each of these GPUs costs and who says so, in words; None where no price is known."""
    quotes = {gpu: _quote(cost, gpu) for gpu in gpus}
    if all(usd is None for usd, _ in quotes.values()):
        return None
    return ", ".join(
        f"{gpu} of unknown price" if usd is None else f"{gpu} at {usd:g} USD/hour{said}"
        for gpu, (usd, said) in quotes.items()
    )


def _quote(cost: CostConfig, gpu: str) -> tuple[float | None, str]:
    """Dollars of a GPU for an hour, as configured or else its list price; and whose that is."""
    given = cost.usd_per_gpu_hour
    usd = given.get(gpu) if isinstance(given, Mapping) else given
    listed = list_prices().get(gpu)
    if usd is not None or listed is None:
        return usd, ""
    return listed.usd_per_gpu_hour, f" (list price of {listed.seller}, {listed.date})"


def _power(latency: LatencyInfo) -> Power | None:
    """Watts of a GPU by phase, as the details of a latency file have them."""
    given = latency.details.get("power_watts")
    if given is None:
        return None
    fields: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    power = Power(*(fields.get(name) for name in Power._fields))  # type: ignore[arg-type]
    known = [watts for watts in power if watts is not None]
    if power[:2].count(None) or not all(map(_is_power, known)):
        raise ConfigError(
            f"latency model {latency.name}: details.power_watts is {given!r:.80}; watts of a GPU are needed, "
            f'as {{"prefill": 650, "decode": 400, "idle": null}}, from {_LEAST_WATTS:g} to {_MOST_WATTS:g}'
        )
    return power


def _is_power(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and _LEAST_WATTS <= value <= _MOST_WATTS
    )
