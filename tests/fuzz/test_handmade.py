"""Every reader, through its command, on files that are malformed by hand: it ends, and in one sentence."""

import gzip
import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from click.testing import CliRunner

from batchsim.cli import main
from batchsim.latency.store import save_latency
from batchsim.results.dataset import DATASET
from batchsim.study.sweep import run_sweep
from tests.fuzz.bounds import within_bounds
from tests.fuzz.handmade import faults
from tests.fuzz.mutations import EXAMPLES
from tests.fuzz.test_calibrations import AGGREGATED, raw
from tests.fuzz.test_profiles import GPU, HUGGING_FACE, MODEL
from tests.fuzz.test_traces import FORMATS
from tests.latency.profiles import test_operator_profile
from tests.latency.profiles.test_importing import write_distserve, write_splitwise
from tests.latency.test_store import MODELS
from tests.results.test_measured_tables import SGLANG, VLLM, aiperf, guidellm
from tests.validation.roofline.published import write_batches, write_loops

#: Of each reader; the long run tries them all.
NUM_FAULTS = EXAMPLES // 8

RUN = """
seed = 3
[policy]
preset = "multi_bin"
num_bins = 2
[workload]
num_requests = 40
[workload.generator]
kind = "poisson"
rate_per_s = 2.0
prompt = {kind = "fixed", tokens = 20}
output = {kind = "uniform", low = 5, high = 20}
"""
SWEEP = """
name = "few"
figure = {kind = "lines", x = "workload.request_rate", y = ["e2e_mean_s"]}
base.policy.preset = "static_fifo"
base.workload.num_requests = 3
base.workload.generator.kind = "poisson"
base.workload.generator.rate_per_s = 1.0
base.workload.generator.prompt = {kind = "fixed", tokens = 20}
base.workload.generator.output = {kind = "fixed", tokens = 20}
grid.workload.request_rate = [1.0, 2.0]
grid.seed = [1, 2]
"""
POLICY = """
from batchsim.policies import FixedSize, Fifo, Greedy, Preset

mine = Preset(Fifo(), FixedSize(8), Greedy())
"""


class Given(NamedTuple):
    """A valid file, and the command that reads it."""

    file: Path
    command: Sequence[str]


Reader = Callable[[Path], Given]


