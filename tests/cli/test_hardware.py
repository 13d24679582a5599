import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from batchsim.cli import main
from batchsim.latency.profiles import aiconfigurator
from batchsim.specs import load_gpu, load_model
from batchsim.specs.names import shipped

needs_package = pytest.mark.skipif(
    not aiconfigurator.is_installed(), reason="aiconfigurator-core is not installed"
)


def batchsim(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_all_that_ships_is_listed_with_its_numbers() -> None:
    table, tree = batchsim("hardware"), json.loads(batchsim("hardware", "--json").stdout)

    assert all(name in table.stdout for kind in ("gpus", "models") for name in shipped(kind))
    assert "3,350" in table.stdout
    assert list(tree["gpus"]) == list(shipped("gpus"))
    assert tree["gpus"]["h100"]["memory_bytes"] == load_gpu("h100").memory_bytes
    assert tree["models"]["llama-3.1-8b"]["kv_bytes_per_token"] == 131_072
    assert tree["models"]["qwen2.5-1.5b"]["num_parameters"] == load_model("qwen2.5-1.5b").num_parameters


def test_one_is_printed_as_the_file_that_describes_it(tmp_path: Path) -> None:
    gpu, model = tmp_path / "gpu.json", tmp_path / "model.json"

    gpu.write_text(batchsim("hardware", "NVIDIA H100 80GB HBM3").stdout, encoding="utf-8")
    model.write_text(batchsim("hardware", "Qwen/Qwen2.5-7B-Instruct").stdout, encoding="utf-8")

    assert load_gpu(gpu) == load_gpu("h100")
    assert load_model(model) == load_model("qwen2.5-7b")
    assert batchsim("hardware", str(gpu)).stdout == gpu.read_text(encoding="utf-8")


def test_models_are_listed_by_name() -> None:
    names = list(shipped("models"))

    assert names == sorted(names)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    result = batchsim("hardware", "h1000")

    assert result.exit_code == 2
    assert "did you mean h100" in result.stderr


def test_a_run_understands_the_names_of_publishers_and_drivers() -> None:
    hardware = ["cluster.model=meta-llama/Llama-3.1-8B-Instruct", "cluster.gpu=NVIDIA H100 80GB HBM3"]
    settings = [word for setting in hardware for word in ("--set", setting)]

    result = batchsim("run", "--num-requests", "20", *settings, "--json")

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["latency_model"] == "roofline of llama-3.1-8b on h100"


def test_without_the_extra_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiconfigurator, "is_installed", lambda: False)

    result = batchsim("hardware")

    assert result.exit_code == 0
    assert "pip install 'batchsim[hardware]'" in result.stdout


@needs_package
def test_extra_s_systems_and_models_are_listed() -> None:
    table, tree = batchsim("hardware"), json.loads(batchsim("hardware", "--json").stdout)

    assert "b200_sxm" in table.stdout
    assert "current" in tree["aiconfigurator"]["versions"]["h200_sxm"]["vllm"]
    assert "deepseek-ai/DeepSeek-V3" in tree["aiconfigurator"]["models"]


@needs_package
def test_it_is_told_where_a_model_was_measured() -> None:
    rows = json.loads(batchsim("hardware", "--measured", "deepseek-ai/DeepSeek-V3", "--json").stdout)["tried"]

    assert {row["source"] for row in rows} >= {"measured"}
    assert {row["system"] for row in rows} >= {"h200_sxm", "l40s"}
    assert "did you mean deepseek-ai/DeepSeek" in batchsim("hardware", "--measured", "deepseek-ai/V3").stderr
