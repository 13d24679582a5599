"""What a run costs: GPU hours and dollars, and the energy of its GPUs.

Costs and joules of a token are of a window, and divide what all GPUs take in it, idle or busy, by the tokens
whose throughput is given for it: a token costs price x GPUs / throughput.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from batchsim.metrics.cluster.fleet import paid_s
from batchsim.metrics.system import Throughput, Window, inside_s, ratio, running_s
from batchsim.metrics.weighted import Floats
from batchsim.records import Columns, Records, arrays

_HOUR_S = 3600.0


class Power(NamedTuple):
    """Watts that one GPU draws, by what its replica does; ``idle`` is None where nobody knows."""

    prefill: float
    decode: float
    idle: float | None = None


@dataclass(frozen=True, slots=True)
class Expense:
    """What it takes to keep a replica: its GPUs, and what each costs and draws; None where that is not known.

    Attributes
    ----------
    gpu
        Name of its spec.
    num_gpus
        A fraction, where they are there for a part of the time.
    most_watts
        Of a GPU: what its maker lets it draw for long.
    """

    gpu: str
    num_gpus: float
    usd_per_gpu_hour: float | None = None
    power: Power | None = None
    most_watts: float | None = None


def usd_per_hour(expenses: Sequence[Expense]) -> float:
    """Dollars that all replicas cost in an hour; NaN where the price of any is not known."""
    return _total((one.num_gpus, one.usd_per_gpu_hour) for one in expenses)


def cost_of_run(expenses: Sequence[Expense], records: Records, run: Window) -> dict[str, float]:
    """GPU hours and dollars of the run: of each replica, while it is paid for."""
    hours, paid = (run.end_s - run.start_s) / _HOUR_S, _paid(expenses, records, run)
    return {
        "gpu_hours": _total((one.num_gpus, 1.0) for one in paid) * hours,
        "usd_per_hour": usd_per_hour(paid),
        "usd_total": usd_per_hour(paid) * hours,
    }


def cost_of_tokens(
    expenses: Sequence[Expense], records: Records, done: Throughput, window: Window
) -> dict[str, float]:
    """Dollars and joules of a token of the window, whose throughput is ``done``; NaN where not known.

    ``joules_per_output_token`` is the energy of all GPUs, prompts included, over output tokens;
    ``..._at_most`` is what it would be if every GPU drew, all the time, the most that its data sheet allows.
    """
    paid = _paid(expenses, records, window)
    usd_per_s = usd_per_hour(paid) / _HOUR_S
    most_watts = _total((one.num_gpus, one.most_watts) for one in paid)
    return {
        "usd_per_million_output_tokens": 1e6 * ratio(usd_per_s, done.output_tokens_per_s),
        "usd_per_million_tokens": 1e6 * ratio(usd_per_s, done.total_tokens_per_s),
        "joules_per_output_token": ratio(mean_watts(expenses, records, window), done.output_tokens_per_s),
        "joules_per_output_token_at_most": ratio(most_watts, done.output_tokens_per_s),
    }


def mean_watts(expenses: Sequence[Expense], records: Records, window: Window) -> float:
    """Watts of all GPUs together, averaged over the window; NaN where those of any replica are not known.

    An iteration draws what prefills draw if it holds prompt tokens, else what decodes draw; a batch that runs
    to completion what prefills draw up to its first token. Idle seconds, while a replica is paid for, count
    where their watts are known.
    """
    watts = [
        [one.num_gpus * watts for watts in (one.power.prefill, one.power.decode, one.power.idle or 0.0)]
        for one in expenses
        if one.power is not None
    ]
    if not watts or len(watts) < len(expenses):
        return math.nan
    of_replica = np.array(watts)
    table = arrays(records.iterations if records.is_iteration_level else records.batches)
    prefill_s, decode_s = (_of_iterations if records.is_iteration_level else _of_batches)(table, window)
    prefill, decode, idle = of_replica[np.asarray(table["gpu_id"], dtype=np.int64)].T
    above_idle = prefill_s * (prefill - idle) + decode_s * (decode - idle)
    idle_watts = sum(
        one.num_gpus * (one.power.idle or 0.0) for one in _paid(expenses, records, window) if one.power
    )
    return float(idle_watts + above_idle.sum() / window.length_s)


def _of_iterations(iterations: Columns[Any], window: Window) -> tuple[Floats, Floats]:
    """Seconds of the window in which each span computed prompts, and in which it did not."""
    busy_s = running_s(iterations, window)
    is_prefill = np.asarray(iterations["prefill_tokens"]) > 0
    return np.where(is_prefill, busy_s, 0.0), np.where(is_prefill, 0.0, busy_s)


def _of_batches(batches: Columns[Any], window: Window) -> tuple[Floats, Floats]:
    """The same of batches; NaN where it is not known when the first token came."""
    start_s, first_token_s, finish_s = (batches[name] for name in ("start_s", "first_token_s", "finish_s"))
    return inside_s(start_s, first_token_s, window), inside_s(first_token_s, finish_s, window)


def _paid(expenses: Sequence[Expense], records: Records, window: Window) -> Sequence[Expense]:
    """The same with fewer GPUs, as their replicas are paid for in a part of the window."""
    if not expenses or not len(records.replica_states):
        return expenses
    shares = paid_s(records, window) / window.length_s
    return [
        replace(one, num_gpus=one.num_gpus * share)
        for one, share in zip(expenses, shares.tolist(), strict=True)
    ]


def _total(terms: Iterable[tuple[float, float | None]]) -> float:
    """Sum of products; NaN of nothing, or where a factor is not known."""
    known = [num * (math.nan if each is None else each) for num, each in terms]
    return sum(known) if known else math.nan
