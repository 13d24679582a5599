"""What goes wrong around the commands: terminals, pipes, memory, and options that no program would give."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from batchsim.cli import main
from batchsim.cli.output import echo_json
from batchsim.files import sibling


def batchsim(*args: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable.encode(), b"-m", b"batchsim", *map(os.fsencode, args)]
    return subprocess.run(
        command, check=False, capture_output=True, timeout=300, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--set", "seed=" + "9" * 5_000], "seed is '9999"),
        (["--predictor", "constant:tokens=" + "9" * 5_000], "predictor.tokens is"),
        (["--set", "seed=" + "[" * 3_000], "seed is '[[["),
        (["--set", "seed=" + "[" * 3_000 + "]" * 3_000], "seed is '[[["),
        (["--set", "policy.queueing=" + "[" * 40 + "]" * 40], "more than 30 tables or lists in each other"),
        (["--set", "a." * 5_000 + "b=1"], "more than 30 tables or lists in each other"),
        (["--set", "a.b.c="], "unknown key a; known: "),
        (["--window", "nan:inf"], "workload.window.0 is nan"),
        (["--predictor", "nonsense"], "predictor.kind is 'nonsense'"),
    ],
)
def test_a_value_beyond_reason_is_one_sentence(given: list[str], sentence: str) -> None:
    result = CliRunner().invoke(main, ["run", *given])

    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stderr) < 1_000


@pytest.mark.parametrize("text", ["seed = " + "9" * 5_000, "a = " + "[" * 3_000, "[" + "a." * 3_000 + "a]"])
def test_a_file_beyond_reason_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")

    result = CliRunner().invoke(main, ["run", str(tmp_path / "run.toml")])

    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1


def test_a_named_pipe_is_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.toml")

    result = CliRunner().invoke(main, ["run", str(tmp_path / "run.toml")])

    assert result.exit_code == 2
    assert "is a named pipe" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are bytes elsewhere")
@pytest.mark.parametrize("given", [[b"run", b"--trace", b"\xff.csv"], [b"run", b"-o", b"\xff"], [b"\xff"]])
def test_bytes_that_are_no_text_are_one_sentence(given: list[bytes]) -> None:
    result = batchsim(*given)

    assert result.returncode == 2
    assert rb"\udcff" in result.stderr
    assert b"no UTF-8 text" in result.stderr
    assert b"Traceback" not in result.stderr


def test_a_terminal_that_knows_few_letters_gets_the_others_replaced(tmp_path: Path) -> None:
    trace = tmp_path / "größe.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n1,2,2\n", encoding="utf-8")

    result = batchsim("trace", "info", str(trace), PYTHONIOENCODING="ascii")

    assert result.returncode == 0, result.stderr
    assert b"gr??e.csv" in result.stdout


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "batchsim", "policies"]
        result = subprocess.run(command, check=False, stdout=writer, stderr=subprocess.PIPE, timeout=300)
    finally:
        os.close(writer)

    assert result.stderr == b""


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("maximum recursion depth exceeded")])
def test_what_the_machine_cannot_hold_is_one_sentence(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("batchsim.study.run.simulate", give_up)

    result = CliRunner().invoke(main, ["run"])

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: there is not enough ")
    assert len(result.stderr.splitlines()) == 1


GENERATED = (
    'workload.generator={kind="poisson", rate_per_s=2.0, prompt={kind="fixed", tokens=200}, '
    'output={kind="fixed", tokens=20}}'
)


@pytest.mark.skipif(os.name != "posix", reason="limits of a process")
@pytest.mark.parametrize(
    ("command", "answer"),
    [(["recommend", "--vary", "num_gpus=1"], "cheapest that attains"), (["capacity"], "requests/s")],
)
def test_an_answer_that_finds_no_space_on_the_disk_is_printed_all_the_same(
    command: list[str], answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python would keep the first 100 bytes of a module

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    wanted = ["--slo", "e2e:5000", "--set", GENERATED, "--num-requests", "100", "-o", str(tmp_path / "out")]
    given = ["--policy", "vllm_v1", "--set", "cluster.gpu=l40s", "--set", "cluster.model=llama-3.1-8b"]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        result = CliRunner().invoke(main, [*command, *wanted, *given])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert answer in result.stdout
    assert result.exit_code != 0
    assert "cannot be written" in result.stderr
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


KILLED = """
import os, signal, sys
from pathlib import Path
from batchsim.files import sibling
partial = sibling(Path(sys.argv[1]))
partial.mkdir()
(partial / "summary.json").write_text("half")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("command", ["run", "sweep", "synth"])
def test_what_a_killed_run_left_goes_with_the_next_command_that_writes_beside_it(
    command: str, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "killed")], check=False, timeout=300)
    living = sibling(tmp_path / "living")
    living.mkdir()
    file = tmp_path / "few.toml"
    file.write_text('name = "few"\nbase.workload.num_requests = 3\n', encoding="utf-8")
    given = {
        "run": ["run", "--num-requests", "3", "-o", str(tmp_path / "new")],
        "sweep": ["sweep", str(file), "-o", str(tmp_path)],
        "synth": ["trace", "synth", "--num-requests", "3", "-o", str(tmp_path / "new.csv")],
    }
    before = [path.name for path in tmp_path.iterdir() if path.name.startswith(".killed")]

    result = CliRunner().invoke(main, given[command])

    assert result.exit_code == 0, result.output
    assert len(before) == 1
    assert list(tmp_path.glob(".*")) == [living]


def test_printed_json_has_null_where_there_is_no_number() -> None:
    @click.command()
    def show() -> None:
        echo_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": (float("-inf"),)}})

    result = CliRunner().invoke(show)

    assert json.loads(result.stdout) == {"a": None, "b": [None, 1.5], "c": {"d": [None]}}