def written(path: Path, content: str | bytes | object) -> Path:
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet(frame: pd.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.to_parquet(file)
    return file.getvalue()


def trace(content: str | bytes) -> Reader:
    def reader(folder: Path) -> Given:
        file = written(folder / "trace", content)
        return Given(file, ["trace", "convert", str(file), str(folder / "out.parquet")])

    return reader


def latency(number: int) -> Reader:
    def reader(folder: Path) -> Given:
        file, policy = folder / "latency.json", "static_fifo"
        save_latency(MODELS[number], file)
        given = ["--policy", policy, "--num-requests", "3", "--extrapolate"]
        return Given(file, ["run", "--latency", str(file), *given])

    return reader


def calibration(content: str, family: str) -> Reader:
    def reader(folder: Path) -> Given:
        file = written(folder / "grid.csv", content)
        return Given(file, ["fit", str(file), "--family", family, "-o", str(folder / "out.json")])

    return reader


def profile(name: str) -> Reader:
    def reader(folder: Path) -> Given:
        tables = {"moe": test_operator_profile.EXPERTS, "skew": test_operator_profile.SKEW}
        where = test_operator_profile.write_profile(folder / "tp1", **tables)
        config = written(folder / "config.json", test_operator_profile.MOE)
        file = config if name == "config" else where / f"{name}.csv"
        given = ["--model-config", str(config), "-o", str(folder / "out.json")]
        return Given(file, ["import-profile", str(folder), *given])

    return reader


def of_others(write: Callable[[Path], Path], command: str, *options: str) -> Reader:
    def reader(folder: Path) -> Given:
        file = write(folder)
        return Given(file, [command, str(file), *options, "-o", str(folder / "out")])

    return reader


def spec(tree: object, key: str) -> Reader:
    def reader(folder: Path) -> Given:
        file = written(folder / "spec.json", tree)
        return Given(file, ["run", "--num-requests", "3", "--set", f'{key}="{file}"'])

    return reader


def run_file(folder: Path) -> Given:
    file = written(folder / "run.toml", RUN)
    return Given(file, ["run", str(file), "--num-requests", "40"])


def sweep_file(folder: Path) -> Given:
    file = written(folder / "sweep.toml", SWEEP)
    return Given(file, ["sweep", str(file), "-o", str(folder / "out")])


def policy(folder: Path) -> Given:
    name = f"policy_{abs(hash(folder))}"
    return Given(
        written(folder / f"{name}.py", POLICY), ["run", "--num-requests", "3", "--policy", f"{name}:mine"]
    )


def swept(name: str) -> Reader:
    def reader(folder: Path) -> Given:
        figure = '{kind = "over_time", y = ["waiting"]}\nsave = "tables"'
        text = SWEEP.replace(SWEEP.splitlines()[2], f"figure = {figure}")
        sweep = written(folder / "sweep.toml", text)
        run_sweep(sweep, folder)
        file = next((folder / "few").rglob(name))
        if name == DATASET:
            return Given(file, ["figures", str(folder)])
        (folder / "few" / DATASET).unlink()  # so that it is collected from the runs again
        return Given(file, ["sweep", str(sweep), "-o", str(folder)])

    return reader


READERS: dict[str, Reader] = {
    **{f"trace {name}": trace(known.text) for name, known in FORMATS.items()},
    "trace, gzipped": trace(gzip.compress(FORMATS["own"].text.encode(), mtime=0)),
    "trace, Parquet": trace(parquet(pd.read_csv(io.StringIO(FORMATS["own"].text)))),
    **{f"latency {type(model).__name__} {i}": latency(i) for i, model in enumerate(MODELS)},
    "calibration, trials": calibration(raw(), "linear"),
    "calibration, means": calibration(AGGREGATED, "affine"),
    **{
        f"profile {name}": profile(name)
        for name in ("dense", "per_sequence", "attention", "moe", "skew", "config")
    },
    "DistServe": of_others(write_distserve, "import-profile", "--tensor-parallel", "2"),
    "splitwise": of_others(write_splitwise, "import-profile", "--tensor-parallel", "8"),
    "static batches": of_others(lambda folder: write_batches(folder / "b.csv", {}), "roofline-error"),
    "closed loops": of_others(lambda folder: write_loops(folder / "l.csv", {}), "roofline-error"),
    "vLLM": trace(json.dumps(VLLM)),
    "SGLang": trace(json.dumps(SGLANG)),
    "GuideLLM": trace(json.dumps(guidellm())),
    "AIPerf": trace(json.dumps(aiperf(1_759_000_000_000_000_000))),
    "GPU": spec(GPU, "cluster.gpu"),
    "model": spec(MODEL, "cluster.model"),
    "model of others": spec(HUGGING_FACE, "cluster.model"),
    "run": run_file,
    "sweep": sweep_file,
    "policy": policy,
    **{
        f"results {name}": swept(name)
        for name in (
            DATASET,
            "sweep.json",
            "manifest.json",
            "summary.json",
            "requests.parquet",
            "sketches.parquet",
        )
    },
}


def complaint(command: Sequence[str]) -> str:
    """What is amiss with how a command ends; empty where it did its work, or refused it in one sentence."""
    result = CliRunner().invoke(main, list(command))
    if not isinstance(result.exception, SystemExit | None):
        return repr(result.exception)
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    if "Traceback" in result.output or result.exit_code not in (0, 1, 2):
        return result.output
    if result.exit_code and not (lines and lines[-1].isprintable() and len(lines[-1]) < 1_000):
        return f"exit {result.exit_code}: {result.output[-1_000:]!a}"
    return ""


@pytest.mark.parametrize("name", READERS)
def test_a_malformed_file_is_refused_in_one_sentence_or_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = tmp_path / "valid"
    valid.mkdir()
    file = READERS[name](valid).file
    content = file.read_bytes()
    listed = faults(content)
    every = max(1, len(listed) // max(NUM_FAULTS, 1))
    amiss = {}

    for number, (fault, damage) in list(enumerate(listed))[list(READERS).index(name) % every :: every]:
        folder = tmp_path / str(number)
        folder.mkdir()
        given = READERS[name](folder) if "results" not in name else moved(valid, file, folder)
        monkeypatch.syspath_prepend(str(folder))
        damage(given.file)
        try:
            with within_bounds():
                said = complaint(given.command)
        except AssertionError as error:
            said = str(error)
        if said:
            amiss[fault] = said
        sys.path.remove(str(folder))

    assert amiss == {}


def moved(valid: Path, file: Path, folder: Path) -> Given:
    """A copy of results, which take long to make."""
    shutil.copytree(valid, folder, dirs_exist_ok=True)
    return Given(folder / file.relative_to(valid), ["figures", str(folder)])


def test_there_are_many_of_them_and_a_valid_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path / "policy"))
    num_faults = 0
    for name, reader in READERS.items():
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        given = reader(folder)
        num_faults += len(faults(given.file.read_bytes()))
        if name in ("run", "sweep", "policy", "GPU", "trace own", "vLLM", "splitwise", "DistServe"):
            done = CliRunner().invoke(main, list(given.command))
            assert done.exit_code == 0, (name, done.output)

    assert num_faults >= 2_000
