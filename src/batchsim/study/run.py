"""One run from its configuration to its summary: `simulate`."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim._version import __version__
from batchsim.config import (
    AutoscalerConfig,
    ClientsConfig,
    FailuresConfig,
    PolicyConfig,
    RunConfig,
    WorkloadConfig,
    load_config,
)
from batchsim.errors import ConfigError
from batchsim.latency.base import LatencyInfo, OutsideRangeError
from batchsim.metrics.cluster.tenants import PLAIN_TARIFF, Tariff
from batchsim.metrics.cost import Expense
from batchsim.metrics.efficiency import Hardware
from batchsim.metrics.summary import summarise
from batchsim.policies import presets
from batchsim.policies.fair_share import FairShare
from batchsim.policies.guards.checks import unguarded
from batchsim.policies.presets import Policy
from batchsim.records import Records
from batchsim.sim.arrivals.client import make_clients
from batchsim.sim.recording.recorder import Recorder
from batchsim.sim.simulation import run_replicas, run_simulation
from batchsim.specs import load_gpu
from batchsim.streams import stream
from batchsim.study.result import SimulationResult
from batchsim.study.setup.cluster import (
    batch_cluster,
    central_policy,
    disaggregation,
    engines,
    front_end,
    hardware,
    has_one_queue,
    prepare_policies,
    replicas,
    with_noise,
)
from batchsim.study.setup.control import check_fixed, control_plane
from batchsim.study.setup.cost import describe_prices, expenses
from batchsim.study.setup.coverage import outside_advice
from batchsim.study.setup.expected_error import ExpectedError, expected_error
from batchsim.study.setup.hardware import AnyLatency, adopt_hardware, describe_cluster, max_model_len
from batchsim.study.setup.tiers import tier_plans
from batchsim.workload.load import prepare
from batchsim.workload.predictor import Predictor, make_predictor, prediction_quality
from batchsim.workload.prefixes import id_column, tokens_per_id
from batchsim.workload.request import Workload
from batchsim.workload.sessions import DELAY_COLUMN, grow_context
from batchsim.workload.tenants import LABELS

#: Share of the workload set aside where a policy or predictor learns and the configuration does not say how
#: much.
DEFAULT_TRAINING_FRACTION = 0.1

# Columns of a workload that decide about a run, besides prefix ids.
_REPLAYED = ("session_id", "priority", *LABELS, DELAY_COLUMN)
#: What a load is a share of where nothing is said: one for all policies, so that they meet the same rate.
LOAD_BASELINE = "static_fifo"


def simulate(
    config: RunConfig | Mapping[str, Any] | str | Path | None = None,
    workload: Workload | None = None,
    *,
    latency: AnyLatency | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_start: Callable[[Recorder], None] | None = None,
) -> SimulationResult:
    """Simulate one configuration.

    Parameters
    ----------
    config
        A `RunConfig`, a nested mapping, or the path of a TOML file; the defaults alone if left out.
    workload
        Requests to use instead of what ``config.workload`` names; its other settings still apply.
    latency
        Model to use instead of the file that ``config.latency`` names, e.g. from `load_latency`.
    overrides
        Dotted keys that win over ``config``, e.g. ``{"cluster.num_gpus": 4}``.
    on_start
        Called with the recorder before the first event, to watch progress.

    Raises
    ------
    ConfigError, TraceError, PlanError, StalledSimulation
        Each with one sentence for the user.
    """
    config, notices = adopt_hardware(load_config(config, overrides), latency)
    policy = presets.build(config.policy)
    predictor = make_predictor(config.predictor)
    training, evaluated = prepare(
        paced(config, workload, latency).workload,
        config.cluster.num_gpus,
        stream(config.seed, "workload"),
        workload,
        training_fraction(config, policy, predictor),
    )
    if config.clients.grow_context:
        training, evaluated = grow_context(training), grow_context(evaluated)
    run = _run_engines if presets.find_preset(config.policy.preset).is_iteration_level else _run_batches

    def predict(policy: Policy) -> NDArray[np.int64]:
        edges = np.asarray(policy.queueing.edges, dtype=np.float64)
        return predictor.predict(evaluated, training, edges, stream(config.seed, "predictor"))

    try:
        done = run(config, latency, training, evaluated, predict, on_start)
    except OutsideRangeError as error:
        raise ConfigError(f"{error}{outside_advice(config, evaluated, latency)}") from error
    done = done._replace(records=_with_replayed(done.records, evaluated))
    tariff = _tariff(done.policy)
    summary = {
        **_conditions(config, done, training, evaluated),
        **summarise(done.records, config.slo, config.metrics.warmup, done.hardware, done.expenses, tariff),
        **prediction_quality(
            done.records.requests["output_tokens"].to_numpy(),
            done.records.requests["predicted_output_tokens"].to_numpy(),
            np.asarray(done.policy.queueing.edges, dtype=np.float64),
        ),
    }
    manifest = _manifest(config, done, evaluated, notices)
    return SimulationResult(config, summary, done.records, manifest, done.hardware, done.expenses, tariff)


def paced(config: RunConfig, workload: Workload | None, latency: AnyLatency | None) -> RunConfig:
    """Put a request rate in place of a load; other configurations stay as they are.

    A load of 1 is what the preset ``load_of`` finishes per second, over the same requests on the same
    cluster, when they are all there at the start.
    """
    given = config.workload
    if given.load is None:
        return config
    unpaced = given.model_copy(update={"load": None, "load_of": None})
    policy, predictor = presets.build(config.policy), make_predictor(config.predictor)
    baseline = config.model_copy(
        update={
            "policy": PolicyConfig(preset=given.load_of or LOAD_BASELINE),
            "workload": unpaced.model_copy(
                update={"training_fraction": training_fraction(config, policy, predictor)}
            ),
            "clients": ClientsConfig(grow_context=config.clients.grow_context),
            "autoscaler": AutoscalerConfig(),  # all replicas, all the time
            "failures": FailuresConfig(),
            "patience_s": None,
        }
    )
    if workload is None and latency is None:
        key = baseline.model_dump_json()
        rate_per_s = _full_rates.get(key) or _full_rate_per_s(baseline, None, None)
        _full_rates[key] = rate_per_s
    else:
        rate_per_s = _full_rate_per_s(baseline, workload, latency)
    update = {"request_rate": given.load * rate_per_s}
    return config.model_copy(update={"workload": unpaced.model_copy(update=update)})


#: What baselines serve, by configuration: the runs of a sweep ask for the same again and again.
_full_rates: dict[str, float] = {}


def _full_rate_per_s(config: RunConfig, workload: Workload | None, latency: AnyLatency | None) -> float:
    """Requests per second when all are there at the start."""
    given = config.workload
    rng = stream(config.seed, "workload")
    _, evaluated = prepare(given, config.cluster.num_gpus, rng, workload, given.training_fraction or 0.0)
    at_once = evaluated.with_arrivals(np.zeros(len(evaluated)))
    alone = config.model_copy(update={"workload": WorkloadConfig()})
    rate_per_s = simulate(alone, at_once, latency=latency).summary["whole_run_request_throughput_per_s"]
    if not rate_per_s:
        raise ConfigError(
            f"workload.load is a share of what {config.policy.preset} serves, and it serves none of the "
            f"{len(evaluated)} requests"
        )
    return float(rate_per_s)


class _Done(NamedTuple):
    """A run and what it ran with."""

    records: Records
    policy: Policy
    latencies: Sequence[LatencyInfo]
    error: ExpectedError
    expenses: Sequence[Expense]
    hardware: Hardware | None = None


def _run_batches(
    config: RunConfig,
    latency: AnyLatency | None,
    training: Workload,
    evaluated: Workload,
    predict: Callable[[Policy], NDArray[np.int64]],
    on_start: Callable[[Recorder], None] | None,
) -> _Done:
    """Batches that run to completion: one central queue, or one for each GPU where the policy routes."""
    check_fixed(config)
    cluster = batch_cluster(config, latency)
    info = cluster.latency.info
    taken = expenses(config.cost, [(load_gpu(config.cluster.gpu), config.cluster.gpus_per_replica, info)])
    queues = 1 if has_one_queue(config) else cluster.num_gpus  # of replicas
    policies = prepare_policies(
        config, [config.policy] * queues, [cluster.memory.capacity_tokens] * queues, training
    )
    records = run_simulation(
        evaluated,
        predict(policies[0]),
        policies,
        with_noise(config, cluster),
        config.patience_s,
        on_start,
        make_clients(config.clients, evaluated, stream(config.seed, "clients")),
        max_model_len(config, latency),
    )
    error = expected_error([cluster.latency], config.engine, is_iteration_level=False)
    return _Done(records, policies[0], [info], error, taken * cluster.num_gpus)


def _run_engines(
    config: RunConfig,
    latency: AnyLatency | None,
    training: Workload,
    evaluated: Workload,
    predict: Callable[[Policy], NDArray[np.int64]],
    on_start: Callable[[Recorder], None] | None,
) -> _Done:
    """Engines that batch at every iteration."""
    cluster = replicas(config, latency)
    taken = expenses(config.cost, ((one.gpu, one.sharing.num_gpus, one.latency.info) for one in cluster))
    capacities = [replica.num_kv_blocks * config.engine.block_size for replica in cluster]
    policies = prepare_policies(config, [replica.policy for replica in cluster], capacities, training)
    made = engines(config, cluster)
    records = run_replicas(
        evaluated,
        predict(policies[0]),
        policies,
        made,
        config.patience_s,
        on_start,
        make_clients(config.clients, evaluated, stream(config.seed, "clients")),
        max_model_len(config, latency),
        front_end(config),
        disaggregation(config, cluster),
        central_policy(config, policies[0].routing, min(capacities), training),
        control_plane(config, cluster),
        tier_plans(config, [replica.model for replica in cluster], made, evaluated),
    )
    infos: list[LatencyInfo] = []
    for replica in cluster:
        if replica.latency.info not in infos:
            infos.append(replica.latency.info)
    error = expected_error([one.latency for one in cluster], config.engine, is_iteration_level=True)
    return _Done(records, policies[0], infos, error, taken, hardware(config, cluster))


def _with_replayed(records: Records, workload: Workload) -> Records:
    """Put what a run heeded besides lengths into its requests: whose turn, which prefix, how urgent.

    So the table of a run is a trace that can be replayed as it was.
    """
    names = {name: name for name in workload.extra if name in _REPLAYED}
    id_name = id_column(workload.extra)
    if id_name is not None:
        names[id_name] = f"hash_ids_{tokens_per_id(id_name)}"  # which leaves nothing to be inferred
    if not names:
        return records
    rows = pd.Index(workload.request_id).get_indexer(pd.Index(records.requests["request_id"]))
    columns = {saved: workload.extra[name][rows] for name, saved in names.items()}
    return replace(records, requests=records.requests.assign(**columns))


def _tariff(policy: Policy) -> Tariff:
    """What counts as service: what the queue counts, where it does."""
    queue = unguarded(policy.queueing)
    if isinstance(queue, FairShare):
        return Tariff(queue.prompt_weight, queue.output_weight, queue.weights)
    return PLAIN_TARIFF


def training_fraction(config: RunConfig, policy: Policy, predictor: Predictor) -> float:
    """Share of the workload to set aside: as configured, else only where something learns from it."""
    if config.workload.training_fraction is not None:
        return config.workload.training_fraction
    return DEFAULT_TRAINING_FRACTION if policy.queueing.learns or predictor.needs_training else 0.0


def _conditions(config: RunConfig, done: _Done, training: Workload, evaluated: Workload) -> dict[str, Any]:
    """What the numbers hold for."""
    source, policy = evaluated.source, done.policy
    return {
        "policy": policy.name,
        "world": "iteration level" if done.records.is_iteration_level else "run to completion",
        "combination": policy.describe(),
        "bin_edges": list(policy.queueing.edges),
        "predictor": config.predictor.kind,
        "cluster": describe_cluster(config),
        "num_gpus": config.cluster.num_gpus,
        "prices": describe_prices(config.cost, (one.gpu for one in done.expenses)),
        "latency_model": " + ".join(dict.fromkeys(one.name for one in done.latencies)),
        "latency_provenance": " + ".join(dict.fromkeys(one.provenance for one in done.latencies)),
        **done.error.summary(),
        "workload": source.name,
        "workload_kind": source.kind,
        "num_dropped": sum(source.dropped.values()),
        "num_training": len(training),
        "request_rate_per_s": None if np.isnan(evaluated.mean_rate_per_s) else evaluated.mean_rate_per_s,
        "seed": config.seed,
    }


@cache
def _versions() -> dict[str, str]:
    installed = {name: version(name) for name in ("simpy", "numpy", "pandas", "pyarrow")}
    return {"batchsim": __version__, "python": platform.python_version(), **installed}


def _manifest(config: RunConfig, done: _Done, evaluated: Workload, notices: Sequence[str]) -> dict[str, Any]:
    source, records = evaluated.source, done.records
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "versions": _versions(),
        "workload": {
            "name": source.name,
            "kind": source.kind,
            "sha256": source.sha256,
            "num_requests": len(evaluated),
            "dropped": dict(source.dropped),
            "notices": list(source.notices),
        },
        "latency": [asdict(one) for one in done.latencies],
        "notices": list(notices),
        "kv_capacity_tokens": records.kv_capacity_tokens,
        "refusals": {str(request_id): reason for request_id, reason in records.refusals.items()},
    }
