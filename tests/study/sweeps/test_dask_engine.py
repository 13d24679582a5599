"""Sweeps on a Dask cluster: the same bytes as without one, whatever dies on the way."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from batchsim.errors import BatchsimError, ConfigError
from batchsim.results.dataset import Dataset
from batchsim.results.store import read_summary
from batchsim.study.plan import PlannedRun, plan, read_sweep_file
from batchsim.study.sweep import SweepProgress, run_sweep
from batchsim.study.sweeps import dask_engine
from batchsim.study.sweeps.dask_engine import _Batches, _NoAnswer, _Sent, _settled, do_here, run_on_dask
from batchsim.study.worker import Failure, Task

SWEEP = """
name = "small"
save = "tables"
[base]
policy.preset = "slow:slow"
workload.num_requests = 30
workload.generator.kind = "poisson"
workload.generator.rate_per_s = 1.0
workload.generator.prompt = {kind = "fixed", tokens = 10}
workload.generator.output = {kind = "uniform", low = 1, high = 90}
[grid]
seed = [0, 1, 2, 3, 4, 5]
"""

#: What is in the folder decides what happens: so the policy, and all that names its runs, stays the same.
POLICY = """
import os, time
from dataclasses import dataclass
from pathlib import Path
from batchsim.policies.batching import Greedy
from batchsim.policies.presets import Preset
from batchsim.policies.queueing import Fifo
from batchsim.policies.sizing import FixedSize

HERE = Path(__file__).parent

@dataclass
class Slow(FixedSize):
    deadly: bool = False

    def prepare(self, setting):
        if self.deadly:
            os._exit(1)
        if (HERE / "die_once").exists():
            (HERE / "die_once").unlink()
            os._exit(1)
        (HERE / "started").touch()
        while (HERE / "wait").exists():
            time.sleep(0.01)

slow, deadly = Preset(Fifo(), Slow(), Greedy()), Preset(Fifo(), Slow(deadly=True), Greedy())
"""

needs_dask = pytest.mark.skipif(
    find_spec("distributed") is None, reason="the extra [cluster] is not installed"
)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep file, with a policy beside it that can be held up."""
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("slow", None)
    (tmp_path / "slow.py").write_text(POLICY, encoding="utf-8")
    file = tmp_path / "sweep.toml"
    file.write_text(SWEEP, encoding="utf-8")
    return file


def contents(output: Path) -> dict[str, bytes]:
    """What a sweep leaves, but for when each run was made, and how one failed."""
    folder = output / "small"
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in ("manifest.json", "failure.json")
    }


def first_task(path: Path, directory: Path, **changes: object) -> Task:
    run = plan(read_sweep_file(path), path)[0]
    fields = {name: getattr(run, name) for name in PlannedRun.__slots__} | changes
    return Task(PlannedRun(**fields), directory / run.run_id, save_tables=True)


