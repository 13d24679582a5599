from pathlib import Path

import pandas as pd
import pytest

from batchsim import ConfigError
from batchsim.figures import draw_figures, write_report
from batchsim.figures.mechanisms import SECONDS_PER_TOKEN
from batchsim.latency.base import BatchShape
from batchsim.latency.store import load_latency
from batchsim.study.sweep import plan, read_sweep_file, run_sweep

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def few_requests(name: str, num_requests: int, folder: Path) -> Path:
    """An experiment with fewer requests, seeds and batch sizes."""
    text = (EXPERIMENTS / f"{name}.toml").read_text(encoding="utf-8")
    lines = [
        f"workload.num_requests = {num_requests}" if line.startswith("workload.num_requests") else line
        for line in text.replace("[1, 2, 3, 4, 5]", "[1, 2]").replace("[8, 128]", "[8]").splitlines()
    ]
    (folder / "unit_latency.json").write_bytes((EXPERIMENTS / "unit_latency.json").read_bytes())
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results and figures of two small sweeps."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, num_requests in (("multi_bin_theorem", 8_000), ("controller_trajectory", 300)):
        run_sweep(few_requests(name, num_requests, folder), folder)
    draw_figures(folder)
    return folder


def test_simulated_points_lie_on_the_closed_form(drawn: Path) -> None:
    table = pd.read_csv(drawn / "multi_bin_theorem" / "multi_bin_theorem.csv")

    # The mean of 8,000 uniform service times has a standard error of 0.6 %; bins leave little else to chance.
    assert table["relative_error"].abs().max() < 4 * 0.006
    assert len(table) == 6


def test_the_theorem_is_drawn_for_the_latency_of_its_experiment() -> None:
    latency = load_latency(str(EXPERIMENTS / "unit_latency.json"))

    for batch_size in (1, 128):
        assert latency.batch_time(BatchShape(batch_size, 1, 7_000)).total_s == pytest.approx(
            7_000 * SECONDS_PER_TOKEN
        )
    assert latency.info.provenance == "synthetic"


def test_a_trajectory_has_a_row_for_each_decision(drawn: Path) -> None:
    table = pd.read_csv(drawn / "controller_trajectory" / "controller_trajectory.csv")

    assert set(table["case"]) == {"dynamic_no_bins", "multi_bin_dynamic"}
    assert table["measured_batch_size"].notna().all()
    assert (table[table["case"] == "dynamic_no_bins"]["bin"] == -1).all()


def test_every_sweep_gets_a_pdf_a_picture_and_its_table(drawn: Path) -> None:
    files = [
        drawn / name / f"{name}.{kind}"
        for name in ("controller_trajectory", "multi_bin_theorem")
        for kind in ("pdf", "png", "csv")
    ]

    starts = [file.read_bytes()[:4] for file in files if file.suffix != ".csv"]

    assert starts == [b"%PDF", b"\x89PNG"] * 2
    assert not list(drawn.rglob("*.partial"))


def test_the_same_results_make_the_same_files(drawn: Path) -> None:
    folder = drawn / "multi_bin_theorem"
    first = {path.name: path.read_bytes() for path in folder.glob("multi_bin_theorem.*")}

    files = draw_figures(drawn, ["multi_bin_theorem"])

    assert {file.name: file.read_bytes() for file in files} == first
    assert {file.suffix for file in files} == {".pdf", ".png", ".csv", ".json"}


def test_the_report_is_one_page_without_anything_from_elsewhere(drawn: Path) -> None:
    page = write_report(drawn).read_text(encoding="utf-8")

    assert page.count('src="data:image/png;base64,') == page.count("<img") == 2
    assert "http" not in page
    assert "Multi-bin batching: simulated and closed form" in page
    assert "SLO controller over time" in page


def test_a_sweep_that_is_not_there_is_refused_by_name(drawn: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no results of a sweep 'scaling' in it; there are controller_trajectory"
    ):
        draw_figures(drawn, ["scaling"])


def test_a_part_of_the_grid_says_so_in_figure_table_and_report(tmp_path: Path) -> None:
    path = few_requests("multi_bin_theorem", 2_000, tmp_path)
    run_sweep(path, tmp_path, shard=(1, 2))
    num_runs = len(plan(read_sweep_file(path)))
    share = f"{(num_runs + 1) // 2} of {num_runs} runs"

    draw_figures(tmp_path)
    report = write_report(tmp_path).read_text(encoding="utf-8")

    folder = tmp_path / "multi_bin_theorem"
    assert set(pd.read_csv(folder / "multi_bin_theorem.csv")["share"]) == {share}
    assert f"Not all: {share}." in report


def test_a_figure_of_what_was_not_varied_is_one_sentence(tmp_path: Path) -> None:
    path = few_requests("multi_bin_theorem", 2_000, tmp_path)
    path.write_text(
        path.read_text(encoding="utf-8").replace('figure = "multi_bin_theorem"', 'figure = "scaling"')
    )
    run_sweep(path, tmp_path, shard=(1, 8))

    with pytest.raises(ConfigError, match=r"figure scaling needs 'cluster\.num_gpus', which these runs lack"):
        draw_figures(tmp_path)
