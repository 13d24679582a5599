import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from batchsim import BatchsimError, ConfigError, load_sweep, simulate
from batchsim.figures.results import read_sweep
from batchsim.files import sibling, write_whole
from batchsim.policies.base import Setting
from batchsim.policies.batching import Greedy
from batchsim.policies.presets import Preset
from batchsim.policies.queueing import Fifo
from batchsim.policies.sizing import FixedSize
from batchsim.results.dataset import describe
from batchsim.results.store import read_summary
from batchsim.study.sweep import SweepProgress, parse_shard, plan, read_sweep_file, run_sweep
from batchsim.study.sweeps import folder as folder_module

SMALL = """
name = "small"
figure = "scheduler_comparison"

[base]
workload.num_requests = 40
workload.training_fraction = 0.1
workload.generator.kind = "poisson"
workload.generator.rate_per_s = 1.0
workload.generator.prompt = {kind = "fixed", tokens = 10}
workload.generator.output = {kind = "uniform", low = 1, high = 90}

[grid]
policy.preset = ["static_fifo", "multi_bin"]
workload.request_rate_per_gpu = [0.5, 2.0]
"""


@dataclass(slots=True)
class _Deadly(FixedSize):
    """Takes its process with it as soon as a run starts."""

    def prepare(self, setting: Setting) -> None:
        os._exit(1)


DEADLY = Preset(Fifo(), _Deadly(), Greedy())


def sweep_file(folder: Path, text: str = SMALL) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text, encoding="utf-8")
    return path


