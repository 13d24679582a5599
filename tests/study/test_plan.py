from pathlib import Path

import pytest

from batchsim.errors import ConfigError
from batchsim.study.plan import plan, read_sweep_file

START = """
name = "small"
figure = "scaling"
[base]
workload.num_requests = 40
workload.generator.kind = "poisson"
"""

VALUES = [
    "3", "-1", "nan", "99999999999999999999999999", "true", "1979-05-27", '"x"',
    '""', '"[/red]"', '"""a\nb"""',
    "[]", "[[1]]", "[{a = 1}]", '[1, "a"]', "{}", "{a = {b = {c = 1}}}", '{"a\\nb" = 1}', "[{gpu = 1}]",
]  # fmt: skip
KEYS = [
    "seed", "policy", "policy.preset", "policy.queueing.kind", "policy.sizing", "policy.batching.chunk",
    "policy.routing", "workload", "workload.window", "workload.generator", "cluster.num_gpus",
    "cluster.model",
    "cluster.replicas", "latency", "latency.file", "predictor", "predictor.kind", "slo.e2e_ms",
    "clients.kind",
    "patience_s", "policy.preset.x", '"a\\nb"', "nonsense",
]  # fmt: skip
PLACES = [
    "{start}{key} = {value}\n",
    "{start}[grid]\n{key} = [{value}]\n",
    "{start}[[cases]]\n{key} = {value}\n",
]


def sweep_file(folder: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text, encoding="utf-8")
    return path


def trace(folder: Path) -> Path:
    file = folder / "mine.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,20\n1,10,20\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("place", PLACES, ids=["base", "grid", "case"])
def test_a_malformed_sweep_file_is_one_line_in_our_words(tmp_path: Path, place: str) -> None:
    said = []
    for key in KEYS:
        for value in VALUES:
            path = sweep_file(tmp_path, place.format(start=START, key=key, value=value))
            try:
                plan(read_sweep_file(path), path)
            except ConfigError as error:
                said.append(str(error))

    assert len(said) > 0.75 * len(KEYS) * len(VALUES)
    assert all(sentence.startswith(str(tmp_path)) for sentence in said)
    assert not [
        sentence for sentence in said if "\n" in sentence or "http" in sentence or len(sentence) > 700
    ]


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 2000 + "]" * 2000, ".".join("a" * 2000) + " = 1", "name = 'x\ny'", "\x00", "="]
)
def test_what_is_no_toml_or_nested_without_end_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as told:
        read_sweep_file(sweep_file(tmp_path, text))

    assert "\n" not in str(told.value)


def test_the_files_that_a_sweep_names_are_sought_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    trace(folder)
    monkeypatch.chdir(tmp_path)
    text = """
        name = "paths"
        figure = "scaling"
        base.workload.trace = "mine.csv"
        base.policy.preset = "vllm_v1"
        base.cluster.replicas = [{gpu = "h100", latency_file = "mine.csv"}]
    """

    (run,) = plan(read_sweep_file(sweep_file(folder, text)))

    assert Path(str(run.config.workload.trace)) == folder / "mine.csv"
    assert run.config.cluster.replicas[0].latency_file == str(folder / "mine.csv")
    assert run.config.cluster.replicas[0].gpu == "h100"


def test_a_file_that_lies_in_the_current_folder_alone_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    trace(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = sweep_file(folder, 'name = "a"\nfigure = "scaling"\nbase.workload.trace = "mine.csv"\n')

    with pytest.raises(ConfigError, match=r"here/mine\.csv: cannot be read"):
        plan(read_sweep_file(path))


def test_overrides_win_over_base_grid_and_cases(tmp_path: Path) -> None:
    text = f'{START}seed = 1\n[grid]\ncluster.num_gpus = [1, 2]\n[[cases]]\nseed = 2\nlabel = "a"\n'

    runs = plan(read_sweep_file(sweep_file(tmp_path, text), overrides={"seed": 7, "cluster.num_gpus": 3}))

    assert [(run.config.seed, run.config.cluster.num_gpus, run.case) for run in runs] == [(7, 3, "a")]


@pytest.mark.parametrize(
    "body", ["import sys; sys.exit(0)", "def f(:", "1 / 0", "from batchsim import nothing"]
)
def test_an_own_policy_that_cannot_be_imported_ends_the_planning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"faulty{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(body, encoding="utf-8")
    path = sweep_file(tmp_path, f'{START}policy.preset = "{name}:mine"\n')

    with pytest.raises(ConfigError, match=r"cannot be imported"):
        plan(read_sweep_file(path), path)
