from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.collections import PolyCollection

from batchsim import ConfigError
from batchsim.cli import main
from batchsim.config import SweepConfig, validate
from batchsim.config import figure as figure_config
from batchsim.config.figure import OwnFigure
from batchsim.figures import draw_figures, write_report
from batchsim.figures.needs import measured, plan_of
from batchsim.figures.own import COURSES, draw_own
from batchsim.figures.plots import check_figure
from batchsim.figures.results import SweepResults, read_sweep
from batchsim.results.dataset import describe
from batchsim.results.particulars import QUANTILES
from batchsim.results.sketches import PROBABILITIES
from batchsim.results.store import load_run
from batchsim.study.plan import plan
from batchsim.study.sweep import run_sweep
from tests.figures.conftest import TWO_RATES
from tests.figures.datasets import change
from tests.figures.swept import results

RATE = "workload.request_rate_per_gpu"


def sweep(figure: object, save: str = "tables") -> SweepConfig:
    content = {
        "name": "own",
        "figure": figure,
        "save": save,
        "base": {"policy": {"preset": "multi_bin"}, "workload": {"training_fraction": 0.1}},
        "grid": {RATE: [1, 2], "policy.num_bins": [1, 2]},
    }
    return validate(SweepConfig, content, "own.toml")


def drawn(swept: SweepResults, **figure: Any) -> tuple[Any, pd.DataFrame]:
    spec = sweep(figure).figure
    assert spec is not None
    assert not isinstance(spec, str)
    return draw_own(spec, swept)


def test_lines_have_a_panel_per_metric_and_a_line_per_policy() -> None:
    swept = results(
        {RATE: [1.0, 2.0]},
        **{RATE: [1.0, 2.0] * 2, "policy": ["a", "a", "b", "b"]},
        e2e_p99_s=[1.0, 2.0, 3.0, 4.0],
    )

    figure, table = drawn(swept, kind="lines", x=RATE, y=["e2e_p99_s", "slo_attainment"])

    assert [axes.get_ylabel() for axes in figure.axes] == ["E2E P99 (s)", "SLO attainment"]
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert [list(line.get_ydata()) for line in lines] == [[1.0, 2.0], [3.0, 4.0]]
    assert table["e2e_p99_s"].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_setting_that_no_key_names_has_panels_of_its_own_instead_of_being_averaged() -> None:
    swept = results(
        {RATE: [1.0], "policy.num_bins": [1, 2]},
        **{RATE: [1.0, 1.0], "policy.num_bins": [1, 2], "policy": ["a", "a"], "e2e_p99_s": [1.0, 3.0]},
    )

    figure, table = drawn(swept, kind="lines", x=RATE, y="e2e_p99_s")

    assert [axes.get_title("left") for axes in figure.axes] == ["1 bin", "2 bins"]
    assert table["e2e_p99_s"].tolist() == [1.0, 3.0]


def test_a_heatmap_has_a_square_for_each_pair_and_marks_what_is_saturated() -> None:
    swept = results(
        {RATE: [1.0, 2.0], "policy.num_bins": [1, 2]},
        **{RATE: [1.0, 2.0] * 2, "policy.num_bins": [1, 1, 2, 2], "policy": ["a"] * 4},
        verdict=["stable", "saturated", "transient", "stable"],
        e2e_p99_s=[1.0, 2.0, 3.0, 4.0],
    )

    figure, table = drawn(swept, kind="heatmap", x=RATE, y="policy.num_bins", value="e2e_p99_s")

    assert [text.get_text() for text in figure.axes[0].texts] == ["3~", "4", "1", "2*"]
    assert table["e2e_p99_s"].tolist() == [1.0, 2.0, 3.0, 4.0]


def records(swept: SweepResults, run_id: str) -> pd.DataFrame:
    return load_run(swept.folder / "runs" / run_id)[2]["requests"]


