"""The part of a run's configuration that is money: what a GPU costs by the hour."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from batchsim.config.section import Section
from batchsim.specs.names import known_name

#: What a GPU can cost by the hour, in US dollars: prices outside are in cents, or of a whole server.
LEAST_USD, MOST_USD = 0.01, 50.0


def _prices(given: Any) -> Any:
    """Prices by the names of specs where they are given by those of drivers; refuses what is no price."""
    if not isinstance(given, dict):
        if given is not None and not _is_price(given):
            raise ValueError(_NEEDED)
        return given
    for name, price in given.items():
        if not _is_price(price):
            raise ValueError(f"{name} is {price!r:.60}; {_NEEDED}")
    named = {known_name(str(name), "gpus") or str(name): price for name, price in given.items()}
    if len(named) < len(given):
        raise ValueError(f"{', '.join(map(str, given))} name a GPU twice; one price of each is needed")
    return named


_NEEDED = (
    f"the price of one GPU for an hour is needed, in US dollars (not cents), from {LEAST_USD:g} to "
    f"{MOST_USD:g}, or a table of prices by GPU"
)


def _is_price(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and LEAST_USD <= value <= MOST_USD


class CostConfig(Section):
    """What the hardware costs."""

    usd_per_gpu_hour: Annotated[float | dict[str, float] | None, BeforeValidator(_prices)] = Field(
        None,
        description="of every GPU; or a table by name, where others keep their list price; left out: list "
        "prices of `batchsim hardware`",
    )