@needs_dask
def test_a_cluster_of_this_machine_gives_the_same_bytes_whatever_dies_in_it(
    path: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """One worker dies at a run, which another one does, and all die of a run, which fails alone."""
    presets = [*["slow:slow"] * 3, "slow:deadly"]
    deadly = f"zip = [{{policy.preset = {presets}, seed = [0, 1, 2, 3]}}]"
    base = SWEEP.partition("[grid]")[0].replace('policy.preset = "slow:slow"', "")
    path.write_text(f"{deadly}\n{base}", encoding="utf-8")
    with pytest.raises(BatchsimError, match=r"1 of 4 runs failed.*slow:deadly"):
        run_sweep(path, tmp_path / "alone", jobs=2)
    (tmp_path / "die_once").touch()
    notices: list[str] = []

    with socket.socket() as other:
        with suppress(OSError):  # where another cluster has it already
            other.bind(("127.0.0.1", 8787))
            other.listen()
        with pytest.raises(BatchsimError, match=r"1 of 4 runs failed.*:deadly.*its worker died, and so did"):
            run_sweep(path, tmp_path / "dask", backend="dask", on_notice=notices.append)

    assert not (tmp_path / "die_once").exists()
    dask, alone = (contents(tmp_path / name) for name in ("dask", "alone"))
    for name in ("dataset.parquet", "tables.json"):  # in which stands how one failed
        assert dask.pop(name) != alone.pop(name)
    assert dask == alone
    tables = [Dataset(tmp_path / name / "small" / "dataset.parquet").runs for name in ("dask", "alone")]
    assert tables[0].equals(tables[1])
    (failure,) = (tmp_path / "dask").rglob("failure.json")
    assert json.loads(failure.read_bytes())["varied"]["policy.preset"] == "slow:deadly"
    assert notices == []
    assert not any("Port 8787" in str(warned.message) for warned in recwarn)


class Cluster:
    """A scheduler and two workers in processes of their own, which can be killed and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.address = f"tcp://127.0.0.1:{port}"
        self._folder, self._port = folder, port
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all three; the workers seek the scheduler for a while."""
        worker = [
            "worker",
            self.address,
            "--nthreads",
            "1",
            "--no-dashboard",
            "--no-nanny",
            "--death-timeout",
            "60",
        ]
        scheduler = ["scheduler", "--host", "127.0.0.1", "--port", str(self._port), "--no-dashboard"]
        for arguments in (scheduler, worker, worker):
            command = [sys.executable, "-m", "dask", *arguments]
            log = (self._folder / "cluster.log").open("ab")
            self._processes.append(
                subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log, start_new_session=True)
            )

    def kill(self) -> None:
        """Let all of it go at once."""
        for process in self._processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one = Cluster(tmp_path, port)
    one.start()
    yield one
    one.kill()


@needs_dask
def test_a_scheduler_that_is_started_again_loses_what_was_under_way_at_most(
    path: Path, tmp_path: Path, cluster: Cluster
) -> None:
    run_sweep(path, tmp_path / "alone")
    notices: list[str] = []
    states: list[SweepProgress] = []

    def kill_and_start() -> None:
        """Kill all while two runs are under way; the new workers are not held up."""
        cluster.kill()
        cluster.start()
        (tmp_path / "wait").unlink()

    timer = threading.Timer(1.0, kill_and_start)

    def watch(state: SweepProgress) -> None:
        states.append(state)
        if state.num_ended == 2:
            (tmp_path / "wait").touch()
            (tmp_path / "started").unlink()
            timer.start()

    try:
        run_sweep(
            path,
            tmp_path / "dask",
            backend="dask",
            scheduler=cluster.address,
            on_progress=watch,
            on_notice=notices.append,
        )
    finally:
        if timer.is_alive():
            timer.join()  # or it would start what nobody ends

    assert contents(tmp_path / "dask") == contents(tmp_path / "alone")
    assert [state.num_ended for state in states] == list(range(7))  # each once
    assert any("is gone; what was under way is done again" in notice for notice in notices)


