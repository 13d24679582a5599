"""The wiring: which process is given which Store. Processes start here and nowhere else, save clients."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import simpy
from numpy.typing import NDArray

from batchsim.errors import StalledSimulation
from batchsim.latency.base import BatchLatency
from batchsim.policies.base import Routing
from batchsim.policies.presets import Policy
from batchsim.policies.routing import RoundRobin
from batchsim.records import Records
from batchsim.sim.arrivals.client import Clients
from batchsim.sim.arrivals.front_end import FrontEnd, FrontEndTimes
from batchsim.sim.arrivals.source import RequestSource
from batchsim.sim.cluster.central import Dispatcher
from batchsim.sim.cluster.control import ControlPlane
from batchsim.sim.cluster.gate import Gate
from batchsim.sim.cluster.hand_over import Disaggregation, HandOver
from batchsim.sim.cluster.router import Router, Spread
from batchsim.sim.cluster.slots import Slots
from batchsim.sim.cluster.tiers import Storage, TierPlans
from batchsim.sim.engine import Engine
from batchsim.sim.gpu import GPU, KVMemory
from batchsim.sim.kv_cache import KVCache
from batchsim.sim.mailbox import Mailbox, ProcessGen
from batchsim.sim.recording.iteration_recorder import IterationRecorder
from batchsim.sim.recording.recorder import Recorder
from batchsim.sim.replica import Replica
from batchsim.sim.scheduler import Scheduler
from batchsim.workload.prefixes import PrefixIds, prefix_ids
from batchsim.workload.request import Workload
from batchsim.workload.sessions import answer_ids, session_numbers


class _Waits(Protocol):
    def describe_waiting(self) -> str: ...


class _Process(Protocol):
    def run(self) -> ProcessGen: ...


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal GPUs, or groups of GPUs, that each run one model.

    Attributes
    ----------
    num_gpus
        How many: a group that shares the model counts as one.
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
    clients: Clients | None = None,
    max_model_len: int | None = None,
) -> Records:
    """Simulate until every request has ended.

    Parameters
    ----------
    workload, predicted_output_tokens
        The requests, and what the policy is told of their answers, shape ``(num_requests,)``.
    policies
        One prepared policy: a central queue feeds all GPUs. As many as GPUs: each GPU has its own queue, and
        the first policy's routing spreads the requests.
    patience_s
        A request that still waits after so long is abandoned.
    on_start
        Called with the recorder before the first event; its ``num_ended`` tells how far the run is.
    clients
        Who sends the requests, where they do not simply arrive at their time.
    max_model_len
        Requests of more tokens, prompt and answer, are refused.

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
        Scheduler(env, policy, cluster.memory, share, recorder, has_gpu_of_its_own=len(policies) > 1)
        for policy, share in zip(policies, shares, strict=True)
    ]  # fmt: skip
    arrivals, routers = _connect(env, policies, schedulers)
    details = _details(workload, prefix_ids(workload))
    source = RequestSource(
        env,
        workload,
        predicted_output_tokens,
        arrivals,
        recorder,
        patience_s,
        details,
        clients,
        max_model_len,
    )
    _run(env, [*gpus, *schedulers, *routers, source], schedulers, recorder, on_start)
    records = recorder.records(
        workload, predicted_output_tokens, cluster.num_gpus, cluster.memory.capacity_tokens
    )
    return source.as_sent(records)


def run_replicas(
    workload: Workload,
    predicted_output_tokens: NDArray[np.int64],
    policies: Sequence[Policy],
    engines: Sequence[Engine],
    patience_s: float | None = None,
    on_start: Callable[[Recorder], None] | None = None,
    clients: Clients | None = None,
    max_model_len: int | None = None,
    front_end: FrontEndTimes | None = None,
    disaggregation: Disaggregation | None = None,
    central: Policy | None = None,
    control: ControlPlane | None = None,
    tiers: TierPlans | None = None,
) -> Records:
    """Simulate engines that batch at every iteration, until every request has ended.

    Parameters
    ----------
    policies, engines
        One prepared policy for each replica; the first policy's routing spreads the requests.
    workload, predicted_output_tokens, patience_s, on_start, clients, max_model_len
        As in `run_simulation`, which see for what is raised.
    front_end
        What a request takes before an engine knows of it; None: nothing.
    disaggregation
        Which replicas compute prompts and which decode; None: all do both.
    central
        A prepared policy in whose queue all requests wait, where the routing is a central one.
    control
        How replicas, which then all do both, come, go and fail; None: all are there all the time.
    tiers
        What holds the KV of prefixes that the caches of GPUs lose; None: nothing does.
    """
    env = simpy.Environment()
    recorder = IterationRecorder(env, len(workload))
    true_output_tokens = workload.output_tokens.tolist()
    prefixes = prefix_ids(workload)
    roles = ["both"] * len(engines) if disaggregation is None else disaggregation.roles
    replicas, decoders = list[Replica](), list[Replica]()
    hand_over = None
    if disaggregation is not None:
        spread = Spread(env, _routing(policies[roles.index("decode")]), decoders)
        hand_over = HandOver(env, replicas, spread, disaggregation, true_output_tokens, recorder)
    storage = None
    if tiers is not None and prefixes is not None:
        storage = Storage(env, tiers, prefixes.tokens_per_id, recorder)
    only_first_tokens = [1] * len(workload)
    for replica_id, (policy, engine, role) in enumerate(zip(policies, engines, roles, strict=True)):
        tokens_per_id = prefixes.tokens_per_id if prefixes is not None and engine.prefix_caching else 0
        kv = KVCache(
            env, engine.num_blocks, engine.block_size, tokens_per_id, is_caching=engine.prefix_caching
        )
        tokens, outlet = (only_first_tokens, hand_over) if role == "prefill" else (true_output_tokens, None)
        replicas.append(Replica(env, replica_id, policy, engine, kv, tokens, recorder, outlet))
        if storage is not None and tokens_per_id:
            replicas[-1].put_below(storage.below(replica_id, replicas[-1].inbox))
    decoders += [replica for replica, role in zip(replicas, roles, strict=True) if role == "decode"]
    slots = None if control is None else control.slots(env, replicas, recorder)
    arrivals, between = _connect_replicas(
        env, policies, replicas, front_end, decoders, central, recorder, slots
    )
    if control is not None and slots is not None:
        between += control.processes(env, slots)
    details = _details(workload, prefixes)
    source = RequestSource(
        env,
        workload,
        predicted_output_tokens,
        arrivals,
        recorder,
        patience_s,
        details,
        clients,
        max_model_len,
    )
    waits: list[_Waits] = [*replicas, *(one for one in between if isinstance(one, Dispatcher))]
    _run(env, [*replicas, *between, source], waits, recorder, on_start)
    records = recorder.iteration_records(
        workload,
        predicted_output_tokens,
        [engine.num_blocks for engine in engines],
        engines[0].block_size,
    )
    if slots is not None:
        records = replace(records, replica_states=slots.states())
    return source.as_sent(records)


