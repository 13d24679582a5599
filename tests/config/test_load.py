import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from batchsim.config import RunConfig, load_config
from batchsim.errors import ConfigError


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[cluster]\nnum_gpus = 2\n[policy]\npreset = "multi_bin"\n', encoding="utf-8")

    config = load_config(file, {"cluster.num_gpus": 4})

    assert config.cluster.num_gpus == 4
    assert config.policy.preset == "multi_bin"


def test_a_dumped_config_loads_as_itself() -> None:
    config = load_config({"slo": {"e2e_ms": 20000}, "predictor": {"kind": "lognormal", "sigma": 0.3}})

    again = load_config(config.model_dump(mode="json"))

    assert again == config
    assert again.predictor.parameters == {"sigma": 0.3}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"cluster": {"num_gpu": 2}}, "cluster.num_gpu"),
        ({"cluster": {"num_gpus": 0}}, "cluster.num_gpus"),
        ({"policy": {"batch_size": 0}}, "policy.batch_size"),
        ({"workload": {"rate_scale": 2.0, "request_rate": 1.0}}, "at most one"),
        ({"workload": {"window": [10.0, 5.0]}}, "window"),
        ({"slo": {"e2e_ms": float("nan")}}, "slo.e2e_ms"),
        ({"metrics": {"warmup": 1.5}}, "metrics.warmup"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_it(given: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        load_config(given)

    assert "\n" not in str(caught.value)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text("[cluster\n", encoding="utf-8")

    with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML"):
        load_config(file)


def test_a_dotted_key_cannot_go_through_a_value() -> None:
    with pytest.raises(ConfigError, match=r"seed\.x: seed is a value"):
        load_config({"seed": 3}, {"seed.x": 1})


def keys_of(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
        keys += keys_of(kind, f"{prefix}{name}.") if is_section else [f"{prefix}{name}"]
    return keys


def test_every_key_is_documented_and_no_other() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")

    documented = re.findall(r"^\| `([a-z0-9_.]+)` \|", page, re.MULTILINE)

    assert documented == keys_of(RunConfig)


def test_a_model_passes_through_unchanged() -> None:
    config = RunConfig(seed=7)

    assert load_config(config) == config


@pytest.mark.parametrize(
    ("cluster", "num_gpus", "num_replicas"),
    [
        ({}, 1, 1),
        ({"num_gpus": 4}, 4, 4),
        ({"tensor_parallel": 4}, 4, 1),
        ({"tensor_parallel": 4, "num_gpus": 8}, 8, 2),
        ({"tensor_parallel": 4, "num_replicas": 3}, 12, 3),
        ({"num_replicas": 3}, 3, 3),
        ({"tensor_parallel": 2, "num_replicas": 2, "num_gpus": 4}, 4, 2),
    ],
)
def test_gpus_are_counted_whichever_way_they_are_given(
    cluster: dict[str, int], num_gpus: int, num_replicas: int
) -> None:
    config = load_config({"cluster": cluster}).cluster

    assert config.num_gpus == num_gpus
    assert config.num_gpus // config.gpus_per_replica == num_replicas


def test_gpus_of_replicas_that_differ_are_added_up() -> None:
    replicas = [{"count": 2, "tensor_parallel": 4}, {"count": 3}]

    config = load_config({"cluster": {"replicas": replicas}})

    assert config.cluster.num_gpus == 11
    assert load_config(config.model_dump(mode="json")).cluster.num_gpus == 11


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (
            {"num_gpus": 6, "tensor_parallel": 4},
            "num_gpus is 6, which replicas of 4 GPUs .* do not divide; 8",
        ),
        (
            {"num_gpus": 1, "tensor_parallel": 2},
            "num_gpus is 1, which replicas of 2 GPUs .* do not divide; 2",
        ),
        ({"num_gpus": 4, "num_replicas": 2}, "num_gpus is 4, but the replicas have 2 GPUs together"),
        ({"num_gpus": 4, "replicas": [{"count": 3}]}, "num_gpus is 4, but the replicas have 3 GPUs together"),
        ({"num_replicas": 3, "replicas": [{"count": 3}]}, "replicas or cluster.num_replicas, not both"),
        ({"num_replicas": 60_000, "tensor_parallel": 60_000}, "3600000000 GPUs together; at most 65536"),
        ({"replicas": [{"count": 60_000}, {"count": 60_000}]}, "120000 GPUs together; at most 65536"),
    ],
)
def test_gpus_that_make_no_whole_replicas_are_refused(cluster: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"cluster": cluster})


