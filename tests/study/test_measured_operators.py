"""Runs whose times come from `aiconfigurator-core`, of which a stand-in is enough here."""

from pathlib import Path
from typing import Any

import pytest

from batchsim.config import ReplicaConfig, load_config
from batchsim.errors import ConfigError
from batchsim.latency.lockstep import LockstepLatency
from batchsim.latency.passes import PassTableLatency
from batchsim.latency.profiles.aiconfigurator import SetUp
from batchsim.latency.store import save_latency
from batchsim.study import identity
from batchsim.study.capacity import find_capacity
from batchsim.study.run import simulate
from batchsim.study.setup import hardware
from tests.latency.flat_passes import flat_passes

LATENCY = {"family": "aiconfigurator", "system": "h200_sxm", "model": "meta-llama/Meta-Llama-3.1-8B"}
CONFIG: dict[str, Any] = {
    "policy": {"preset": "vllm_v1"},
    "workload": {"num_requests": 20},
    "cluster": {"model": "llama-3.1-8b", "num_gpus": 4},
    "latency": {**LATENCY, "tensor_parallel": 2},
}


def made(set_up: SetUp) -> PassTableLatency:
    """A table whose every pass takes 40 ms."""
    details = {
        "kv_capacity_tokens": 4096,
        "gpu": set_up.system,
        "model": set_up.model,
        "tensor_parallel": set_up.tensor_parallel,
        "expert_parallel": set_up.expert_parallel,
        "data_parallel": set_up.data_parallel,
        "low_fidelity": ["half of a pass is estimated, not measured"],
    }
    return flat_passes(details)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "aiconfigurator_latency", made)
    monkeypatch.setattr(identity, "package_version", lambda: "0.12.0")


def test_run_takes_times_and_hardware_from_it() -> None:
    result = simulate(CONFIG)

    cluster = result.manifest["config"]["cluster"]
    assert (cluster["gpu"], cluster["tensor_parallel"]) == ("h200", 2)
    assert result.summary["latency_model"] == "made up"
    assert result.summary["ttft_mean_s"] == pytest.approx(0.02, rel=0.5)


#: One replica of 16 groups of one GPU each, which share out the experts.
GROUPS: dict[str, Any] = {
    "policy": {"preset": "vllm_v1"},
    "workload": {"num_requests": 20},
    "cluster": {"model": "deepseek-v3", "gpu": "h200", "data_parallel": 16, "expert_parallel": 16},
    "latency": {**LATENCY, "model": "deepseek-ai/DeepSeek-V3"},
}


def test_groups_of_a_replica_are_those_of_the_cluster_and_run_in_lockstep() -> None:
    config = load_config(GROUPS)

    latency = hardware.given_latency(config.latency, config.cluster.sharing(ReplicaConfig()))

    assert isinstance(latency, LockstepLatency)
    assert latency.num_replicas == 16
    details = latency.info.details
    assert (details["tensor_parallel"], details["expert_parallel"], details["data_parallel"]) == (1, 16, 16)


def test_run_counts_the_gpus_of_all_groups() -> None:
    result = simulate(GROUPS)

    assert result.summary["num_gpus"] == 16
    assert result.summary["latency_model"] == "made up"
    assert result.summary["ttft_mean_s"] == pytest.approx(0.03, rel=0.5)


def test_capacity_counts_the_gpus_of_all_groups() -> None:
    workload = {"num_requests": 400, "request_rate": 30.0}
    found = find_capacity({**GROUPS, "workload": workload, "slo": {"ttft_ms": 500.0}})

    assert found.num_gpus == 16
    assert found.best.num_gpus == 16


@pytest.mark.parametrize("latency", [{"data_parallel": 8}, {"data_parallel": 1}])
def test_table_of_other_groups_than_the_replica_s_is_refused(latency: dict[str, int]) -> None:
    wanted = f"cluster.data_parallel is 16, but .* of data_parallel = {latency['data_parallel']}: give both"
    with pytest.raises(ConfigError, match=wanted):
        simulate({**GROUPS, "latency": {**GROUPS["latency"], **latency}})


