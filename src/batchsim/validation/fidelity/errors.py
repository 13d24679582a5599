"""How far a prediction is from a measured run, and how far another simulator's is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from batchsim.errors import ConfigError
from batchsim.validation.fidelity.engine_run import MeasuredRun
from batchsim.validation.fidelity.predict import Prediction

#: What a TTFT or E2E time counts from: the engine's queue, which it looks at between iterations only, or the
#: client.
BASES: Mapping[str, str] = {"queued": "queued_s", "arrival": "arrival_s"}

_STATISTICS = ("mean", "p50", "p95", "p99")
AGGREGATES = (
    *(f"{metric}_{statistic}_s" for metric in ("ttft", "tpot", "e2e") for statistic in _STATISTICS),
    "output_tokens_per_s",
)


def aggregates(requests: pd.DataFrame, basis: str) -> dict[str, float]:
    """TTFT, TPOT and E2E time as mean, P50, P95 and P99, and output tokens/s: `AGGREGATES`.

    TPOT is over requests with two tokens and more; the rate is over the time from the first request's start
    to the last token.
    """
    start_s = requests[BASES[basis]].to_numpy(dtype=np.float64)
    first_s, last_s = requests["first_token_s"].to_numpy(), requests["last_token_s"].to_numpy()
    tokens = requests["output_tokens"].to_numpy(dtype=np.float64)
    several = tokens > 1
    values: dict[str, float] = {}
    for metric, sample in (
        ("ttft", first_s - start_s),
        ("tpot", (last_s - first_s)[several] / (tokens[several] - 1)),
        ("e2e", last_s - start_s),
    ):
        sample = sample if len(sample) else np.array([np.nan])
        numbers = (sample.mean(), *np.percentile(sample, (50, 95, 99)))
        values |= {
            f"{metric}_{name}_s": float(number) for name, number in zip(_STATISTICS, numbers, strict=True)
        }
    values["output_tokens_per_s"] = float(tokens.sum() / (last_s.max() - start_s.min()))
    return values


def compare_with_measured(run: MeasuredRun, prediction: Prediction) -> dict[str, Any]:
    """Signed relative errors of the aggregates on both bases, ours and the peer's, ready for JSON.

    Over the requests that the engine finished and the replay too. A basis that was not measured is left out.

    Raises
    ------
    ConfigError
        If the workload and the run have no request in common.
    """
    ours = prediction.requests
    report: dict[str, Any] = {
        "run": run.name,
        "model": run.model,
        "gpu": run.gpu,
        "settings": {
            name: value
            for name, value in asdict(prediction.settings).items()
            if name not in ("notices", "extra_s")
        },
        "notices": list(prediction.settings.notices),
        "latency": {
            "family": prediction.family,
            "name": prediction.latency.info.name,
            "provenance": prediction.latency.info.provenance,
            "details": prediction.latency.info.details,
        },
        "workload": prediction.result.manifest["workload"],
        "num_predicted": len(ours),
        "num_refused": int(prediction.result.summary["num_refused"]),
        "num_preemptions": int(prediction.result.summary["num_preemptions"]),
        "num_iterations": int(prediction.result.summary["iterations_total"]),
        "num_extrapolated_iterations": int(prediction.result.summary["num_extrapolated_iterations"]),
        "simulation_wall_s": prediction.wall_s,
        "num_compared": 0,
        "peer": run.peer_name or None,
        "bases": {},
    }
    if run.requests is None:
        report["notices"].append("no measured_requests.csv: predicted only, nothing to compare with")
        return report
    shared = set(run.requests["request_id"]) & set(ours["request_id"])
    if not shared:
        raise ConfigError(
            f"{run.name}: no measured request has an id of the workload, e.g. "
            f"{run.requests['request_id'].iloc[0]!r} against {ours['request_id'].iloc[0]!r}; the "
            "workload that was sent in the run is needed"
        )
    measured, predicted = _rows(run.requests, shared), _rows(ours, shared)
    peer = None if run.peer is None else run.peer[run.peer["request_id"].isin(shared)]
    if peer is not None and peer.empty:
        peer = None
    report["num_compared"] = len(shared)
    different = int((measured["output_tokens"].to_numpy() != predicted["output_tokens"].to_numpy()).sum())
    if different:
        report["notices"].append(
            f"{different} requests have other output lengths in the run than in the workload"
        )
    for basis, column in BASES.items():
        if not measured[column].isna().any():
            report["bases"][basis] = _errors(measured, predicted, peer, basis)
    return report


def _errors(
    measured: pd.DataFrame, predicted: pd.DataFrame, peer: pd.DataFrame | None, basis: str
) -> dict[str, Any]:
    truth, ours = aggregates(measured, basis), aggregates(predicted, basis)
    # A peer need not know of the engine's queue: then its requests are queued when they arrive.
    theirs = None if peer is None else aggregates(peer.assign(queued_s=_start(peer)), basis)
    rows = {
        name: {
            "measured": _known(truth[name]),
            "predicted": _known(ours[name]),
            "error": _known(ours[name] / truth[name] - 1),
            **(
                {}
                if theirs is None
                else {"peer": _known(theirs[name]), "peer_error": _known(theirs[name] / truth[name] - 1)}
            ),
        }
        for name in AGGREGATES
    }
    column = BASES[basis]
    e2e_s = (measured["last_token_s"] - measured[column]).to_numpy()
    return {
        "aggregates": rows,
        "mean_absolute_error": _mean_absolute(rows, "error"),
        "max_absolute_error": max(abs(row["error"]) for row in rows.values() if row["error"] is not None),
        "e2e_mape": float(
            np.abs((predicted["last_token_s"] - predicted[column]).to_numpy() / e2e_s - 1).mean()
        ),
        **({} if theirs is None else {"peer_mean_absolute_error": _mean_absolute(rows, "peer_error")}),
    }


def _start(peer: pd.DataFrame) -> pd.Series[float]:
    return peer["queued_s"].fillna(peer["arrival_s"])


def _known(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


def _mean_absolute(rows: Mapping[str, Mapping[str, Any]], key: str) -> float:
    return float(np.mean([abs(row[key]) for row in rows.values() if row[key] is not None]))


def _rows(requests: pd.DataFrame, ids: set[str]) -> pd.DataFrame:
    return requests[requests["request_id"].isin(ids)].sort_values("request_id", ignore_index=True)