@needs_dask
def test_a_sweep_waits_for_the_first_worker_and_says_so(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(dask_engine, "_LOOKS", 1)
    notices: list[str] = []
    nowhere = {"processes": False, "dashboard_address": None, "scheduler_kwargs": {"dashboard_address": ":0"}}
    with LocalCluster(n_workers=0, **nowhere) as cluster:

        def start_one(notice: str) -> None:
            notices.append(notice)
            cluster.scale(1)

        run_sweep(path, tmp_path, backend="dask", scheduler=cluster.scheduler_address, on_notice=start_one)

    assert notices == ["small: no worker of the Dask cluster is there; the sweep waits for one"]
    assert len(list(tmp_path.rglob("summary.json"))) == 6


@needs_dask
def test_where_no_scheduler_answers_the_sweep_says_so(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_engine, "PATIENCE_S", 0.0)
    monkeypatch.setattr(dask_engine, "_CONNECT_S", 0.2)

    with pytest.raises(
        BatchsimError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9; what is finished"
    ):
        run_sweep(path, tmp_path / "out", backend="dask", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"scheduler 'nonsense:x': no address of one"):
        run_sweep(path, tmp_path / "out", backend="dask", scheduler="nonsense:x")
    assert not list((tmp_path / "out").rglob(".*"))


def test_without_dask_the_sweep_says_what_to_install(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)

    with pytest.raises(BatchsimError, match=r"pip install 'batchsim\[cluster\]'"):
        next(run_on_dask([first_task(path, tmp_path)], None, 2, print))


def test_a_scheduler_without_dask_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is of the backend dask, not of processes"):
        run_sweep(path, tmp_path, scheduler="tcp://there:1")


def test_a_worker_that_does_not_see_the_folder_sends_the_run_back(path: Path, tmp_path: Path) -> None:
    here, there = first_task(path, tmp_path / "here"), first_task(path, tmp_path / "there")
    marker = tmp_path / "marker"
    marker.touch()

    (saved,) = do_here([here], _Sent(marker, sys.path))
    (sent,) = do_here([there], _Sent(tmp_path / "nowhere" / "marker", sys.path))
    assert not there.directory.exists()
    settled = _settled(there, sent)

    assert (saved, settled) == (None, None)
    assert read_summary(there.directory, ["requests"]) == read_summary(here.directory, ["requests"])
    assert {file.name for file in there.directory.iterdir()} == {
        file.name for file in here.directory.iterdir()
    }


@pytest.mark.parametrize(("time_s", "num_done"), [(0.0, 1), (60.0, 3)])
def test_a_worker_does_of_a_batch_what_it_has_time_for(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time_s: float, num_done: int
) -> None:
    monkeypatch.setattr(dask_engine, "_BATCH_S", time_s)
    runs = plan(read_sweep_file(path), path)[:3]
    tasks = [Task(run, tmp_path / run.run_id, save_tables=False) for run in runs]

    answers = do_here(tasks, _Sent(tmp_path, sys.path))

    assert answers == [None] * num_done
    assert [(task.directory / "summary.json").exists() for task in tasks] == [n < num_done for n in range(3)]


def test_batches_grow_while_all_is_done_in_time_and_shrink_at_the_end(path: Path, tmp_path: Path) -> None:
    task = first_task(path, tmp_path)
    batches, sizes, done = _Batches([task] * 100, most=16), [], 0

    while batches:
        batch = batches.take(room=2)
        sizes.append(len(batch))
        answers = [None] * min(len(batch), 3 if len(sizes) == 5 else 16)
        done += len(list(batches.settle(batch, answers)))

    assert done == 100
    assert sizes[:7] == [1, 2, 4, 8, 16, 3, 6]  # of the fifth, 3 were done in time
    assert sizes[-3:] == [1, 1, 1]


def test_of_a_batch_that_nobody_answers_each_goes_alone(path: Path, tmp_path: Path) -> None:
    tasks = [first_task(path, tmp_path / name) for name in "abcdefgh"]
    batches, said = _Batches(tasks, most=2), _NoAnswer("its worker died")
    first, batch = batches.take(room=1), batches.take(room=1)
    told = list(batches.settle(first, [None]))
    batch = [*batch, *batches.take(room=1)]

    nothing = list(batches.settle(batch, said))
    alone = [batches.take(room=1) for _ in batch]
    again = list(batches.settle(alone[0], said))

    assert told == [(tasks[0], None)]
    assert nothing == []
    assert alone == [[task] for task in batch]
    assert again == [(batch[0], said)]


def test_what_cannot_be_written_where_it_belongs_fails_the_run(path: Path, tmp_path: Path) -> None:
    task = first_task(path, tmp_path)
    task.directory.mkdir()
    (task.directory / "letter.txt").touch()
    (sent,) = do_here([first_task(path, tmp_path / "there")], _Sent(tmp_path / "nowhere", sys.path))

    settled = _settled(task, sent)

    assert isinstance(settled, Failure)
    assert "holds files that are no run" in settled.sentence


@pytest.mark.parametrize("what", ["slow.py", "batchsim"])
def test_a_worker_with_other_files_or_another_version_does_not_run(
    path: Path, tmp_path: Path, what: str
) -> None:
    run = plan(read_sweep_file(path), path)[0]
    inputs = {name: "other" if what in Path(name).name else digest for name, digest in run.inputs.items()}
    task = first_task(path, tmp_path, run_id="0" * 12, inputs=inputs)

    (answer,) = do_here([task], _Sent(tmp_path, sys.path))

    assert isinstance(answer, Failure)
    assert f"{what} than the sweep was planned with; give the workers the same files" in answer.sentence
    assert not task.directory.exists()
