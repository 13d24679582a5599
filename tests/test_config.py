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
    page = (Path(__file__).resolve().parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8")

    documented = re.findall(r"^\| `([a-z0-9_.]+)` \|", page, re.MULTILINE)

    assert documented == keys_of(RunConfig)


def test_a_model_passes_through_unchanged() -> None:
    config = RunConfig(seed=7)

    assert load_config(config) == config
