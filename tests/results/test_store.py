import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.files import write_whole
from batchsim.results.store import load_run, run_id, save_run

MANIFEST = {"version": "1", "seed": 7}
SUMMARY = {"num_requests": 2, "e2e_mean_s": 1.5, "ttft_mean_s": None, "workload": "größer"}


def tables() -> dict[str, pd.DataFrame]:
    return {
        "requests": pd.DataFrame(
            {
                "request_id": np.array([3, 4]),
                "bin": np.array([0, -1], dtype=np.int16),
                "finish_s": [1.5, np.nan],
                "status": pd.Categorical(
                    ["finished", "refused"], categories=["finished", "abandoned", "refused"]
                ),
            }
        ),
        "batches": pd.DataFrame({"batch_id": [0], "is_flush": [True]}),
        "controllers": pd.DataFrame(
            {"time_s": pd.Series([], dtype=np.float64), "controller": pd.Series([]).astype("category")}
        ),
    }


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_run_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    save_run(tmp_path / "a" / "run", MANIFEST, SUMMARY, tables())

    manifest, summary, loaded = load_run(tmp_path / "a" / "run")

    assert manifest == MANIFEST
    assert summary == SUMMARY
    assert list(summary) == list(SUMMARY)
    assert loaded.keys() == tables().keys()
    for name, frame in tables().items():
        pd.testing.assert_frame_equal(loaded[name], frame, check_categorical=False)


def test_the_same_tables_give_the_same_bytes(tmp_path: Path) -> None:
    save_run(tmp_path / "one", MANIFEST, SUMMARY, tables())
    save_run(tmp_path / "two", MANIFEST, SUMMARY, tables())

    for name in names(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_run_is_five_files_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    save_run(tmp_path / "run", MANIFEST, SUMMARY, tables())

    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == [
        "batches.parquet",
        "controllers.parquet",
        "manifest.json",
        "requests.parquet",
        "summary.json",
    ]


def test_parquet_files_do_not_name_the_pandas_version(tmp_path: Path) -> None:
    save_run(tmp_path / "run", MANIFEST, SUMMARY, tables())

    assert b"pandas" not in (tmp_path / "run" / "requests.parquet").read_bytes()


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    save_run(tmp_path, MANIFEST, SUMMARY, tables())

    assert load_run(tmp_path)[0] == MANIFEST


def test_a_run_is_replaced_only_on_request(tmp_path: Path) -> None:
    save_run(tmp_path / "run", MANIFEST, SUMMARY, tables())

    with pytest.raises(ConfigError, match="holds a run already"):
        save_run(tmp_path / "run", {"seed": 8}, SUMMARY, tables())
    kept = load_run(tmp_path / "run")[0]
    save_run(tmp_path / "run", {"seed": 9}, SUMMARY, tables(), overwrite=True)

    assert kept == MANIFEST
    assert load_run(tmp_path / "run")[0] == {"seed": 9}
    assert names(tmp_path) == ["run"]


def test_files_that_are_no_run_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")

    with pytest.raises(ConfigError, match="holds files that are no run"):
        save_run(tmp_path, MANIFEST, SUMMARY, tables(), overwrite=True)

    assert names(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("target", ["file", "file/run"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")

    with pytest.raises(ConfigError, match="file"):
        save_run(tmp_path / target, MANIFEST, SUMMARY, tables())
    with pytest.raises(ConfigError, match="cannot be written"):
        write_whole(tmp_path / "file" / "x.txt", "text")

    assert names(tmp_path) == ["file"]


def test_nan_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_run(tmp_path / "run", MANIFEST, {"e2e_mean_s": math.nan}, tables())

    assert names(tmp_path) == []


def test_a_directory_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run in it \(manifest.json is missing\)"):
        load_run(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "requests.parquet"])
def test_a_broken_run_is_named(tmp_path: Path, name: str) -> None:
    save_run(tmp_path / "run", MANIFEST, SUMMARY, tables())
    (tmp_path / "run" / name).write_text("{", encoding="utf-8")

    with pytest.raises(ConfigError, match="the run cannot be read"):
        load_run(tmp_path / "run")


def test_write_whole_replaces_a_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "sub" / "x.txt", "first")
    write_whole(tmp_path / "sub" / "x.txt", "größer\n")

    assert (tmp_path / "sub" / "x.txt").read_bytes() == "größer\n".encode()
    assert names(tmp_path / "sub") == ["x.txt"]


def test_json_files_end_in_one_newline_on_every_system(tmp_path: Path) -> None:
    save_run(tmp_path / "run", MANIFEST, SUMMARY, tables())

    content = (tmp_path / "run" / "summary.json").read_bytes()

    assert content == (json.dumps(SUMMARY, indent=2, ensure_ascii=False) + "\n").encode()


def test_run_id_depends_on_what_the_run_depends_on() -> None:
    one = run_id({"seed": 1, "policy": {"preset": "orca", "batch_size": 8}}, "1.0", "abc")

    assert one == run_id({"policy": {"batch_size": 8, "preset": "orca"}, "seed": 1}, "1.0", "abc")
    assert len(one) == 12
    assert int(one, 16) >= 0
    others = [
        run_id({"seed": 2, "policy": {"preset": "orca", "batch_size": 8}}, "1.0", "abc"),
        run_id({"seed": 1, "policy": {"preset": "orca", "batch_size": 8}}, "1.1", "abc"),
        run_id({"seed": 1, "policy": {"preset": "orca", "batch_size": 8}}, "1.0", None),
    ]
    assert len({one, *others}) == 4
