"""The wiring: which process is given which Store. Processes start here and nowhere else, save clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import simpy
from numpy.typing import NDArray

from batchsim.errors import StalledSimulation
from batchsim.latency.base import BatchLatency
from batchsim.policies.presets import Policy
from batchsim.records import Records
from batchsim.sim.gpu import GPU, KVMemory
from batchsim.sim.recorder import Recorder
from batchsim.sim.router import Router
from batchsim.sim.scheduler import Scheduler
from batchsim.sim.source import RequestSource
from batchsim.workload.request import Workload


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal GPUs that run one model.

    Attributes
    ----------
    num_gpus
        How many.
    memory
        KV tokens of each.
    latency
        Seconds for a batch on each.
    may_extrapolate
        Whether batches outside the latency model's range are run (and counted) or raise `ConfigError`.
    """

    num_gpus: int
    memory: KVMemory
    latency: BatchLatency
    may_extrapolate: bool = False


def run_simulation(
    workload: Workload,
    predicted_output_tokens: NDArray[np.int64],
    policies: Sequence[Policy],
    cluster: Cluster,
    patience_s: float | None = None,
    on_start: Callable[[Recorder], None] | None = None,
) -> Records:
    """Simulate until every request has ended.

    Parameters
    ----------
    workload, predicted_output_tokens
        The requests, and what the policy is told of their answers, shape ``(num_requests,)``.
    policies
        One prepared policy: a central queue feeds all GPUs. As many as GPUs: each GPU has its own queue, and
        the first policy's routing spreads the requests.
    on_start
        Called with the recorder before the first event; its ``num_ended`` tells how far the run is.

    Raises
    ------
    StalledSimulation
        If requests are unfinished and nothing can happen any more.
    ConfigError, PlanError
        From the latency model's range, and from a policy that breaks its limits.
    """
    env = simpy.Environment()
    recorder = Recorder(env, len(workload))
    true_output_tokens = workload.output_tokens.tolist()
    gpus = [
        GPU(
            env,
            gpu_id,
            cluster.latency,
            cluster.memory,
            true_output_tokens,
            recorder,
            may_extrapolate=cluster.may_extrapolate,
        )
        for gpu_id in range(cluster.num_gpus)
    ]
    shares = [gpus] if len(policies) == 1 else [[gpu] for gpu in gpus]
    schedulers = [
        Scheduler(env, policy, cluster.memory, share, recorder)
        for policy, share in zip(policies, shares, strict=True)
    ]  # fmt: skip
    arrivals = schedulers[0].inbox
    if len(schedulers) > 1:
        routing = policies[0].routing
        assert routing is not None, "several queues need a routing"
        router = Router(env, routing, schedulers)
        arrivals = router.arrivals
        env.process(router.run())
    source = RequestSource(env, workload, predicted_output_tokens, arrivals, recorder, patience_s)
    for run in [*(gpu.run for gpu in gpus), *(scheduler.run for scheduler in schedulers), source.run]:
        env.process(run())

    if on_start is not None:
        on_start(recorder)
    try:
        env.run(until=recorder.all_ended)
    except RuntimeError as error:
        if error.__cause__ is not None:
            raise  # a process died of it
        raise StalledSimulation(_who_waits(env.now, recorder, schedulers)) from error
    return recorder.records(
        workload, predicted_output_tokens, cluster.num_gpus, cluster.memory.capacity_tokens
    )


def _who_waits(now_s: float, recorder: Recorder, schedulers: Sequence[Scheduler]) -> str:
    unfinished = recorder.num_requests - recorder.num_ended
    queues = "; ".join(
        f"queue {index}: {scheduler.describe_waiting()}" for index, scheduler in enumerate(schedulers)
    )
    return f"nothing can happen after {now_s:.3f} s, but {unfinished} requests are unfinished: {queues}"
