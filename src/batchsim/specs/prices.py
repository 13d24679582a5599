"""What GPUs cost by the hour where the user says nothing: list prices of one seller, which compare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class ListPrice(NamedTuple):
    """A price that was published: how much, whose, when, and where it was read."""

    usd_per_gpu_hour: float
    seller: str
    date: str
    source: str


@cache
def list_prices() -> Mapping[str, ListPrice]:
    """The prices that ship, by the GPU's name; a GPU whose price is not sure has none."""
    text = (files("batchsim.specs") / "prices.json").read_text(encoding="utf-8")
    return {gpu: ListPrice(**price) for gpu, price in json.loads(text).items()}