def _connect(
    env: simpy.Environment, policies: Sequence[Policy], schedulers: Sequence[Scheduler]
) -> tuple[Mailbox, list[_Process]]:
    """Put a router before several queues; return where requests are to go."""
    if len(schedulers) == 1:
        return schedulers[0].inbox, []
    router = Router(env, _routing(policies[0]), schedulers)
    return router.arrivals, [router]


def _connect_replicas(
    env: simpy.Environment,
    policies: Sequence[Policy],
    replicas: Sequence[Replica],
    front_end: FrontEndTimes | None,
    decoders: Sequence[Replica],
    central: Policy | None,
    recorder: Recorder,
    slots: Slots | None,
) -> tuple[Mailbox, list[_Process]]:
    """Put a router before replicas where it has something to say, and a server before that.

    What decodes alone is handed its requests by those that compute prompts.
    """
    inbox, between = replicas[0].inbox, list[_Process]()
    entrances = [one for one in replicas if one not in decoders]
    door = [
        policy.admission
        for policy, replica in zip(policies, replicas, strict=True)
        if replica in entrances and policy.admission is not None
    ]
    router: Router
    if central is not None:
        gate = Gate(env, recorder, [central.admission], entrances) if central.admission is not None else None
        router = Dispatcher(env, _routing(central), entrances, central.queueing, decoders, gate, slots)
        inbox, between = router.arrivals, [router]
    elif door or slots is not None or len(replicas) > 1:
        routing = RoundRobin() if len(replicas) == 1 and not policies[0].routing else _routing(policies[0])
        gate = Gate(env, recorder, door, entrances) if door else None
        router = Router(env, routing, entrances, decoders, gate, slots)
        inbox, between = router.arrivals, [router]
    if front_end is not None:
        server = FrontEnd(env, front_end, inbox)
        inbox, between = server.arrivals, [server, *between]
    return inbox, between


def _routing(policy: Policy) -> Routing:
    assert policy.routing is not None, "several queues need a routing"
    return policy.routing


def _run(
    env: simpy.Environment,
    processes: Sequence[_Process],
    schedulers: Sequence[_Waits],
    recorder: Recorder,
    on_start: Callable[[Recorder], None] | None,
) -> None:
    for process in processes:
        env.process(process.run())
    if on_start is not None:
        on_start(recorder)
    # What has ended is not referred to any more, and so gone: to search what waits for cycles finds nothing.
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        env.run(until=recorder.all_ended)
    except RuntimeError as error:
        if error.__cause__ is not None:
            raise  # a process died of it
        raise StalledSimulation(_who_waits(env.now, recorder, schedulers)) from error
    finally:
        if was_collecting:
            gc.enable()


def _details(workload: Workload, prefixes: PrefixIds | None) -> dict[str, Sequence[Any]]:
    """What a request carries besides its lengths, by attribute, where the workload has it."""
    details: dict[str, Sequence[Any]] = {}
    if prefixes is not None:
        details["prefix_ids"] = prefixes.ids
        if "session_id" in workload.extra:
            details["answer_ids"] = answer_ids(workload, prefixes)
    if "session_id" in workload.extra:
        details["session_id"] = session_numbers(workload).tolist()
    for name in ("priority", "tenant", "slo_class"):
        if name in workload.extra:
            details[name] = workload.extra[name].tolist()
    return details


def _who_waits(now_s: float, recorder: Recorder, schedulers: Sequence[_Waits]) -> str:
    unfinished = recorder.num_requests - recorder.num_ended
    queues = "; ".join(
        f"queue {index}: {scheduler.describe_waiting()}" for index, scheduler in enumerate(schedulers)
    )
    return f"nothing can happen after {now_s:.3f} s, but {unfinished} requests are unfinished: {queues}"
