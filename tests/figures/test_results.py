import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from batchsim import ConfigError
from batchsim.figures.results import over_seeds, read_sweep, sweep_folders
from batchsim.study.run import simulate
from tests.figures.swept import results

RATE = "workload.request_rate_per_gpu"


def runs(**columns: list[object]) -> pd.DataFrame:
    num = len(next(iter(columns.values())))
    return pd.DataFrame({"saturated": [False] * num, "e2e_mean_ci95_high_s": [2.5] * num, **columns})


def test_seeds_give_a_mean_with_students_interval() -> None:
    table = over_seeds(runs(policy=["a"] * 3, e2e_mean_s=[1.0, 2.0, 3.0]), ["policy"], ["e2e_mean_s"])

    assert table["e2e_mean_s"].tolist() == [2.0]
    assert table["e2e_mean_s_ci95"].iloc[0] == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert table["num_runs"].tolist() == [3]


def test_a_single_run_keeps_the_interval_of_its_own_mean_and_has_none_for_the_rest() -> None:
    table = over_seeds(runs(policy=["a"], e2e_mean_s=[2.0], tps=[9.0]), ["policy"], ["e2e_mean_s", "tps"])

    assert table["e2e_mean_s_ci95"].tolist() == [0.5]
    assert table["tps_ci95"].isna().all()


def test_combinations_keep_their_order_and_count_saturated_runs() -> None:
    frame = runs(policy=["b", "a", "b", "a"], rate=[2, 2, 2, 1], tps=[1.0, 2.0, 3.0, 4.0])
    frame["saturated"] = [True, False, False, True]

    table = over_seeds(frame, ["policy", "rate"], ["tps"])

    assert table[["policy", "rate", "tps", "num_saturated"]].to_numpy().tolist() == [
        ["b", 2, 2.0, 1],
        ["a", 2, 2.0, 0],
        ["a", 1, 4.0, 1],
    ]


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no results of a sweep in it"):
        sweep_folders(tmp_path)


def test_a_part_of_a_grid_is_told_by_its_table() -> None:
    part = results({RATE: [1.0, 2.0]}, **{RATE: [1.0], "num_runs_planned": [2]})
    whole = results({RATE: [1.0, 2.0]}, **{RATE: [1.0, 2.0], "num_runs_planned": [2, 2]})

    assert (part.share, whole.share) == ("1 of 2 runs", "")


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"sweep": 3}', '{"sweep": {"name": "a"}}'])
def test_a_description_that_is_damaged_is_one_line_in_our_words(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content, encoding="utf-8")
    (tmp_path / "results.csv").write_text("run_id,case\n", encoding="utf-8")

    with pytest.raises(ConfigError) as told:
        read_sweep(tmp_path)

    assert "\n" not in str(told.value)
    assert "http" not in str(told.value)


@pytest.mark.parametrize("content", ["", "run_id,case\n", "a,b\n1\n2,3,4,5\n", "\0", '"'])
def test_a_table_that_is_damaged_is_one_line(tmp_path: Path, content: str) -> None:
    tree = {"name": "a"}
    (tmp_path / "sweep.json").write_text(json.dumps({"sweep": tree}), encoding="utf-8")
    (tmp_path / "results.csv").write_text(content, encoding="utf-8")

    with pytest.raises(ConfigError) as told:
        read_sweep(tmp_path)

    assert str(tmp_path) in str(told.value)
    assert str(told.value).isprintable()


def test_tables_of_a_run_may_be_those_that_only_some_clusters_have(tmp_path: Path) -> None:
    lengths = {"kind": "fixed", "tokens": 8}
    generator = {"kind": "poisson", "rate_per_s": 1.0, "prompt": lengths, "output": lengths}
    simulate(
        {
            "policy": {"preset": "vllm_v1"},
            "cluster": {"num_gpus": 2, "num_prefill_replicas": 1},
            "workload": {"num_requests": 3, "generator": generator},
        }
    ).save(tmp_path / "runs" / "one")
    swept = replace(results({}, policy=["vllm_v1"]), folder=tmp_path)

    assert len(swept.tables("one")["transfers"]) == 3
