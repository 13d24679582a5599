import json
import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from batchsim import BatchsimError, ConfigError, simulate
from batchsim.policies.base import Setting
from batchsim.policies.batching import Greedy
from batchsim.policies.presets import Preset
from batchsim.policies.queueing import Fifo
from batchsim.policies.sizing import FixedSize
from batchsim.study.sweep import SweepProgress, load_sweep, parse_shard, plan, run_sweep

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

    runs = plan(load_sweep(sweep_file(tmp_path, text)))

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

    full = plan(load_sweep(path, full=True))

    assert [
        (run.config.workload.num_requests, run.varied["workload.request_rate_per_gpu"]) for run in full
    ] == [(80, 1.0)] * 2
    assert len(plan(load_sweep(path))) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('name = "small"', 'name = "small"\nnmae = 1'), "nmae"),
        (("[grid]", "[grid]\npolcy.preset = [1]"), "polcy"),
        (("[grid]", "[grid]\nseed = 3"), "grid.seed is 3"),
        (("[grid]", "[grid]\nseed = []"), "grid.seed"),
        (('"multi_bin"', '"multi_bun"'), "multi_bun"),
        (("[grid]", 'cases = [{seed = 1}]\n[grid]\nseed = [1, 2]'), "seed"),
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
        plan(load_sweep(path))


def test_a_run_keeps_its_id_when_its_files_move_and_loses_it_when_they_change(tmp_path: Path) -> None:
    text = 'name = "one"\nfigure = "scaling"\nbase.workload.trace = "trace.csv"\n'
    ids = []
    for name, num_requests in (("here", 30), ("there", 30), ("longer", 31)):
        folder = tmp_path / name
        folder.mkdir()
        trace_file(folder, num_requests)
        ids.append(plan(load_sweep(sweep_file(folder, text)))[0].run_id)

    assert ids[0] == ids[1] != ids[2]


def test_results_hold_what_each_run_gives_alone(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)

    results = run_sweep(path, tmp_path / "out")

    runs = plan(load_sweep(path))
    alone = [simulate(run.config).summary for run in runs]
    assert results["run_id"].tolist() == [run.run_id for run in runs]
    assert results["e2e_mean_s"].tolist() == [summary["e2e_mean_s"] for summary in alone]
    assert results["policy.preset"].tolist() == results["policy"].tolist()
    stored = pd.read_csv(tmp_path / "out" / "small" / "results.csv")
    assert stored["e2e_mean_s"].tolist() == results["e2e_mean_s"].tolist()


def test_two_processes_write_the_same_results_as_one(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)

    run_sweep(path, tmp_path / "one")
    run_sweep(path, tmp_path / "two", jobs=2)

    one, two = (tmp_path / name / "small" / "results.csv" for name in ("one", "two"))
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


def test_an_interrupted_sweep_says_so_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, states = sweep_file(tmp_path), []

    def interrupt(state: SweepProgress) -> None:
        if state.num_ended == 2:
            raise KeyboardInterrupt

    with pytest.raises(BatchsimError, match=r"interrupted; 2 of 4 runs are saved"):
        run_sweep(path, tmp_path, on_progress=interrupt)
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


def test_shards_share_the_runs_and_the_last_completes_the_results(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)

    shards = [run_sweep(path, tmp_path, shard=(part, 3)) for part in (1, 2, 3)]

    assert [len(results) for results in shards] == [2, 3, 4]
    assert shards[-1]["run_id"].tolist() == [run.run_id for run in plan(load_sweep(path))]


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
