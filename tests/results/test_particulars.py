"""What a sweep's dataset keeps of its runs besides their numbers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchsim import ConfigError, simulate
from batchsim.results import dataset, particulars
from batchsim.results.dataset import DATASET, Dataset, load_sweep, write_dataset
from batchsim.results.store import load_run

LENGTHS = {"kind": "uniform", "low": 1, "high": 90}
GENERATOR = {"kind": "poisson", "rate_per_s": 2.0, "prompt": LENGTHS, "output": LENGTHS}


def saved(folder: Path, preset: str, num_requests: int = 30, **workload: Any) -> Path:
    """The folder of a run."""
    config = {
        "policy": {"preset": preset},
        "workload": {"num_requests": num_requests, "generator": GENERATOR, **workload},
    }
    return simulate(config).save(folder / "runs" / preset)


def kept(folder: Path, *runs: Path, with_tables: bool = True) -> Dataset:
    """The dataset of these runs."""
    rows = [{"run_id": run.name, "num": number} for number, run in enumerate(runs)]
    beside = [particulars.particulars(run, with_tables=with_tables) for run in runs]
    write_dataset(folder / DATASET, "some", rows, {}, beside, with_tables=with_tables)
    return Dataset(folder / DATASET)


def test_what_is_kept_of_tables_is_what_they_hold(tmp_path: Path) -> None:
    run = saved(tmp_path, "dynamic_no_bins")

    read = kept(tmp_path, run)

    tables = load_run(run)[2]
    decided, courses = (read.kept(what, "dynamic_no_bins") for what in ("decisions", "courses"))
    pd.testing.assert_frame_equal(
        decided.drop(columns="measured_batch_size"), tables["controllers"], check_categorical=False
    )
    sizes = tables["batches"].set_index("finish_s")["batch_size"]
    assert decided["measured_batch_size"].tolist() == sizes[decided["time_s"]].tolist()
    requests = tables["requests"]
    assert courses["at_s"].iloc[-1] == requests["finish_s"].max()
    middle = courses.iloc[250]
    running = (requests["scheduled_s"] <= middle["at_s"]) & (requests["finish_s"] > middle["at_s"])
    assert middle["running"] == running.sum()


def test_tenants_are_kept_and_those_who_have_none_have_no_row(tmp_path: Path) -> None:
    tenants = saved(tmp_path, "vllm_v1", tenants=[{"name": "a", "share": 3}, {"name": "b"}])

    read = kept(tmp_path, tenants, saved(tmp_path, "sarathi"))

    assert (
        read.kept("tenants", "vllm_v1")["name"].tolist() == load_run(tenants)[2]["tenants"]["name"].tolist()
    )
    assert len(read.kept("tenants", "sarathi")) == 0
    assert read.kept("decisions", "sarathi")["measured_batch_size"].tolist() == []


def test_where_a_run_comes_from_is_kept_without_its_time(tmp_path: Path) -> None:
    run = saved(tmp_path, "vllm_v1")

    (origin,) = kept(tmp_path, run, with_tables=False).origins().values()

    manifest = load_run(run)[0]
    assert origin == {part: manifest[part] for part in particulars.ORIGIN_PARTS}
    assert "created" not in origin


def test_quantiles_are_those_of_the_run_and_of_no_other(tmp_path: Path) -> None:
    runs = [saved(tmp_path, preset) for preset in ("static_fifo", "vllm_v1")]

    read = kept(tmp_path, *runs, with_tables=False)

    requests = load_run(runs[1])[2]["requests"]
    e2e_s = (requests["finish_s"] - requests["arrival_s"])[int(load_run(runs[1])[1]["num_warmup"]) :]
    assert read.quantiles("e2e_s")["vllm_v1"][[0, -1]].tolist() == pytest.approx([e2e_s.min(), e2e_s.max()])
    assert set(read.quantiles("e2e_s")) == {"static_fifo", "vllm_v1"}
    assert set(read.quantiles("itl_s")) == {"vllm_v1"}
    assert read.kept("courses", "vllm_v1") is None


def test_of_many_decisions_evenly_many_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = saved(tmp_path, "dynamic_no_bins")
    monkeypatch.setattr(particulars, "_MOST_DECISIONS", 3)

    decided = kept(tmp_path, run).kept("decisions", "dynamic_no_bins")

    all_s = load_run(run)[2]["controllers"]["time_s"]
    assert decided["time_s"].tolist() == all_s.iloc[[0, round((len(all_s) - 1) / 2), -1]].tolist()


def test_what_is_written_in_parts_is_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [saved(tmp_path, preset) for preset in ("static_fifo", "vllm_v1", "sarathi")]
    whole = kept(tmp_path, *runs)
    courses = {run.name: whole.kept("courses", run.name) for run in runs}
    monkeypatch.setattr(dataset, "_BYTES_AT_ONCE", 1)

    parts = kept(tmp_path, *runs)

    assert load_sweep(tmp_path)["num"].tolist() == [0, 1, 2]
    for name in ("sarathi", "static_fifo", "vllm_v1"):
        pd.testing.assert_frame_equal(parts.kept("courses", name), courses[name])
        assert np.array_equal(parts.quantiles("e2e_s")[name], whole.quantiles("e2e_s")[name])


def test_a_run_of_which_nothing_finished_has_no_quantiles(tmp_path: Path) -> None:
    run = saved(tmp_path, "vllm_v1", num_requests=1)
    pd.DataFrame({"metric": [], "probability": [], "value": []}).to_parquet(run / "sketches.parquet")

    assert kept(tmp_path, run).quantiles("e2e_s") == {}


@pytest.mark.parametrize("name", ["requests", "controllers", "batches", "sketches"])
@pytest.mark.parametrize("content", [b"", b"PAR1 not a table PAR1"], ids=["empty", "garbled"])
def test_a_file_of_a_run_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    run = saved(tmp_path, "static_fifo")
    (run / f"{name}.parquet").write_bytes(content)

    with pytest.raises(ConfigError, match=rf"{name}\.parquet: ") as told:
        kept(tmp_path, run)

    assert str(told.value).isprintable()


@pytest.mark.parametrize(
    ("name", "column"), [("requests", "arrival_s"), ("sketches", "metric"), ("sketches", "value")]
)
def test_a_column_that_a_run_lacks_is_named_with_its_file(tmp_path: Path, name: str, column: str) -> None:
    run = saved(tmp_path, "static_fifo")
    file = run / f"{name}.parquet"
    pd.read_parquet(file).drop(columns=column).to_parquet(file)

    with pytest.raises(ConfigError, match=rf"{name}\.parquet: .*{column}"):
        kept(tmp_path, run)


@pytest.mark.parametrize(
    ("column", "value", "needed"),
    [
        ("arrival_s", "soon", "a number"),
        ("batch_size", "7.5", r"a whole number up to 2,147,483,647"),
        ("bin", "70000", r"a whole number up to 32,767"),
        ("gpu_id", None, "a whole number"),
    ],
)
def test_a_value_of_a_run_that_is_none_is_named_with_its_row(
    tmp_path: Path, column: str, value: str | None, needed: str
) -> None:
    file = saved(tmp_path, "static_fifo") / "requests.parquet"
    table = pd.read_parquet(file)
    table[column] = table[column].astype(str).astype(object)
    table.loc[2, column] = value
    table.to_parquet(file)
    shown = "blank" if value is None else f"'{value}'"

    with pytest.raises(ConfigError, match=rf"requests.parquet: {column} is {shown} in row 3; {needed}"):
        load_run(file.parent)


def test_a_truth_that_is_none_is_named_with_its_row(tmp_path: Path) -> None:
    file = saved(tmp_path, "static_fifo") / "batches.parquet"
    table = pd.read_parquet(file)
    table["is_flush"] = ["False", *["True"] * (len(table) - 1)]
    table.to_parquet(file)

    with pytest.raises(ConfigError, match=r"batches.parquet: is_flush is 'False' in row 1; true or false is"):
        load_run(file.parent)


def test_who_gave_up_was_refused_or_was_lost_neither_waits_nor_runs_for_ever() -> None:
    nan = math.nan
    requests = pd.DataFrame(
        {
            "arrival_s": [0.0, 1.0, 2.0, 3.0, 4.0],
            "scheduled_s": [0.0, nan, nan, nan, 4.0],
            "finish_s": [499.0, nan, nan, nan, nan],
            "left_s": [nan, 5.0, nan, nan, nan],
            "status": ["finished", "abandoned", "refused", "stranded", "failed"],
        }
    )

    courses = particulars._courses({"requests": requests})  # a moment each second

    assert courses["at_s"].tolist()[:2] == [0.0, 1.0]
    assert courses["waiting"].tolist()[:7] == [0, 1, 1, 2, 2, 1, 1]
    assert courses["waiting"].iloc[-1] == 1
    assert courses["running"].tolist()[:7] == [1] * 7
    assert courses["running"].tolist()[-2:] == [1, 0]
