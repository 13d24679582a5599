import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.files import write_whole
from batchsim.results.store import check_vacant, load_run, read_summary, run_id, save_failure, save_run

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


def test_a_folder_with_anything_else_in_it_is_never_replaced(tmp_path: Path) -> None:
    project = tmp_path / "web"
    save_run(project, MANIFEST, SUMMARY, tables())
    (project / "index.html").write_text("years of work", encoding="utf-8")

    for check in (check_vacant, lambda path, overwrite: save_run(path, {}, {}, {}, overwrite=overwrite)):
        with pytest.raises(ConfigError, match=r"holds files that are no run \(index.html\)"):
            check(project, overwrite=True)

    assert (project / "index.html").exists()
    assert load_run(project)[0] == MANIFEST


@pytest.mark.parametrize("path", [".", "", "/", "..", "run/.."])
def test_a_path_without_a_name_of_its_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match="a name is needed"):
        check_vacant(Path(path), overwrite=True)


def test_a_link_and_the_current_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_run(tmp_path / "run", MANIFEST, SUMMARY, tables())
    (tmp_path / "link").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")

    with pytest.raises(ConfigError, match="is a symbolic link"):
        check_vacant(tmp_path / "link", overwrite=True)
    with pytest.raises(ConfigError, match="is the current folder"):
        check_vacant(tmp_path / "run", overwrite=True)


def test_an_input_does_not_go_with_the_run_that_is_replaced(tmp_path: Path) -> None:
    save_run(tmp_path / "run", MANIFEST, SUMMARY, tables())

    with pytest.raises(ConfigError, match=r"holds requests\.parquet, an input"):
        check_vacant(tmp_path / "run", overwrite=True, inputs=[tmp_path / "run" / "requests.parquet"])


def test_a_run_that_failed_says_why_until_it_is_run_again(tmp_path: Path) -> None:
    save_failure(tmp_path / "run", {"failure": "because"})
    failed = read_summary(tmp_path / "run")

    save_run(tmp_path / "run", MANIFEST, SUMMARY, tables())

    assert failed is None
    assert read_summary(tmp_path / "run") == SUMMARY
    assert "failure.json" not in names(tmp_path / "run")


@pytest.mark.parametrize("name", ["manifest.json", "summary.json", "requests.parquet"])
@pytest.mark.parametrize("keep", [0, 10])
def test_a_run_with_a_file_that_is_empty_or_cut_is_not_whole(tmp_path: Path, name: str, keep: int) -> None:
    save_run(tmp_path / "run", MANIFEST, SUMMARY, tables())
    file = tmp_path / "run" / name
    file.write_bytes(file.read_bytes()[:keep])

    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        read_summary(tmp_path / "run", ["requests"])


def test_a_summary_that_was_edited_is_not_what_was_written(tmp_path: Path) -> None:
    save_run(tmp_path / "run", MANIFEST, SUMMARY, tables())
    (tmp_path / "run" / "summary.json").write_text('{"e2e_mean_s": 0}', encoding="utf-8")

    with pytest.raises(ConfigError, match="is not what was written"):
        read_summary(tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"files": '])
def test_whoever_reads_a_run_is_told_the_same_of_a_manifest_that_is_none(
    tmp_path: Path, content: bytes
) -> None:
    save_run(tmp_path / "run", MANIFEST, SUMMARY, tables())
    (tmp_path / "run" / "manifest.json").write_bytes(content)

    with pytest.raises(ConfigError, match=r"manifest\.json: ") as one:
        read_summary(tmp_path / "run")
    with pytest.raises(ConfigError) as other:
        load_run(tmp_path / "run")

    assert str(one.value) == str(other.value)


def test_a_run_saved_without_a_table_is_no_run_with_it(tmp_path: Path) -> None:
    save_run(tmp_path / "run", MANIFEST, SUMMARY, {})

    assert read_summary(tmp_path / "run", ["requests"]) is None
    assert read_summary(tmp_path / "run") == SUMMARY


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


@pytest.mark.parametrize(
    ("name", "message"),
    [("summary.json", "not valid JSON"), ("requests.parquet", "cannot be read as a table of a run")],
)
def test_a_broken_run_is_named(tmp_path: Path, name: str, message: str) -> None:
    save_run(tmp_path / "run", MANIFEST, SUMMARY, tables())
    (tmp_path / "run" / name).write_text("{", encoding="utf-8")

    with pytest.raises(ConfigError, match=message) as caught:
        load_run(tmp_path / "run")

    assert str(tmp_path / "run" / name) in str(caught.value)


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
