"""Who is served: requests, times and limits by tenant and by class, and how evenly service is shared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from batchsim.config import SloConfig
from batchsim.metrics import requests as per_request
from batchsim.metrics.load import Arrays
from batchsim.metrics.system import Window, finishes_in, inside, known, mean, slo_attainment
from batchsim.metrics.weighted import Floats
from batchsim.records import ABANDONED, FINISHED, REFUSED, TENANT_COLUMNS, empty, has_status, rows, table

#: By what requests are told apart: the column that says it.
_KINDS = {"tenant": "tenant", "class": "slo_class"}


class Tariff(NamedTuple):
    """What a token of a prompt and one of an answer count as service, and what each tenant is entitled to.

    `policies.fair_share.FairShare` has the same; these are its defaults.
    """

    prompt_weight: float = 1.0
    output_weight: float = 2.0
    weights: Mapping[str, float] = {}


PLAIN_TARIFF = Tariff()


def tenant_table(
    requests: Arrays, slo: SloConfig, num_warmup: int, window: Window, tariff: Tariff
) -> pd.DataFrame:
    """Make a row per tenant and per class, see `records.TENANT_COLUMNS`; none where requests have neither.

    Times and attainment are of the requests after the first ``num_warmup``, each by its own limits; service
    and throughput are of the window.
    """
    if not any(name in requests for name in _KINDS.values()):
        return empty(TENANT_COLUMNS)
    columns: dict[str, list[Any]] = {name: [] for name in TENANT_COLUMNS}
    for kind, name in _KINDS.items():
        if name not in requests:
            continue
        codes, labels = pd.factorize(np.asarray(requests[name]), sort=True)
        of_each = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        parts = [
            (str(label), {column: values[own] for column, values in requests.items()})
            for label, own in zip(labels, of_each, strict=True)
        ]
        num_cut = np.bincount(codes[:num_warmup], minlength=len(parts))
        weights = np.array(
            [tariff.weights.get(label, 1.0) if kind == "tenant" else 1.0 for label, _ in parts]
        )
        service = np.array([_service(part, window, tariff) for _, part in parts])
        demand = np.array([_demand(part, window, tariff) for _, part in parts])
        fair = max_min_fair(float(service.sum()), demand, weights)
        for index, (label, part) in enumerate(parts):
            row = _times(rows(part, slice(num_cut[index], None)), slo)
            row |= {
                "kind": kind,
                "name": label,
                "num_requests": len(part["status"]),
                "num_finished": np.count_nonzero(has_status(part, FINISHED)),
                "request_throughput_per_s": np.count_nonzero(finishes_in(part, window)) / window.length_s,
                "output_throughput_tokens_per_s": _output_tokens(part, window).sum() / window.length_s,
                "service_tokens": service[index],
                "demand_tokens": demand[index],
                "fair_tokens": fair[index],
            }
            for column, values in columns.items():
                values.append(row[column])
    return table(TENANT_COLUMNS, columns)


def tenant_summary(tenants: pd.DataFrame) -> dict[str, float]:
    """The few numbers of `tenant_table` that stand in a summary; nothing where there are no tenants.

    ``jain_index``: (sum of x)^2 / (n * sum of x^2) over the n tenants, with x the service of each over what
    would have been max-min fair: 1 if it is, 1/n if one has all of what n should have.
    """
    own = tenants[tenants["kind"] == "tenant"]
    if own.empty:
        return {}
    is_entitled = own["fair_tokens"] > 0
    shares = (own["service_tokens"] / own["fair_tokens"])[is_entitled].to_numpy()
    return {
        "num_tenants": len(own),
        "jain_index": jain_index(shares),
        "worst_tenant_slo_attainment": float(own["slo_attainment"].min()),
    }


def jain_index(shares: Floats) -> float:
    """Jain's index of fairness (DEC-TR-301, 1984) of what each has; NaN of nothing."""
    squares = float(shares @ shares)
    return float(shares.sum()) ** 2 / (len(shares) * squares) if squares > 0 else math.nan


def max_min_fair(total: float, demand: Floats, weights: Floats) -> Floats:
    """Share a total out so that nobody gets more than is asked for, the rest in proportion to the weights.

    Shape as that of the demands, whose sum is at least the total.
    """
    order = np.argsort(demand / weights, kind="stable")
    fair, left, left_weight = np.zeros(len(demand)), total, float(weights.sum())
    for index in order:  # who wants least by weight is satisfied first, if anybody is
        fair[index] = min(demand[index], left * weights[index] / left_weight)
        left, left_weight = max(left - fair[index], 0.0), left_weight - weights[index]
    return fair


def _times(covered: Arrays, slo: SloConfig) -> dict[str, Any]:
    is_finished = has_status(covered, FINISHED)
    finished = rows(covered, is_finished)
    row: dict[str, Any] = {"slo_attainment": slo_attainment(covered, slo)}
    for name, metric in per_request.TIMES.items():
        times_s = known(np.asarray(metric(finished)))
        row[f"{name}_mean_s"] = mean(times_s)
        row[f"{name}_p99_s"] = float(np.percentile(times_s, 99)) if len(times_s) else math.nan
    return row


def _service(requests: Arrays, window: Window, tariff: Tariff) -> float:
    """Weighted tokens in the window: a prompt counts when it is scheduled."""
    begins = inside(requests["scheduled_s"], window)
    prompts = np.asarray(requests["prompt_tokens"])[begins].sum()
    return float(
        tariff.prompt_weight * prompts + tariff.output_weight * _output_tokens(requests, window).sum()
    )


def _demand(requests: Arrays, window: Window, tariff: Tariff) -> float:
    """Weighted tokens that were asked for by the end of the window, less those served before it."""
    is_asked = (np.asarray(requests["arrival_s"]) <= window.end_s) & ~has_status(requests, REFUSED)
    is_asked &= ~(has_status(requests, ABANDONED) & (np.asarray(requests["arrival_s"]) < window.start_s))
    asked = rows(requests, is_asked)
    before = Window(-math.inf, math.nextafter(window.start_s, -math.inf))
    tokens = tariff.prompt_weight * np.asarray(asked["prompt_tokens"])
    tokens = tokens + tariff.output_weight * np.asarray(asked["output_tokens"])
    return float(tokens.sum()) - _service(asked, before, tariff)


def _output_tokens(requests: Arrays, window: Window) -> Floats:
    """Tokens of each answer in the window, spread evenly from its first token to its last."""
    finish_s = np.asarray(requests["finish_s"])
    first_s = np.asarray(requests["first_token_s"])
    first_s = np.where(np.isnan(first_s), requests["scheduled_s"], first_s)
    length_s = finish_s - first_s
    inside_s = np.minimum(finish_s, window.end_s) - np.maximum(first_s, window.start_s)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(length_s > 0, np.clip(inside_s / length_s, 0.0, 1.0), inside(finish_s, window))
    tokens: Floats = np.nan_to_num(share) * np.asarray(requests["output_tokens"])
    return tokens