def test_groups_that_the_cluster_does_not_name_are_replicas() -> None:
    cluster = {"model": "deepseek-v3", "gpu": "h200", "num_replicas": 2, "kv_capacity_tokens": 10_000}
    config = load_config({**GROUPS, "cluster": cluster, "latency": {**GROUPS["latency"], "data_parallel": 2}})

    latency = hardware.given_latency(config.latency, config.cluster.sharing(ReplicaConfig()))

    assert isinstance(latency, PassTableLatency)
    assert latency.info.details["data_parallel"] == 2
    assert config.cluster.num_gpus == 2


def test_file_of_one_group_runs_in_lockstep_too(tmp_path: Path) -> None:
    save_latency(flat_passes({"data_parallel": 16}), tmp_path / "groups.json")
    save_latency(flat_passes(), tmp_path / "alone.json")

    result = simulate({**GROUPS, "latency": {"file": str(tmp_path / "groups.json")}})

    assert result.summary["num_gpus"] == 16
    with pytest.raises(ConfigError, match="of data_parallel = 1"):
        simulate({**GROUPS, "latency": {"file": str(tmp_path / "alone.json")}})


def test_memory_of_a_model_without_a_spec_is_that_of_all_groups() -> None:
    cluster = {"gpu": "h200", "data_parallel": 4, "expert_parallel": 4}
    config = {**GROUPS, "cluster": cluster, "latency": {**LATENCY, "model": "someone/Else"}}

    adopted, _ = hardware.adopt_hardware(load_config(config))

    assert adopted.cluster.kv_capacity_tokens == 4 * 4096


def test_memory_is_what_it_says_of_a_model_without_a_spec() -> None:
    latency = {**LATENCY, "model": "someone/Else", "tensor_parallel": 2}
    unknown = {**CONFIG, "cluster": {"num_gpus": 4}, "latency": latency}
    config, notices = hardware.adopt_hardware(load_config(unknown))

    assert config.cluster.kv_capacity_tokens == 4096
    assert notices[0] == "KV memory of 4,096 tokens a replica is what latency model made up says"
    assert not any("no spec ships" in notice for notice in notices)


@pytest.mark.parametrize(
    "given",
    [
        {"cluster.model": "llama-3.1-8b"},
        {"cluster.kv_capacity_tokens": 8192},
        {"engine.num_kv_blocks": 512},
        {"latency.model": "meta-llama/Meta-Llama-3.1-8B"},
    ],
)
def test_memory_stays_as_it_is_given_or_known(given: dict[str, Any]) -> None:
    latency = {**LATENCY, "model": "someone/Else", "tensor_parallel": 2}
    config = load_config({**CONFIG, "cluster": {"num_gpus": 4}, "latency": latency}, given)

    adopted, _ = hardware.adopt_hardware(config)

    assert adopted.cluster.kv_capacity_tokens == config.cluster.kv_capacity_tokens


def test_what_is_estimated_is_said_before_the_run() -> None:
    _, notices = hardware.adopt_hardware(load_config(CONFIG))

    assert notices == ["latency model made up is doubtful: half of a pass is estimated, not measured"]


def test_gpus_of_a_replica_are_those_of_the_cluster_where_left_open() -> None:
    config = load_config({**CONFIG, "latency": LATENCY}, {"cluster.tensor_parallel": 4})

    latency = hardware.given_latency(config.latency, config.cluster.sharing(ReplicaConfig()))

    assert latency is not None
    assert latency.info.details["tensor_parallel"] == 4


def test_run_is_named_after_the_package_s_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity.identify(load_config(CONFIG))
    monkeypatch.setattr(identity, "package_version", lambda: "0.13.0")
    after = identity.identify(load_config(CONFIG))

    assert before.key == after.key
    assert before.run_id != after.run_id


def test_folder_with_a_config_counts_by_its_content(tmp_path: Path) -> None:
    config = load_config(CONFIG, {"latency.model": str(tmp_path)})
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    before = identity.identify(config)
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 1}', encoding="utf-8")

    assert identity.identify(config).run_id != before.run_id


@pytest.mark.parametrize(
    ("latency", "message"),
    [
        ({"family": "aiconfigurator", "model": "x"}, "needs latency.system"),
        ({"family": "aiconfigurator", "system": "x"}, "needs latency.model"),
        ({**LATENCY, "file": "latency.json"}, "give latency.file or latency.family, not both"),
        ({"system": "h200_sxm"}, 'latency.system needs latency.family = "aiconfigurator"'),
    ],
)
def test_settings_that_make_no_set_up_are_refused(latency: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"latency": latency})
