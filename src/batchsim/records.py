"""All that leaves a simulation: tables of requests, batches, iterations and decisions, as columns.

`sim` fills them, `metrics` reads them; neither knows the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FINISHED, ABANDONED, REFUSED, STRANDED = "finished", "abandoned", "refused", "stranded"
FAILED = "failed"  # its replica crashed, and it was not tried again
STATUSES = (FINISHED, ABANDONED, REFUSED, STRANDED, FAILED)

#: How the reason of a refusal begins where a request was refused to spare others, not because it cannot fit.
SHED = "shed"

#: One row per request, in arrival order. Times are seconds since the start of the trace, NaN where they never
#: came; ``bin``, ``gpu_id``, ``batch_id`` and ``batch_size`` are -1 (0) for a request that never ran.
REQUEST_COLUMNS: Mapping[str, Any] = {
    "request_id": np.int64,
    "arrival_s": np.float64,
    "prompt_tokens": np.int64,
    "output_tokens": np.int64,
    "predicted_output_tokens": np.int64,
    "bin": np.int16,  # the bin its batch came from (by its predicted length)
    "gpu_id": np.int32,
    "batch_id": np.int64,
    "batch_size": np.int32,
    "scheduled_s": np.float64,
    "first_token_s": np.float64,
    "finish_s": np.float64,
    "num_evictions": np.int32,  # times it was thrown out of a batch that outgrew memory
    "status": "category",  # one of STATUSES
}

#: A request where engines batch at every iteration; its ``batch_id`` is -1, its ``batch_size`` 0.
ITERATION_REQUEST_COLUMNS: Mapping[str, Any] = {
    **REQUEST_COLUMNS,
    # When its last decode run began: the end of its last (re)prefill, or swap-in.
    "decode_start_s": np.float64,
    "cached_tokens": np.int64,  # prompt tokens found in the prefix cache when it was first admitted
    "recomputed_tokens": np.int64,  # tokens computed a second time after preemptions and failures
    "num_preemptions": np.int32,
}

#: One row per span: equal decode iterations of an unchanged batch, or a single iteration with prompt chunks.
#: In order of ``finish_s`` within a GPU. Iteration ``j`` of a span takes ``first_iteration_s + j * growth``,
#: where ``growth`` follows from the duration of the whole span.
ITERATION_COLUMNS: Mapping[str, Any] = {
    "gpu_id": np.int32,  # the replica
    "start_s": np.float64,
    "finish_s": np.float64,
    "num_iterations": np.int32,
    "first_iteration_s": np.float64,
    "host_s": np.float64,  # of all its iterations: time in which the GPU waited for the host
    "prefill_tokens": np.int64,
    "decode_seqs": np.int32,  # 0: the decoding sequences, if any, stall
    "context_tokens": np.int64,  # KV tokens of the decoding sequences before the first iteration
    "prefill_seqs": np.int32,
    "prefill_pairs": np.float64,  # see latency.base.IterationShape
    "longest_tokens": np.int64,  # of the decodes' contexts; 0 where the latency model does not look at it
    "num_running": np.int32,  # sequences that hold KV blocks during the span
    "num_waiting": np.int32,  # after the span was planned
    "kv_blocks": np.int64,  # in use at the end, before finished requests give theirs back
    "num_preempted": np.int32,  # while it was planned
    "is_extrapolated": np.bool_,
}

#: The KV of a request is dropped, or copied to the host. Or it stays while the request sits an iteration out,
#: or is handed over to a replica that decodes it; or it is lost as the replica fails, and the tokens of its
#: answer stay, or go as well: these are no preemptions.
PREEMPTIONS = ("recompute", "swap")
FAILURES = ("failure", "restart")
PREEMPTION_MODES = (*PREEMPTIONS, "pause", "hand_over", *FAILURES)

#: One row per preemption, pause, hand-over or failure of one that ran, in order of time.
PREEMPTION_COLUMNS: Mapping[str, Any] = {
    "request_id": np.int64,
    "gpu_id": np.int32,
    "time_s": np.float64,
    "mode": "category",  # one of `PREEMPTION_MODES`
    "decode_start_s": np.float64,  # of the decode run that ends here; NaN if its prompt was not complete
    "lost_tokens": np.int64,  # computed tokens whose KV was dropped
}

#: One row per transfer of KV between replicas, in order of completion.
TRANSFER_COLUMNS: Mapping[str, Any] = {
    "request_id": np.int64,
    "source": np.int32,  # the replica that computed the prompt
    "target": np.int32,  # the replica that decodes
    "num_bytes": np.float64,
    "asked_s": np.float64,  # when room on the target was asked for
    "ready_s": np.float64,  # when the prompt was complete
    "start_s": np.float64,  # when a link began to carry it
    "finish_s": np.float64,  # when all of it was there
}

#: One row per tenant, then one per class of requests, by name; where requests have either.
TENANT_COLUMNS: Mapping[str, Any] = {
    "kind": "category",  # tenant or class
    "name": "category",
    "num_requests": np.int64,
    "num_finished": np.int64,
    "slo_attainment": np.float64,  # share of the covered requests that meet their limits
    **{
        f"{time}_{statistic}_s": np.float64  # of those that finished
        for time in ("ttft", "tpot", "e2e", "queueing")
        for statistic in ("mean", "p99")
    },
    "request_throughput_per_s": np.float64,  # in the window of the summary, as all that follows
    "output_throughput_tokens_per_s": np.float64,
    "service_tokens": np.float64,  # weighted tokens
    "demand_tokens": np.float64,  # asked for until its end, and not served before
    "fair_tokens": np.float64,  # of the service of all, the max-min fair share
}

#: One row per step of a sequence that decodes with drafts, by request in arrival order, and time. With it,
#: the table of spans has another column, ``decode_tokens`` (int64): the tokens that their decodes gave.
DECODE_STEP_COLUMNS: Mapping[str, Any] = {
    "request_id": np.int64,
    "drafted": np.int8,
    "accepted": np.int8,  # drafts, of those that came after the end of the answer, too
    "tokens": np.int8,  # given: the accepted drafts and one more, or what was left of the answer
}

#: What a replica is, where replicas come, go and fail. All but those that are off are paid for; those that
#: are on or drain run requests, and only those that are on are given new ones.
REPLICA_STATES = ("off", "starting", "on", "draining", "failed")

#: One row per time that a replica spends in a state, in order of its end, up to the end of the run.
REPLICA_STATE_COLUMNS: Mapping[str, Any] = {
    "gpu_id": np.int32,
    "state": "category",  # one of `REPLICA_STATES`
    "start_s": np.float64,
    "end_s": np.float64,
}

#: One row per copy of KV between a replica and a tier below it, in order of completion.
KV_COPY_COLUMNS: Mapping[str, Any] = {
    "request_id": np.int64,  # who waits for what comes up; -1 for what goes down
    "gpu_id": np.int32,  # the replica
    "tier": np.int32,  # counted from the first below the GPU; where it comes from, or goes to
    "num_tokens": np.int64,
    "num_bytes": np.float64,
    "start_s": np.float64,  # when it was asked for
    "finish_s": np.float64,
}

#: One row per batch, in order of completion; ``batch_id`` numbers them so.
BATCH_COLUMNS: Mapping[str, Any] = {
    "batch_id": np.int64,
    "gpu_id": np.int32,
    "bin": np.int16,
    "batch_size": np.int32,  # members that ran to completion
    "num_evicted": np.int32,  # members thrown out because the batch outgrew memory
    "size_limit": np.int32,  # what the sizer allowed when the batch was formed
    "is_flush": np.bool_,  # launched short of full only because no more requests come
    "start_s": np.float64,
    "first_token_s": np.float64,
    "finish_s": np.float64,
    "max_prompt_tokens": np.int64,
    "max_output_tokens": np.int64,
    "sum_prompt_tokens": np.int64,
    "sum_output_tokens": np.int64,
    "kv_tokens": np.int64,  # held at the end, by the cluster's layout
    "is_extrapolated": np.bool_,  # its shape lies outside the range of the latency model
}

#: One row per decision of a sizer that has a trajectory.
CONTROLLER_COLUMNS: Mapping[str, Any] = {
    "time_s": np.float64,
    "gpu_id": np.int32,  # whose queue it limits; -1: the one that feeds all
    "controller": "category",
    "bin": np.int16,  # -1: shared by all bins
    "batch_size": np.int32,  # the size decided
    "low": np.float64,
    "high": np.float64,
    "measured": np.float64,  # the controlled metric, seconds
}

#: One row per time and probability: the value that such a share of the requests (of the gaps between tokens)
#: is at or below. Seconds.
SKETCH_COLUMNS: Mapping[str, Any] = {
    "metric": "category",  # e2e_s, queueing_s, ttft_s, tpot_s, itl_s
    "probability": np.float32,
    "value": np.float32,
}


ColumnT = TypeVar("ColumnT", covariant=True)


class Columns(Protocol[ColumnT]):
    """A table as metrics read it: columns by name, of a DataFrame or as `arrays` has them."""

    def __getitem__(self, name: str, /) -> ColumnT: ...

    def __contains__(self, name: object, /) -> bool: ...


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """The tables of one run, with columns and dtypes as above.

    Attributes
    ----------
    requests, batches, controllers, iterations, preemptions, transfers, decode_steps, kv_copies
        See `REQUEST_COLUMNS` (`ITERATION_REQUEST_COLUMNS` where engines batch at every iteration),
        `BATCH_COLUMNS`, `CONTROLLER_COLUMNS`, `ITERATION_COLUMNS`, `PREEMPTION_COLUMNS`, `TRANSFER_COLUMNS`,
        `DECODE_STEP_COLUMNS`, `KV_COPY_COLUMNS`.
        Of batches and iterations, only those of the simulated world have rows.
    num_replicas
        Replicas in the cluster, busy or not: as many as GPUs where each has one.
    kv_capacity_tokens
        KV tokens that fit one replica; the mean over those that differ.
    refusals
        Reason of each refused request, by request id.
    kv_blocks
        KV blocks of each replica; empty in the run-to-completion world.
    replica_states
        See `REPLICA_STATE_COLUMNS`; no rows where all replicas are there all the time.
    tiers
        Names of the tiers below the GPUs, the first first.
    """

    requests: pd.DataFrame
    batches: pd.DataFrame
    controllers: pd.DataFrame
    num_replicas: int
    kv_capacity_tokens: int
    refusals: Mapping[int, str]
    iterations: pd.DataFrame = field(default_factory=lambda: empty(ITERATION_COLUMNS))
    preemptions: pd.DataFrame = field(default_factory=lambda: empty(PREEMPTION_COLUMNS))
    kv_blocks: tuple[int, ...] = ()
    transfers: pd.DataFrame = field(default_factory=lambda: empty(TRANSFER_COLUMNS))
    decode_steps: pd.DataFrame = field(default_factory=lambda: empty(DECODE_STEP_COLUMNS))
    replica_states: pd.DataFrame = field(default_factory=lambda: empty(REPLICA_STATE_COLUMNS))
    kv_copies: pd.DataFrame = field(default_factory=lambda: empty(KV_COPY_COLUMNS))
    tiers: tuple[str, ...] = ()

    @property
    def is_iteration_level(self) -> bool:
        """Whether engines batched at every iteration."""
        return bool(self.kv_blocks)


def arrays(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the columns of a table as arrays, which are far faster to compute with than those of pandas.

    They are views; a column of categories stays one.
    """
    return {
        str(name): column.to_numpy() if isinstance(column.dtype, np.dtype) else column.array
        for name, column in frame.items()
    }