def test_a_distribution_is_that_of_the_finished_requests_after_the_warm_up(two_sweeps: Path) -> None:
    swept = read_sweep(two_sweeps / "courses")

    figure, table = drawn(swept, kind="cdf", x=["e2e_s", "queueing_s"])

    run = swept.runs.iloc[0]
    requests = records(swept, run["run_id"]).iloc[int(run["num_warmup"]) :]
    times_s = requests["finish_s"] - requests["arrival_s"]
    of_run = table[(table["run_id"] == run["run_id"]) & (table["what"] == "e2e_s")]
    assert of_run["at"].tolist() == pytest.approx(np.quantile(times_s, of_run["value"]).tolist(), rel=1e-5)
    assert of_run["value"].iloc[[0, -1]].tolist() == [0, 1]
    assert [axes.get_xlabel() for axes in figure.axes] == ["E2E (s)", "Queueing (s)"] * 2


def test_a_distribution_needs_no_tables(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(
        TWO_RATES.format(name="few", figure='"scaling"').replace("tables", "summary"), encoding="utf-8"
    )
    run_sweep(file, tmp_path)

    _, table = drawn(read_sweep(tmp_path / "few"), kind="cdf", x=["ttft_s"])

    assert table["run_id"].nunique() == 4


def test_runs_of_which_nothing_finished_have_no_distribution_to_draw() -> None:
    with pytest.raises(ConfigError, match="no run has e2e_s; there is nothing to draw"):
        drawn(results({RATE: [1.0]}, **{RATE: [1.0]}, policy=["a"], run_id=["a"]), kind="cdf", x=["e2e_s"])


def test_waiting_and_running_over_time_are_those_in_the_records(two_sweeps: Path) -> None:
    swept = read_sweep(two_sweeps / "courses")

    between = {"waiting": ("arrival_s", "scheduled_s"), "running": ("scheduled_s", "finish_s")}

    _, table = drawn(swept, kind="over_time", y=list(between))

    for run_id, of_run in table.groupby("run_id"):
        requests = records(swept, str(run_id))
        for what, (start, end) in between.items():
            points = of_run[of_run["what"] == what].iloc[::50]
            inside = [((requests[start] <= at) & (requests[end] > at)).sum() for at in points["at"]]
            assert points["value"].tolist() == inside


def test_runs_without_a_controller_leave_no_line_and_all_of_them_no_panel(two_sweeps: Path) -> None:
    swept = read_sweep(two_sweeps / "courses")
    fixed = replace(swept, runs=swept.runs[swept.runs["policy"] == "static_fifo"])

    _, table = drawn(swept, kind="over_time", y=["allowed"])
    with pytest.warns(UserWarning, match="no run has allowed; its panel is left out"):
        figure, _ = drawn(fixed, kind="over_time", y=["running", "allowed"])

    assert set(table["policy"]) == {"dynamic_no_bins"}
    assert {axes.get_ylabel() for axes in figure.axes} == {"Running requests"}


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ("scalling", "'scalling' is unknown; did you mean scaling"),
        ({"kind": "lines", "x": "workload.request_rate", "y": ["e2e_p99_s"]}, f"did you mean {RATE}"),
        ({"kind": "lines", "x": RATE, "y": ["e2e_p98"]}, "'e2e_p98' is unknown; did you mean .*e2e_p9"),
        ({"kind": "lines", "x": RATE, "y": ["e2e_p99_s"], "hue": "polcy"}, "did you mean policy"),
        ({"kind": "heatmap", "x": RATE, "y": "policy.bins", "value": "e2e_p99_s"}, "mean policy.num_bins"),
        ({"kind": "heatmap", "x": RATE, "y": "policy.num_bins", "value": "e2ep99"}, "e2e_p99_s"),
        ({"kind": "cdf", "x": ["ttft"]}, "did you mean ttft_s"),
        ({"kind": "over_time", "y": ["runing"]}, "did you mean running"),
    ],
)  # fmt: skip
def test_a_name_that_nothing_has_is_refused_with_the_nearest(figure: object, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^own.toml: figure.*{message}"):
        check_figure(sweep(figure), plan(sweep(figure)), "own.toml")


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ({"kind": "linse"}, "lines, cdf, heatmap, over_time"),
        ({"kind": "lines", "x": RATE}, "figure.lines.y: field required"),
        ({"kind": "lines", "x": RATE, "y": ["e2e_p99_s"], "colour": "policy"}, "figure.lines.colour"),
        (3, "figure"),
    ],
)
def test_a_kind_or_key_that_does_not_exist_is_refused_on_loading(figure: object, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^own.toml: .*{message}"):
        sweep(figure)


def test_what_is_drawn_from_tables_asks_for_them_before_the_first_run() -> None:
    with pytest.raises(ConfigError, match='set save = "tables"'):
        sweep({"kind": "over_time", "y": ["running"]}, save="summary")
    assert sweep({"kind": "cdf", "x": ["e2e_s"]}, save="summary")


def test_every_metric_of_the_results_may_be_drawn(two_sweeps: Path) -> None:
    swept = read_sweep(two_sweeps / "loads")
    in_both_worlds = ["e2e_p99_s", "slo_attainment", "batch_size_mean", "itl_p99_s", "prefix_hit_rate"]
    numbers = [name for name in swept.runs if name.endswith(("_s", "_mean")) and "." not in name]

    missing = measured(*in_both_worlds, *numbers)(plan_of(swept.sweep, plan(swept.sweep)))

    assert missing == ""


def test_the_command_refuses_a_figure_before_the_first_run(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        'name = "own"\nfigure = {kind = "lines", x = "seed", y = ["e2e_p98_s"]}\ngrid.seed = [1, 2]\n',
        encoding="utf-8",
    )

    done = CliRunner().invoke(main, ["sweep", str(file), "-o", str(tmp_path / "results")])

    assert done.exit_code == 2
    assert "metric 'e2e_p98_s' is unknown" in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_sweep_without_a_figure_has_its_table_on_the_page(swept: Path) -> None:
    file = swept / "courses" / "dataset.parquet"
    change(file, described={"sweep": describe(file.parent)["sweep"] | {"figure": None}})

    files = draw_figures(swept, ["courses"])

    page = write_report(swept).read_text(encoding="utf-8")
    assert files == []
    assert "4 rows; all are in courses/dataset.parquet" in page
    assert page.count("<img") == 0


def test_whatever_a_figure_may_name_can_be_drawn() -> None:
    assert set(COURSES) == set(figure_config.COURSES)
    assert set(QUANTILES) > set(figure_config.REQUEST_TIMES)


def test_the_documentation_names_every_kind_and_what_each_can_draw() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")

    kinds = [kind.model_fields["kind"].annotation.__args__[0] for kind in OwnFigure.__args__]

    assert [
        name for name in (*kinds, *figure_config.REQUEST_TIMES, *COURSES) if f"`{name}`" not in page
    ] == []


def test_replications_are_one_line_with_a_band(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(
        """
        name = "often"
        save = "tables"
        replications = 3
        figure = {kind = "cdf", x = ["e2e_s"]}
        base.workload.num_requests = 30
        base.metrics.warmup = 0.0
        base.workload.generator.kind = "poisson"
        base.workload.generator.rate_per_s = 1.0
        base.workload.generator.prompt = {kind = "fixed", tokens = 10}
        base.workload.generator.output = {kind = "uniform", low = 1, high = 90}
        grid.policy.preset = ["static_fifo", "vllm_v1"]
        """,
        encoding="utf-8",
    )
    run_sweep(file, tmp_path)
    swept = read_sweep(tmp_path / "often")

    figure, table = drawn(swept, kind="cdf", x=["e2e_s"])

    axes = figure.axes[0]
    assert len(axes.lines) == 2
    assert len([one for one in axes.collections if isinstance(one, PolyCollection)]) == 2
    last = table.groupby("policy").last()
    assert last["value"].tolist() == [1.0, 1.0]
    assert (table["num_runs"] == 3).all()
    quantiles = swept.quantiles("e2e_s")
    of_each = [
        np.append(0, PROBABILITIES)[np.searchsorted(quantiles[run_id], table["at"].iloc[99], "right")]
        for run_id in swept.runs.query("policy == 'static_fifo'")["run_id"]
    ]
    assert table["value"].iloc[99] == pytest.approx(np.mean(of_each))
    half_width = 4.302653 * np.std(of_each, ddof=1) / 3**0.5
    assert table["value_ci95"].iloc[99] == pytest.approx(half_width)
