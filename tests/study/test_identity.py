import json
import os
from pathlib import Path

import pytest

from batchsim.config import load_config
from batchsim.errors import ConfigError
from batchsim.policies.presets import find_preset
from batchsim.specs import load_gpu
from batchsim.study import identity
from batchsim.study.identity import PACKAGE, check_unchanged, file_hash, identify, policy_files

POLICY = """
from {helper} import SIZE
from batchsim.policies.batching import Greedy
from batchsim.policies.presets import Preset
from batchsim.policies.queueing import Fifo
from batchsim.policies.sizing import FixedSize

mine = Preset(Fifo(), FixedSize(SIZE), Greedy())
"""

GPU = {"name": "mine", "memory_bytes": 16 * 2**30, "flop_per_s": 1e14, "memory_bytes_per_s": 5e11}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that modules are imported from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def trace(folder: Path, num_requests: int = 3) -> Path:
    file = folder / "trace.csv"
    rows = "".join(f"{second},10,20\n" for second in range(num_requests))
    file.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}", encoding="utf-8")
    return file


def policy(folder: Path, name: str, size: int) -> str:
    (folder / f"{name}_size.py").write_text(f"SIZE = {size}\n", encoding="utf-8")
    (folder / f"{name}.py").write_text(POLICY.format(helper=f"{name}_size"), encoding="utf-8")
    return f"{name}:mine"


def gpu(file: Path, **changes: object) -> Path:
    file.write_text(json.dumps({**GPU, **changes}), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("workload.trace", "FILE"),
        ("latency.file", "FILE"),
        ("cluster.gpu", "FILE"),
        ("cluster.replicas", [{"latency_file": "FILE"}]),
        ("cluster.replicas", [{"gpu": "FILE"}]),
        ("engine.speculation", {"draft_latency_file": "FILE"}),
    ],
)
def test_a_run_loses_its_name_when_a_file_changes_and_keeps_its_key(
    tmp_path: Path, key: str, value: object
) -> None:
    file = tmp_path / "file.json"
    settings = {
        "workload.trace": str(trace(tmp_path)),
        key: json.loads(json.dumps(value).replace("FILE", str(file))),
    }
    config = load_config(None, settings)

    gpu(file)
    first = identify(config)
    gpu(file, flop_per_s=2e14)
    second = identify(config)

    assert first.run_id != second.run_id
    assert first.key == second.key
    assert str(file) in first.inputs


def test_a_run_keeps_its_name_when_its_files_lie_elsewhere(tmp_path: Path) -> None:
    names = []
    for place in ("here", "there"):
        folder = tmp_path / place
        folder.mkdir()
        tree = {"workload.trace": str(trace(folder)), "cluster.gpu": str(gpu(folder / "gpu.json"))}
        names.append(identify(load_config(None, tree)).run_id)

    assert names[0] == names[1]


def test_the_source_of_a_policy_and_of_what_it_imports_from_beside_it_names_a_run(folder: Path) -> None:
    tree = {"workload.trace": str(trace(folder)), "policy.preset": policy(folder, "named", 4)}

    first = identify(load_config(None, tree))
    policy(folder, "named", 8)
    second = identify(load_config(None, tree))

    assert first.run_id != second.run_id
    assert {Path(name).name for name in first.inputs} >= {"named.py", "named_size.py", "trace.csv"}


def test_the_source_of_a_scaling_rule_names_a_run(folder: Path) -> None:
    preset = policy(folder, "scaling_rule", 4)
    tree = {"workload.trace": str(trace(folder)), "autoscaler.kind": preset}

    first = identify(load_config(None, tree))
    policy(folder, "scaling_rule", 8)
    second = identify(load_config(None, tree))

    assert first.run_id != second.run_id


def test_a_package_counts_with_the_modules_that_it_imports_and_no_others(folder: Path) -> None:
    package = folder / "bundle"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "deep.py").write_text("import numpy\n", encoding="utf-8")
    (package / "unused.py").write_text("", encoding="utf-8")
    (package / "rules.py").write_text("def f():\n    from . import deep\n", encoding="utf-8")

    found = policy_files("bundle.rules:any")

    assert {file.name for file in found} == {"__init__.py", "deep.py", "rules.py"}


def test_a_module_that_changed_is_imported_anew(folder: Path) -> None:
    preset = policy(folder, "fresh", 4)
    identity.refresh_policy(preset)
    before = find_preset(preset).sizing.max_batch_size

    policy(folder, "fresh", 8)
    identity.refresh_policy(preset)

    assert (before, find_preset(preset).sizing.max_batch_size) == (4, 8)


def test_this_package_names_a_run_but_not_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config({"workload": {"generator": {"kind": "poisson"}}})
    read: list[Path] = []
    monkeypatch.setattr(identity, "file_hash", lambda file: read.append(file) or "same")

    identity.package_hash.__wrapped__()
    first = identify(config)
    monkeypatch.setattr(identity, "package_hash", lambda: "other code")

    assert first.run_id != identify(config).run_id
    rooms = {file.relative_to(Path(identity.batchsim.__file__).parent).parts[0] for file in read}
    assert {"sim", "policies", "specs", "latency"} <= rooms
    assert not {"figures", "cli", "validation"} & rooms


def test_a_file_that_was_replaced_by_one_as_long_and_as_old_is_noticed(tmp_path: Path) -> None:
    file = trace(tmp_path)
    inputs = {str(file): file_hash(file)}
    stat = file.stat()

    check_unchanged(inputs)
    file.write_text(file.read_text(encoding="utf-8").replace("20", "30"), encoding="utf-8")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    with pytest.raises(ConfigError, match=r"trace\.csv: changed while the sweep ran"):
        check_unchanged(inputs)


def test_code_that_changed_is_noticed_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"batchsim .*: changed"):
        check_unchanged({PACKAGE: "what was planned"})


def test_a_folder_of_a_model_counts_with_what_lies_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    tree = {
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 100,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(tree), encoding="utf-8")
    config = load_config({"cluster": {"model": str(folder)}})

    plain = identify(config)
    quantised = {"quantization": {"quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(quantised), encoding="utf-8")

    assert str(folder / "config.json") in plain.inputs
    assert identify(config).run_id != plain.run_id


def test_a_broken_spec_is_told_when_a_run_is_named(tmp_path: Path) -> None:
    file = gpu(tmp_path / "gpu.json", memory_bytes=-1)

    with pytest.raises(ConfigError, match="memory_bytes is -1"):
        identify(load_config({"cluster": {"gpu": str(file)}, "workload": {"generator": {"kind": "poisson"}}}))
    assert load_gpu(gpu(file)).name == "mine"