def sections(section: type[BaseModel], prefix: str = "") -> list[tuple[str, object]]:
    found = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
        found += sections(kind, f"{prefix}{name}.") if is_section else [(f"{prefix}{name}", field)]
    return found


def is_count(field: object) -> bool:
    return "int" in re.findall(r"\w+", str(field.annotation)) and "bool" not in str(field.annotation)  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", [key for key, field in sections(RunConfig) if is_count(field)])
def test_every_count_has_an_upper_limit(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key} is 1000000000000000000000: input should be less than"):
        load_config(None, {key: 10**21})


def test_ten_billion_gpus_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"cluster.num_gpus is 10000000000: .* equal to 65536"):
        load_config({"cluster": {"num_gpus": 10_000_000_000}})


def test_noise_that_is_a_slip_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"latency.noise is 10.0"):
        load_config({"latency": {"noise": 10.0}})


def test_hardware_may_go_by_the_names_of_publishers_and_drivers() -> None:
    given = {"model": "meta-llama/Llama-3.1-8B-Instruct", "gpu": "NVIDIA H100 80GB HBM3"}

    cluster = load_config({"cluster": {**given, "replicas": [given]}}).cluster

    assert (cluster.model, cluster.gpu) == ("llama-3.1-8b", "h100")
    assert (cluster.replicas[0].model, cluster.replicas[0].gpu) == ("llama-3.1-8b", "h100")


def test_a_name_of_hugging_face_is_no_path_unless_a_file_is_there(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        '[cluster]\nmodel = "Qwen/Qwen2.5-7B"\ngpu = "own/h100"\n'
        '[[cluster.replicas]]\nmodel = "mine/qwen.json"\ngpu = "NVIDIA L4"\n',
        encoding="utf-8",
    )
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "h100").touch()

    cluster = load_config(file).cluster

    assert (cluster.model, cluster.gpu) == ("qwen2.5-7b", str(tmp_path / "own" / "h100"))
    assert cluster.replicas[0].model == str(tmp_path / "mine" / "qwen.json")
    assert cluster.replicas[0].gpu == "l4"


@pytest.mark.parametrize(("key", "value"), [("swap_bytes_per_s", 25.0), ("launch_s", 5.0)])
def test_engine_numbers_in_other_units_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"engine.{key} is {value}: input should be (greater|less) than"):
        load_config({"engine": {key: value}})


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("workload.request_rat", "did you mean request_rate or"),
        ("polcy.preset", "did you mean policy?"),
        ("cluster.replicas", "did you mean gpu?"),
        ("nothing_like_it", "known: seed, policy, workload,"),
        ("tensor_parallel", "did you mean cluster.tensor_parallel?"),
        ("cluster.gpu_memory_utilization", "did you mean engine.gpu_memory_utilization?"),
        ("engine.max_num_seqs", "did you mean policy.batch_size?"),
        ("workload.kind", "did you mean window"),
    ],
)
def test_an_unknown_key_gets_the_nearest_names(key: str, near: str) -> None:
    value = [{"gpus": 2}] if key == "cluster.replicas" else 1

    with pytest.raises(ConfigError, match=rf"configuration: unknown key {key.split('.preset')[0]}.*; {near}"):
        load_config(None, {key: value})


def test_a_sweep_file_is_no_run_file(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text('name = "loads"\n[base]\nseed = 1\n[grid]\nseed = [1, 2]\n', encoding="utf-8")

    with pytest.raises(ConfigError, match=r"sweep\.toml: a sweep file, for `batchsim sweep`"):
        load_config(file)


def test_an_override_may_name_a_percentile_with_a_decimal() -> None:
    config = load_config(None, {"slo.ttft_p99.9_ms": 500.0})

    assert config.slo.statistics_s == {"ttft_p99.9": 0.5}


def test_host_times_are_those_of_the_engine_unless_given() -> None:
    named = load_config({"engine": {"frontend": "vllm"}}).engine.host
    given = load_config({"engine": {"frontend": "vllm", "launch_s": 0.0}}).engine.host

    assert min(named.launch_s, named.prefill_launch_s, named.prefill_token_s) > 0
    assert given == named._replace(launch_s=0.0)
    assert not any(load_config({}).engine.host)