def trace_file(folder: Path, num_requests: int = 30) -> Path:
    path = folder / "trace.csv"
    rows = [f"{arrival},10,20" for arrival in range(num_requests)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n", encoding="utf-8")
    return path


def test_plan_crosses_every_case_with_every_combination_in_the_order_of_the_file(tmp_path: Path) -> None:
    noisy = 'label = "noisy"\npredictor = {kind = "lognormal", sigma = 0.5}\n'
    text = f'{SMALL}[[cases]]\nlabel = "true"\n[[cases]]\n{noisy}'

    runs = plan(read_sweep_file(sweep_file(tmp_path, text)))

    assert [(run.case, *run.varied.values()) for run in runs] == [
        (case, kind, sigma, preset, rate)
        for case, kind, sigma in (("true", "oracle", None), ("noisy", "lognormal", 0.5))
        for preset in ("static_fifo", "multi_bin")
        for rate in (0.5, 2.0)
    ]
    assert len({run.run_id for run in runs}) == 8


def test_full_puts_its_entries_in_place_of_the_small_ones(tmp_path: Path) -> None:
    text = SMALL + "[full]\nbase.workload.num_requests = 80\ngrid.workload.request_rate_per_gpu = [1.0]\n"
    path = sweep_file(tmp_path, text)

    full = plan(read_sweep_file(path, full=True))

    assert [
        (run.config.workload.num_requests, run.varied["workload.request_rate_per_gpu"]) for run in full
    ] == [(80, 1.0)] * 2
    assert len(plan(read_sweep_file(path))) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('name = "small"', 'name = "small"\nnmae = 1'), "nmae"),
        (("[grid]", "[grid]\npolcy.preset = [1]"), "polcy"),
        (("[grid]", "[grid]\nseed = 3"), "grid.seed is 3"),
        (("[grid]", "[grid]\nseed = []"), "grid.seed"),
        (('"multi_bin"', '"multi_bun"'), "multi_bun"),
        (("[grid]", "[[cases]]\nseed = 1\n[grid]\nseed = [1, 2]"), "seed is set by a case and by the grid"),
        (("[grid]", '[[cases]]\npredictor.kind = "lognormal"\n[grid]'), "sigma"),
    ],
)  # fmt: skip
def test_a_sweep_that_no_run_can_follow_is_refused_by_file_and_key(
    tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    path = sweep_file(tmp_path, SMALL.replace(*change))

    with pytest.raises(ConfigError, match=rf"sweep\.toml.*{said}"):
        run_sweep(path, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_policies_that_would_meet_different_requests_are_refused(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, SMALL.replace("workload.training_fraction = 0.1", ""))

    with pytest.raises(ConfigError, match=r"training_fraction"):
        plan(read_sweep_file(path))


def test_a_run_keeps_its_id_when_its_files_move_and_loses_it_when_they_change(tmp_path: Path) -> None:
    text = 'name = "one"\nfigure = "scaling"\nbase.workload.trace = "trace.csv"\n'
    ids = []
    for name, num_requests in (("here", 30), ("there", 30), ("longer", 31)):
        folder = tmp_path / name
        folder.mkdir()
        trace_file(folder, num_requests)
        ids.append(plan(read_sweep_file(sweep_file(folder, text)))[0].run_id)

    assert ids[0] == ids[1] != ids[2]


def test_results_hold_what_each_run_gives_alone(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)

    results = run_sweep(path, tmp_path / "out")

    runs = plan(read_sweep_file(path))
    alone = [simulate(run.config).summary for run in runs]
    assert results["run_id"].tolist() == [run.run_id for run in runs]
    assert results["e2e_mean_s"].tolist() == [summary["e2e_mean_s"] for summary in alone]
    assert results["policy.preset"].tolist() == results["policy"].tolist()
    stored = pd.read_csv(tmp_path / "out" / "small" / "results.csv")
    assert stored["e2e_mean_s"].tolist() == results["e2e_mean_s"].tolist()


def test_the_dataset_holds_what_the_table_holds_with_types(tmp_path: Path) -> None:
    results = run_sweep(sweep_file(tmp_path), tmp_path)

    dataset = load_sweep(tmp_path / "small")

    assert list(dataset) == ["sweep", *results]
    assert set(dataset["sweep"]) == {"small"}
    assert {name: dataset[name].dropna().tolist() for name in results} == {
        name: results[name].dropna().tolist() for name in results
    }
    assert dataset["saturated"].dtype == "boolean"
    assert describe(tmp_path / "small")["sweep"]["grid"]["policy.preset"] == ["static_fifo", "multi_bin"]


@pytest.mark.parametrize("file", ["results.csv", "dataset.parquet"])
def test_two_processes_write_the_same_results_as_one(tmp_path: Path, file: str) -> None:
    path = sweep_file(tmp_path)

    run_sweep(path, tmp_path / "one")
    run_sweep(path, tmp_path / "two", jobs=2)

    one, two = (tmp_path / name / "small" / file for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_second_call_runs_nothing_and_a_lost_run_alone_is_done_again(tmp_path: Path) -> None:
    path, states = sweep_file(tmp_path), []
    first = run_sweep(path, tmp_path)
    lost = tmp_path / "small" / "runs" / first["run_id"][2] / "summary.json"

    second = run_sweep(path, tmp_path, on_progress=states.append)
    lost.unlink()
    run_sweep(path, tmp_path, on_progress=states.append)

    assert [state.num_ended for state in states] == [4, 3, 4]
    pd.testing.assert_frame_equal(first, second)
    assert lost.is_file()


def test_overwrite_runs_everything_again(tmp_path: Path) -> None:
    path, states = sweep_file(tmp_path), []
    run_sweep(path, tmp_path)

    run_sweep(path, tmp_path, overwrite=True, on_progress=states.append)

    assert [state.num_ended for state in states] == [0, 1, 2, 3, 4]


def test_tables_are_kept_when_asked_for_even_if_the_summary_is_there(tmp_path: Path) -> None:
    summary_only = run_sweep(sweep_file(tmp_path), tmp_path)
    with_tables = SMALL.replace("[base]", 'save = "tables"\n[base]')

    run_sweep(sweep_file(tmp_path, with_tables), tmp_path)

    requests = pd.read_parquet(tmp_path / "small" / "runs" / summary_only["run_id"][0] / "requests.parquet")
    assert len(requests) == 40


def test_a_failing_run_is_named_at_the_end_and_stops_no_other(tmp_path: Path) -> None:
    trace_file(tmp_path)
    text = """
        name = "failing"
        figure = "scaling"
        base.workload.trace = "trace.csv"
        grid.workload.num_requests = [10, 99, 20]
    """
    states: list[SweepProgress] = []

    with pytest.raises(BatchsimError, match=r"1 of 3 runs failed.*num_requests=99.*has only 30"):
        run_sweep(sweep_file(tmp_path, text), tmp_path, on_progress=states.append)

    assert pd.read_csv(tmp_path / "failing" / "results.csv")["num_requests"].tolist() == [10, 20]
    assert [state.failure is not None for state in states] == [False, False, True, False]


@pytest.mark.skipif(os.name != "posix", reason="limits of a process")
def test_tables_that_find_no_space_leave_the_runs_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python would keep the first 100 bytes of a module

    path, before = sweep_file(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(state: SweepProgress) -> None:
        if state.num_ended == state.num_runs:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))

    try:
        with pytest.raises(BatchsimError, match=r"cannot be written .*; 4 of 4 runs are saved, the") as told:
            run_sweep(path, tmp_path, on_progress=fill_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert not isinstance(told.value, ConfigError)  # of bad input
    assert len(run_sweep(path, tmp_path)) == 4


def test_an_interrupted_sweep_says_so_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, states = sweep_file(tmp_path), []

    def interrupt(state: SweepProgress) -> None:
        if state.num_ended == 2:
            raise KeyboardInterrupt

    with pytest.raises(BatchsimError, match=r"interrupted; 2 of 4 runs are saved"):
        run_sweep(path, tmp_path, on_progress=interrupt)
    assert len(pd.read_csv(next(tmp_path.glob("*/results.csv")))) == 2  # what is there can be drawn
    run_sweep(path, tmp_path, on_progress=states.append)

    assert states[0].num_ended == 2
    assert states[-1].num_ended == 4


def test_a_process_that_dies_takes_the_run_it_was_at_and_no_other(tmp_path: Path) -> None:
    text = SMALL.replace('"multi_bin"', '"tests.study.test_sweep:DEADLY"')

    with pytest.raises(
        BatchsimError, match=r"2 of 4 runs failed.*DEADLY.*its process ended with exit code 1"
    ):
        run_sweep(sweep_file(tmp_path, text), tmp_path, jobs=2)

    assert pd.read_csv(tmp_path / "small" / "results.csv")["policy"].tolist() == ["static_fifo"] * 2
    failures = list((tmp_path / "small" / "runs").glob("*/failure.json"))
    assert len(failures) == 2
    assert "exit code 1" in json.loads(failures[0].read_text(encoding="utf-8"))["failure"]


def test_replications_that_cannot_differ_are_told(tmp_path: Path) -> None:
    trace_file(tmp_path)
    text = """
        name = "fixed"
        replications = 2
        [[cases]]
        label = "replayed"
        workload.trace = "trace.csv"
        [[cases]]
        label = "drawn"
        workload.num_requests = 9
        workload.generator.kind = "poisson"
        workload.generator.rate_per_s = 1.0
        workload.generator.prompt = {kind = "fixed", tokens = 1}
        workload.generator.output = {kind = "fixed", tokens = 1}
    """
    notices: list[str] = []

    results = run_sweep(sweep_file(tmp_path, text), tmp_path, on_notice=notices.append)

    assert results["replication"].tolist() == [0, 1, 0, 1]
    assert results["makespan_s"].nunique() == 3
    assert "fixed: the replications of 1 of 2 points do not differ: nothing random bears on them" in notices


def test_shards_share_the_runs_and_the_last_completes_the_results(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)

    shards = [run_sweep(path, tmp_path, shard=(part, 3)) for part in (1, 2, 3)]

    assert [len(results) for results in shards] == [2, 3, 4]
    assert shards[-1]["run_id"].tolist() == [run.run_id for run in plan(read_sweep_file(path))]


def test_shards_are_written_as_fractions() -> None:
    assert parse_shard("2/4") == (2, 4)
    for text in ("0/4", "5/4", "1", "a/b", "-1/2"):
        with pytest.raises(ConfigError, match="K/N"):
            parse_shard(text)


def test_the_sweep_is_written_beside_its_results(tmp_path: Path) -> None:
    run_sweep(sweep_file(tmp_path), tmp_path)

    written = json.loads((tmp_path / "small" / "sweep.json").read_text(encoding="utf-8"))

    assert written["sweep"]["grid"]["policy.preset"] == ["static_fifo", "multi_bin"]
    assert written["is_full"] is False


POLICIES = """
import os, sys
from dataclasses import dataclass
from pathlib import Path
from batchsim.policies.batching import Greedy
from batchsim.policies.presets import Preset
from batchsim.policies.queueing import Fifo
from batchsim.policies.sizing import FixedSize

class Mine(BaseException):
    pass

@dataclass
class Faulty(FixedSize):
    kind: str = ""

    def prepare(self, setting):
        if self.kind == "exit":
            sys.exit(0)
        if self.kind == "markup":
            raise ValueError("[/x] [red]\\x1b[31m\\nsecond line")
        if self.kind == "own":
            raise Mine("mine")
        if self.kind == "interrupt":
            raise KeyboardInterrupt
        if self.kind == "killed":
            os.kill(os.getpid(), 9)
        if self.kind == "gone":
            os._exit(0)
        if self.kind == "deep":
            self.prepare(setting)
        if self.kind == "large":
            bytearray(10**15)

kinds = ("fine", "exit", "markup", "own", "interrupt", "killed", "gone", "deep", "large")
fine, exits, markup, own, interrupt, killed, gone, deep, large = (
    Preset(Fifo(), Faulty(kind=kind), Greedy()) for kind in kinds
)
"""


def faulty(folder: Path, *names: str) -> Path:
    """A sweep of policies, each of which may do something else that it should not."""
    (folder / "misbehaving.py").write_text(POLICIES, encoding="utf-8")
    presets = ", ".join(f'"misbehaving:{name}"' for name in names)
    return sweep_file(
        folder, SMALL.replace('"static_fifo", "multi_bin"', presets).replace("[0.5, 2.0]", "[1.0]")
    )


def truncate(file: Path, keep: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])


@pytest.mark.parametrize(
    ("names", "jobs"),
    [(("exits", "gone", "own", "deep", "large", "interrupt", "fine"), 1), (("killed", "markup", "fine"), 2)],
)
def test_a_policy_that_misbehaves_fails_its_run_alone_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], jobs: int
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    path, states = faulty(tmp_path, *names), []

    for _ in range(2 if jobs == 2 else 1):
        with pytest.raises(BatchsimError, match=rf"{len(names) - 1} of {len(names)} runs failed"):
            run_sweep(path, tmp_path, jobs=jobs, on_progress=states.append)

    stored = pd.read_csv(tmp_path / "small" / "results.csv")
    assert stored["policy"].tolist() == ["misbehaving:fine"]
    told = [json.loads(file.read_bytes()) for file in (tmp_path / "small" / "runs").glob("*/failure.json")]
    assert len(told) == len(names) - 1
    assert all(one["failure"] and one["config"]["seed"] == 0 for one in told)
    assert not [one for one in told if "\n" in one["failure"]]
    assert sum(state.failure is not None for state in states) == (2 if jobs == 2 else 1) * (len(names) - 1)


def test_a_single_run_of_a_policy_that_ends_its_process_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(BatchsimError, match=r"1 of 1 runs failed.*its process ended with exit code 0"):
        run_sweep(faulty(tmp_path, "gone"), tmp_path)


@pytest.mark.parametrize(
    "file", ["summary.json", "manifest.json", "requests.parquet", "batches.parquet", "sketches.parquet"]
)
@pytest.mark.parametrize("keep", [0.0, 0.5], ids=["empty", "cut"])
def test_a_run_that_is_no_longer_whole_is_told_and_run_again(tmp_path: Path, file: str, keep: float) -> None:
    path = sweep_file(tmp_path, SMALL.replace("[base]", 'save = "tables"\n[base]'))
    first, states, notices = run_sweep(path, tmp_path), [], []
    damaged = tmp_path / "small" / "runs" / first["run_id"][1] / file

    truncate(damaged, keep)
    second = run_sweep(path, tmp_path, on_progress=states.append, on_notice=notices.append)

    assert [state.num_ended for state in states] == [3, 4]
    assert len(notices) == 1
    assert file in notices[0]
    assert read_summary(damaged.parent, ["requests"]) is not None
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize("file", ["results.csv", "dataset.parquet", "aggregated.csv", "tables.json"])
@pytest.mark.parametrize("is_lost", [False, True], ids=["cut", "lost"])
def test_a_table_that_is_no_longer_whole_is_written_anew_and_no_run_made(
    tmp_path: Path, file: str, is_lost: bool
) -> None:
    path, states = sweep_file(tmp_path, SMALL.replace("[grid]", "[grid]\nseed = [0, 1]")), []
    run_sweep(path, tmp_path)
    damaged = tmp_path / "small" / file
    before = damaged.read_bytes()
    truncate(damaged, 0.5)
    if is_lost:
        damaged.unlink()

    run_sweep(path, tmp_path, on_progress=states.append)

    assert damaged.read_bytes() == before
    assert len(states) == 1


def test_a_table_of_a_run_that_cannot_be_collected_is_told_with_what_to_do(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, SMALL.replace("[base]", 'save = "tables"\n[base]'))
    run_id = run_sweep(path, tmp_path)["run_id"][1]
    garbled = tmp_path / "small" / "runs" / run_id / "requests.parquet"
    garbled.write_bytes(bytes(garbled.stat().st_size))
    (tmp_path / "small" / "dataset.parquet").unlink()

    with pytest.raises(ConfigError, match=rf"{run_id}/requests\.parquet: .*; remove the folder of the run"):
        run_sweep(path, tmp_path)
    shutil.rmtree(garbled.parent)

    assert len(run_sweep(path, tmp_path)) == 4


def test_the_dataset_says_what_failed_and_what_was_planned(tmp_path: Path) -> None:
    trace_file(tmp_path)
    text = """
        name = "failing"
        base.workload.trace = "trace.csv"
        grid.workload.num_requests = [10, 99, 98]
    """

    with pytest.raises(BatchsimError, match="2 of 3 runs failed"):
        run_sweep(sweep_file(tmp_path, text), tmp_path)

    told = describe(tmp_path / "failing")
    assert (told["num_runs_planned"], told["num_failures"]) == (3, 2)
    assert [one["run"] for one in told["failures"]] == [f"workload.num_requests={num}" for num in (99, 98)]
    assert all("has only 30" in one["why"] for one in told["failures"])


def test_tables_of_the_same_runs_are_left_and_those_of_others_replaced(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    run_sweep(path, tmp_path)
    tables = [tmp_path / "small" / name for name in ("results.csv", "dataset.parquet")]
    written = [table.stat().st_mtime_ns for table in tables]

    run_sweep(path, tmp_path)
    left = [table.stat().st_mtime_ns for table in tables]
    run_sweep(sweep_file(tmp_path, SMALL.replace("[base]", 'title = "Small"\n[base]')), tmp_path)
    title = describe(tmp_path / "small")["sweep"]["title"]
    run_sweep(sweep_file(tmp_path, SMALL.replace("[0.5, 2.0]", "[0.5]")), tmp_path)

    assert left == written
    assert title == "Small"
    assert len(load_sweep(tmp_path)) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"inputs": 3, "runs": []}'])
def test_a_broken_description_of_the_sweep_is_written_anew(tmp_path: Path, content: str) -> None:
    path, states = sweep_file(tmp_path), []
    run_sweep(path, tmp_path)
    (tmp_path / "small" / "sweep.json").write_text(content, encoding="utf-8")

    run_sweep(path, tmp_path, on_progress=states.append)

    assert [state.num_ended for state in states] == [4]
    assert json.loads((tmp_path / "small" / "sweep.json").read_bytes())["sweep"]["name"] == "small"


def test_what_changed_is_named_and_what_depends_on_it_is_run_again(tmp_path: Path) -> None:
    trace_file(tmp_path)
    text = """
        name = "changing"
        figure = "scaling"
        [[cases]]
        workload.trace = "trace.csv"
        [[cases]]
        workload.num_requests = 9
        workload.generator.kind = "all_at_once"
        workload.generator.prompt = {kind = "fixed", tokens = 1}
        workload.generator.output = {kind = "fixed", tokens = 1}
        [grid]
        policy.batch_size = [1, 2]
    """
    path, states, notices = sweep_file(tmp_path, text), [], []
    first = run_sweep(path, tmp_path, on_notice=notices.append)

    trace_file(tmp_path, 20)
    second = run_sweep(path, tmp_path, on_progress=states.append, on_notice=notices.append)

    assert notices == ["changing: trace.csv changed: 2 runs are run again"]
    assert [state.num_ended for state in states] == [2, 3, 4]
    assert first["num_requests"].tolist() == [30, 30, 9, 9]
    assert second["num_requests"].tolist() == [20, 20, 9, 9]


def test_a_policy_that_changed_is_run_again_with_its_new_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    path, notices = faulty(tmp_path, "fine"), []
    first = run_sweep(path, tmp_path)
    changed = POLICIES.replace("Faulty(kind=kind)", "Faulty(4, kind)")

    (tmp_path / "misbehaving.py").write_text(changed, encoding="utf-8")
    second = run_sweep(path, tmp_path, on_notice=notices.append)

    assert notices == ["small: misbehaving.py changed: 1 runs are run again"]
    assert "size=8" in first["combination"][0]
    assert "size=4" in second["combination"][0]


def test_a_trace_that_is_replaced_while_the_sweep_runs_is_not_saved_as_what_it_was(tmp_path: Path) -> None:
    trace_file(tmp_path)
    text = """
        name = "moving"
        figure = "scaling"
        base.workload.trace = "trace.csv"
        grid.policy.batch_size = [1, 2, 3]
    """
    path = sweep_file(tmp_path, text)

    def replace_trace(state: SweepProgress) -> None:
        if state.num_ended == 1:
            trace_file(tmp_path, 20)

    with pytest.raises(BatchsimError, match=r"2 of 3 runs failed.*trace\.csv: changed while the sweep ran"):
        run_sweep(path, tmp_path, on_progress=replace_trace)
    results = run_sweep(path, tmp_path)

    assert results["num_requests"].tolist() == [20] * 3


def test_another_sweep_of_the_same_name_does_not_replace_the_results(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    run_sweep(path, tmp_path)
    other = tmp_path / "other.toml"
    other.write_text(SMALL.replace("[0.5, 2.0]", "[1.0]"), encoding="utf-8")
    before = (tmp_path / "small" / "results.csv").read_bytes()

    with pytest.raises(ConfigError, match=r"holds the results of .*sweep\.toml.*another name"):
        run_sweep(other, tmp_path)
    kept = (tmp_path / "small" / "results.csv").read_bytes()
    path.write_text(SMALL.replace("[0.5, 2.0]", "[1.0]"), encoding="utf-8")  # edited: still the same

    assert kept == before
    assert len(run_sweep(path, tmp_path)) == len(run_sweep(other, tmp_path)) == 2


def test_a_sweep_that_took_the_folder_meanwhile_keeps_its_table(tmp_path: Path) -> None:
    path, other = sweep_file(tmp_path), tmp_path / "other.toml"
    other.write_text(SMALL.replace("[0.5, 2.0]", "[1.0]"), encoding="utf-8")

    def take_over(state: SweepProgress) -> None:
        if state.num_ended == 1:
            run_sweep(other, tmp_path, overwrite=True)

    with pytest.raises(ConfigError, match=r"holds the results of .*other\.toml"):
        run_sweep(path, tmp_path, on_progress=take_over)

    assert len(pd.read_csv(tmp_path / "small" / "results.csv")) == 2


def test_no_row_is_lost_when_two_shards_end_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sweep_file(tmp_path)
    is_first = True

    def write_late(file: Path, content: str) -> None:
        """The other shard does all it has to between our look at the runs and our table."""
        nonlocal is_first
        if file.name == "results.csv" and is_first:
            is_first = False
            run_sweep(path, tmp_path, shard=(2, 2))
        write_whole(file, content)

    monkeypatch.setattr(folder_module, "write_whole", write_late)
    run_sweep(path, tmp_path, shard=(1, 2))

    assert len(pd.read_csv(tmp_path / "small" / "results.csv")) == 4
    assert len(load_sweep(tmp_path)) == 4


def test_a_part_of_the_grid_says_so(tmp_path: Path) -> None:
    path, notices = sweep_file(tmp_path), []

    run_sweep(path, tmp_path, shard=(1, 2), on_notice=notices.append)

    stored = pd.read_csv(tmp_path / "small" / "results.csv")
    assert notices == ["small: 2 of 4 runs are finished"]
    assert stored.columns[-1] == "num_runs_planned"
    assert stored["num_runs_planned"].tolist() == [4, 4]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_dead_processes_left_is_removed_and_what_living_ones_write_stays(
    tmp_path: Path, overwrite: bool
) -> None:
    path = sweep_file(tmp_path)
    runs = tmp_path / "small" / "runs"
    living = sibling(runs / "0123456789ab")
    dead = runs / living.name.replace(f"-{os.getpid()}-", "-4194999-")
    for folder in (living, dead):
        folder.mkdir(parents=True)

    run_sweep(path, tmp_path, overwrite=overwrite)

    assert [entry for entry in runs.iterdir() if entry.name.startswith(".")] == [living]


def test_a_label_that_looks_like_a_formula_is_text_in_the_table_and_comes_back(tmp_path: Path) -> None:
    text = f'{SMALL}[[cases]]\nlabel = "=1+1"\n'.replace('["static_fifo", "multi_bin"]', '["static_fifo"]')

    results = run_sweep(sweep_file(tmp_path, text), tmp_path)

    assert set(results["case"]) == {"=1+1"}
    assert set(pd.read_csv(tmp_path / "small" / "results.csv")["case"]) == {"'=1+1"}
    found = read_sweep(next(path.parent for path in tmp_path.rglob("sweep.json")))
    assert set(found.runs["case"]) == {"=1+1"}


def test_runs_that_differ_in_the_seed_alone_have_a_table_of_means(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, f"{SMALL}seed = [1, 2, 3]\n")

    results = run_sweep(path, tmp_path)

    table = pd.read_csv(tmp_path / "small" / "aggregated.csv")
    assert len(table) == 4
    assert (table["num_replications"] == 3).all()
    point = ["policy.preset", "workload.request_rate_per_gpu"]
    means_s = results.groupby(point)["e2e_p99_s"].mean()
    assert table.set_index(point)["e2e_p99_s"].to_dict() == pytest.approx(means_s.to_dict())
    assert (table["e2e_p99_ci95_low_s"] < table["e2e_p99_s"]).all()


def test_a_table_of_means_does_not_outlive_its_seeds(tmp_path: Path) -> None:
    run_sweep(sweep_file(tmp_path, f"{SMALL}seed = [1, 2]\n"), tmp_path)

    run_sweep(sweep_file(tmp_path), tmp_path)

    assert not (tmp_path / "small" / "aggregated.csv").exists()
