"""What stands beside a figure, and what it takes to draw it elsewhere."""

import hashlib
import json
import shlex
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batchsim import ConfigError
from batchsim.cli import main
from batchsim.figures import draw_figures
from batchsim.figures.needs import keeps_tables
from batchsim.figures.plots import FIGURES

OF_TABLES = {"controller_trajectory", "fairness"}


@pytest.fixture(scope="module")
def drawn(two_sweeps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(two_sweeps, tmp_path_factory.mktemp("drawn") / "results"))
    draw_figures(folder, width="one")
    return folder


def test_a_sidecar_says_how_to_read_it_and_how_it_was_made(drawn: Path) -> None:
    told = json.loads((drawn / "loads" / "loads.figure.json").read_text(encoding="utf-8"))

    assert told["caption"].startswith(FIGURES["latency_throughput"].caption)
    assert "Workload: Poisson arrivals" in told["caption"]
    assert told["width_inches"] == 3.3
    assert told["drawn_from"] == "dataset.parquet"
    assert told["sweep"]["num_runs"] == 4
    assert told["sweep"]["seeds"] == [0]
    assert told["sweep"]["file"] == "loads.toml"
    assert {"batchsim", "matplotlib", "numpy"} <= told["versions"].keys()


def test_its_hashes_are_those_of_the_files_beside_it(drawn: Path) -> None:
    folder = drawn / "loads"

    hashes = json.loads((folder / "loads.figure.json").read_text(encoding="utf-8"))["sha256"]

    assert {"dataset.parquet", "loads.pdf", "loads.png", "loads.csv"} <= hashes.keys()
    for name, digest in hashes.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_its_command_draws_the_same_files_again(drawn: Path) -> None:
    folder = drawn / "loads"
    before = {path.name: path.read_bytes() for path in folder.glob("loads.*")}
    command = shlex.split(json.loads(before["loads.figure.json"])["command"])
    for name in before:
        (folder / name).unlink()

    done = CliRunner().invoke(main, command[1:])

    assert done.exit_code == 0, done.output
    assert {path.name: path.read_bytes() for path in folder.glob("loads.*")} == before


def test_what_needs_tables_and_has_none_says_so(drawn: Path, tmp_path: Path) -> None:
    dataset = shutil.copy(drawn / "courses" / "dataset.parquet", tmp_path)
    pq.write_table(pq.read_table(dataset).drop_columns(["decisions", "courses"]), dataset)

    with pytest.raises(
        ConfigError, match='from which the figure is drawn; run the sweep with save = "tables"'
    ):
        draw_figures(tmp_path)


def test_those_that_need_tables_are_few() -> None:
    assert {name for name, plot in FIGURES.items() if keeps_tables in plot.needs} == OF_TABLES
