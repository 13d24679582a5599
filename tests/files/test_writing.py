import os
import time
from pathlib import Path

import pytest

from batchsim.errors import ConfigError
from batchsim.files import check_file, remove_dead_partials, sibling, write_whole
from batchsim.results.store import check_vacant


@pytest.mark.parametrize("path", [".", "", "/", "..", "folder"])
def test_a_folder_is_no_file_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)

    for write in (check_file, lambda path: write_whole(path, "text")):
        with pytest.raises(ConfigError, match=r"a name is needed|the name of a file is needed"):
            write(Path(path))


def test_an_input_is_never_replaced_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a", encoding="utf-8")
    os.link(tmp_path / "in.csv", tmp_path / "same.csv")

    for path in ("in.csv", "x/../in.csv", "same.csv"):
        with pytest.raises(ConfigError, match="never replaced"):
            check_file(tmp_path / path, inputs=[None, tmp_path / "in.csv"], overwrite=True)
    with pytest.raises(ConfigError, match="never replaced"):
        check_file(tmp_path / "in.csv", inputs=[tmp_path], overwrite=True)


def test_a_file_that_is_there_is_replaced_only_on_request_and_a_link_never(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("a", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "old")

    check_file(tmp_path / "old", overwrite=True)
    check_file(tmp_path / "new", overwrite=False)
    with pytest.raises(ConfigError, match="is there already"):
        check_file(tmp_path / "old", overwrite=False)
    with pytest.raises(ConfigError, match="symbolic link"):
        check_file(tmp_path / "link", overwrite=True)


def test_what_another_machine_began_goes_when_it_is_a_day_old(tmp_path: Path) -> None:
    ours = sibling(tmp_path / "run").name
    old, new = (
        tmp_path / ours.replace(ours.split(".")[2][:8], machine) for machine in ("0000000a", "0000000b")
    )
    for folder in (old, new):
        folder.mkdir()
    long_ago_s = time.time() - 2 * 86_400
    os.utime(old, (long_ago_s, long_ago_s))

    remove_dead_partials(tmp_path)

    assert list(tmp_path.iterdir()) == [new]


@pytest.mark.parametrize("name", ["loop", "a\0b"])
def test_an_input_that_leads_nowhere_is_no_hindrance(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    check_file(tmp_path / "out.csv", inputs=[tmp_path / name])
    check_vacant(tmp_path / "out", overwrite=False, inputs=[tmp_path / name])


def test_what_others_call_partial_stays(tmp_path: Path) -> None:
    download = tmp_path / ".film.partial"
    download.write_text("half", encoding="utf-8")
    os.utime(download, (0, 0))

    remove_dead_partials(tmp_path)

    assert download.exists()
