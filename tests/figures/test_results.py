from pathlib import Path

import pandas as pd
import pytest

from batchsim import ConfigError
from batchsim.figures.results import over_seeds, reach, read_sweep, sweep_folders
from batchsim.results.dataset import write_dataset
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


def test_an_interval_is_drawn_no_further_than_the_metric_can_be() -> None:
    seeds = runs(policy=["a", "a"], ttft_p99_s=[1.0, 3.0], slo_attainment=[0.9, 1.0])
    table = over_seeds(seeds, ["policy"], ["ttft_p99_s", "slo_attainment"])

    (below_s, above_s), (below, above) = (reach(table, name) for name in ("ttft_p99_s", "slo_attainment"))

    assert (below_s.tolist(), above_s.tolist()) == ([2.0], pytest.approx([12.7062], rel=1e-5))
    assert (below.tolist(), above.tolist()) == (pytest.approx([0.635310], rel=1e-5), pytest.approx([0.05]))


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no results of a sweep in it"):
        sweep_folders(tmp_path)


def test_a_part_of_a_grid_is_told_by_its_table() -> None:
    part = results({RATE: [1.0, 2.0]}, **{RATE: [1.0], "num_runs_planned": [2]})
    whole = results({RATE: [1.0, 2.0]}, **{RATE: [1.0, 2.0], "num_runs_planned": [2, 2]})

    assert (part.share, whole.share) == ("1 of 2 runs", "")


@pytest.mark.parametrize("told", [None, [], 3, {"name": "a"}, {"figure": 3}])
def test_a_description_that_is_damaged_is_one_line_in_our_words(tmp_path: Path, told: object) -> None:
    write_dataset(tmp_path / "dataset.parquet", "a", [{"run_id": "one", "case": ""}], {"sweep": told})

    with pytest.raises(ConfigError) as raised:
        read_sweep(tmp_path)

    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "http" not in str(raised.value)


def test_a_sweep_that_has_begun_and_has_no_dataset_yet_says_so(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}", encoding="utf-8")

    (folder,) = sweep_folders(tmp_path)

    with pytest.raises(ConfigError, match=r"dataset\.parquet: is not there; the sweep has not ended yet"):
        read_sweep(folder)


def test_nothing_is_the_same_in_all_columns(tmp_path: Path) -> None:
    conditions = {name: "x" for name in results({}, policy=["a"]).runs if name != "seed"}
    row = {
        **conditions,
        "run_id": "one",
        "predictor": "oracle",
        "seed": 0,
        "num": 3,
        "is_so": True,
        "text": "a",
    }
    nothing = dict.fromkeys(("num", "is_so", "text"))
    rows = [row, {**row, "run_id": "two", **nothing}]
    write_dataset(tmp_path / "dataset.parquet", "a", rows, {"sweep": {"name": "a"}})

    runs = read_sweep(tmp_path).runs

    assert runs[list(nothing)].isna().to_numpy().tolist() == [[False] * 3, [True] * 3]
    assert not any(value is None for name in nothing for value in runs[name])
    assert runs["num"].dtype == "float64"