def rows(table: Any, which: slice | NDArray[np.bool_]) -> Any:
    """Return these rows of a table, as a DataFrame or as `arrays`, whichever it is."""
    if isinstance(table, pd.DataFrame):
        return table[which]
    return {name: column[which] for name, column in table.items()}


def has_status(requests: Columns[Any], *statuses: str) -> NDArray[np.bool_]:
    """Whether each request ended in one of these states, shape ``(num_requests,)``."""
    status = requests["status"]
    ended: NDArray[np.bool_] = np.any([status == one for one in statuses], axis=0)
    return ended


def empty(columns: Mapping[str, Any]) -> pd.DataFrame:
    """Make a table without rows; a short run has several, and they take as long as the run itself."""
    names = tuple(columns)
    if names not in _empty:
        _empty[names] = table(columns, dict.fromkeys(columns, ()))
    return _empty[names].copy(deep=False)


_empty: dict[tuple[str, ...], pd.DataFrame] = {}


def table(columns: Mapping[str, Any], values: Mapping[str, Any]) -> pd.DataFrame:
    """Build a table with exactly these columns and dtypes; ``category`` columns keep pandas categories."""
    series = {name: _column(values[name], dtype) for name, dtype in columns.items()}
    return pd.DataFrame(series, copy=False)  # the columns as they are, not once more side by side


def _column(values: Any, dtype: Any) -> Any:
    if dtype == "category":
        return pd.Categorical(values)
    if len(values) == 0:
        return np.empty(0, dtype)
    if isinstance(values, np.ndarray) and values.dtype == dtype:
        return values  # pandas takes as long to find that out as a short run takes altogether
    return pd.Series(values).astype(dtype)
