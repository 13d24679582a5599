"""A sweep's table in Parquet: of one type by column, the same bytes for the same runs, asked in SQL."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from batchsim import BatchsimError, ConfigError, load_sweep
from batchsim.results.dataset import DATASET, Dataset, describe, query, write_dataset

needs_duckdb = pytest.mark.skipif(find_spec("duckdb") is None, reason="the extra [query] is not installed")

ROWS: list[dict[str, Any]] = [
    {"run_id": "a", "policy.preset": "static_fifo", "num": 1, "mean_s": 0.5, "met": True, "gap_s": None},
    {"run_id": "b", "policy.preset": "multi_bin", "num": 2, "mean_s": 1, "met": None, "edges": [1, 2]},
]


def dataset(folder: Path, name: str = "one", rows: list[dict[str, Any]] | None = None) -> Path:
    file = folder / name / DATASET
    write_dataset(file, name, ROWS if rows is None else rows, {"sweep": {"grid": {}}})
    return file


def test_each_column_has_the_type_of_its_values(tmp_path: Path) -> None:
    types = {field.name: field.type for field in Dataset(dataset(tmp_path)).runs.schema}

    assert types == {
        "sweep": pa.string(), "run_id": pa.string(), "policy.preset": pa.string(), "num": pa.int64(),
        "mean_s": pa.float64(), "met": pa.bool_(), "gap_s": pa.float64(), "edges": pa.string(),
    }  # fmt: skip


def test_a_sweep_is_read_back_with_what_is_missing_missing(tmp_path: Path) -> None:
    frame = load_sweep(dataset(tmp_path).parent)

    assert frame["sweep"].tolist() == ["one", "one"]
    assert frame["mean_s"].tolist() == [0.5, 1.0]
    assert frame["num"].dtype == "int64"
    assert frame["met"].dtype == "boolean"
    assert frame["met"].isna().tolist() == [False, True]
    assert frame["gap_s"].isna().all()
    assert frame["edges"].iloc[1] == "[1, 2]"


def test_values_of_several_kinds_are_text_that_tells_them_apart(tmp_path: Path) -> None:
    rows = [{"x": 8}, {"x": "none"}, {"x": True}, {"x": {"kind": "Timer"}}]

    frame = load_sweep(dataset(tmp_path, rows=rows).parent)

    assert frame["x"].tolist() == ["8", "none", "true", '{"kind": "Timer"}']


def test_a_whole_number_too_large_for_a_column_is_a_number(tmp_path: Path) -> None:
    assert load_sweep(dataset(tmp_path, rows=[{"x": 2**80}, {"x": 1}]).parent)["x"].tolist() == [2.0**80, 1.0]


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = (dataset(tmp_path / place) for place in ("here", "there"))

    assert one.read_bytes() == two.read_bytes()
    assert b"pandas" not in one.read_bytes()


def test_it_says_of_which_sweep_and_version_it_is(tmp_path: Path) -> None:
    told = describe(dataset(tmp_path).parent)

    assert (told["schema_version"], told["sweep_name"], told["sweep"]) == (2, "one", {"grid": {}})


def test_a_folder_of_sweeps_is_read_as_one_table(tmp_path: Path) -> None:
    dataset(tmp_path)
    dataset(tmp_path, "two", [{"run_id": "c", "num": 0.5, "met": "no", "rate": 3}])

    frame = load_sweep(tmp_path)

    assert frame["sweep"].tolist() == ["one", "one", "two"]
    assert frame["num"].tolist() == [1.0, 2.0, 0.5]
    assert frame["met"].tolist()[::2] == ["true", "no"]
    assert frame["rate"].isna().tolist() == [True, True, False]


def test_a_sweep_without_a_finished_run_is_an_empty_table(tmp_path: Path) -> None:
    assert len(load_sweep(dataset(tmp_path, rows=[]).parent)) == 0


def test_a_folder_without_a_sweep_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no dataset\.parquet of a sweep in it; `batchsim sweep` writes it"
    ):
        load_sweep(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table"])
def test_what_is_no_dataset_is_named(tmp_path: Path, content: bytes) -> None:
    file = dataset(tmp_path)
    file.write_bytes(content)

    with pytest.raises(ConfigError, match=r"dataset\.parquet: .*the sweep, run again, writes it anew"):
        load_sweep(tmp_path)


def test_a_cut_dataset_is_named(tmp_path: Path) -> None:
    file = dataset(tmp_path)
    file.write_bytes(file.read_bytes()[:-20])

    with pytest.raises(ConfigError, match=r"dataset\.parquet: cannot be read as the dataset of a sweep"):
        load_sweep(tmp_path)


def test_another_table_is_no_dataset(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / DATASET)

    with pytest.raises(ConfigError, match="is no dataset that this batchsim knows"):
        load_sweep(tmp_path)


@needs_duckdb
def test_runs_is_the_table_of_all_sweeps(tmp_path: Path) -> None:
    dataset(tmp_path)
    dataset(tmp_path, "two", [{"run_id": "c", "mean_s": 4.0}])

    answer = query("select sweep, sum(mean_s) as total_s from runs group by all order by all", tmp_path)

    assert answer.to_pylist() == [{"sweep": "one", "total_s": 1.5}, {"sweep": "two", "total_s": 4.0}]


@needs_duckdb
@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("selec 1", 'query: syntax error at or near "selec"'),
        ("select mean from runs", 'Referenced column "mean" not found .*"mean_s"'),
        ("select * from rums", "rums does not exist"),
        ("select policy.preset from runs", 'a name with dots stands in double quotes: "policy.preset"'),
        ("select num as x, mean_s as x from runs", "2 columns are called x"),
        ("select mean_s::date from runs", "query: "),
        ("", "gives no table; write one"),
    ],
)
def test_sql_that_cannot_be_is_one_sentence(tmp_path: Path, sql: str, said: str) -> None:
    dataset(tmp_path)

    with pytest.raises(ConfigError, match=said) as error:
        query(sql, tmp_path)

    assert "\n" not in str(error.value)
    assert "LINE" not in str(error.value)


def test_without_duckdb_a_query_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)

    with pytest.raises(BatchsimError, match=r"pip install 'batchsim\[query\]'"):
        query("select 1", dataset(tmp_path).parent)


def test_a_value_that_changed_on_the_way_is_told(tmp_path: Path) -> None:
    file = dataset(tmp_path, rows=[{"run_id": "a", "x": 0.1 + number / 7} for number in range(100)])
    content, whole = file.read_bytes(), load_sweep(tmp_path)
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    num_told = 0

    for place in range(4, footer, 5):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            pd.testing.assert_frame_equal(load_sweep(tmp_path), whole)
        except ConfigError:
            num_told += 1

    assert num_told > 20
