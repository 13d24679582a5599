from pathlib import Path

import pandas as pd
import pytest
from matplotlib.collections import PathCollection

from batchsim import ConfigError
from batchsim.figures.mechanisms import saturated_throughput
from batchsim.figures.plots import FIGURES, find_plot
from batchsim.figures.results import SweepResults
from batchsim.figures.schedulers import is_undominated, latency_throughput, scaling, slo_pareto
from batchsim.figures.style import conditions
from batchsim.study.sweep import load_sweep, plan
from tests.figures.swept import results

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))

RATE = "workload.request_rate_per_gpu"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("full", [False, True], ids=["small", "full"])
def test_every_experiment_can_be_planned_and_has_a_figure_named_like_it(path: Path, full: bool) -> None:
    sweep = load_sweep(path, full=full)

    runs = plan(sweep, path)

    assert sweep.name == sweep.figure == path.stem
    assert sweep.figure in FIGURES
    assert len({run.run_id for run in runs}) == len(runs)


def test_every_figure_has_an_experiment() -> None:
    assert sorted(FIGURES) == [path.stem for path in EXPERIMENTS]


def test_throughput_per_gpu_divides_by_the_gpus_of_the_run() -> None:
    grid = {"cluster.num_gpus": [1, 4]}
    swept = results(
        grid,
        **{"cluster.num_gpus": [1, 4], "num_gpus": [1, 4], "policy": ["a", "a"]},
        whole_run_request_throughput_per_s=[2.0, 6.0],
    )

    figure, table = scaling(swept)

    assert table["throughput_per_gpu_per_s"].tolist() == [2.0, 1.5]
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "Throughput (1/s per GPU)",
        "SLO attainment",
        "E2E mean (s)",
    ]


def test_each_combination_of_the_other_settings_has_a_row_of_panels() -> None:
    grid = {RATE: [1.0, 2.0], "cluster.num_gpus": [1, 2]}
    swept = results(
        grid, **{RATE: [1.0, 1.0, 2.0, 2.0], "cluster.num_gpus": [1, 2, 1, 2], "policy": ["a"] * 4}
    )

    figure, _ = scaling(swept)

    assert [axes.get_title("left") for axes in figure.axes if axes.get_title("left")] == [
        "1 requests/s per GPU",
        "2 requests/s per GPU",
    ]


def test_saturated_runs_are_hollow_and_the_legend_says_so() -> None:
    swept = results(
        {RATE: [1.0, 2.0]}, **{RATE: [1.0, 2.0], "policy": ["a", "a"], "saturated": [False, True]}
    )

    figure, table = latency_throughput(swept)

    markers = [drawn for drawn in figure.axes[0].collections if isinstance(drawn, PathCollection)]
    faces = [tuple(marker.get_facecolor()[0]) for marker in markers]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert table["num_saturated"].tolist() == [0, 1]
    assert faces.count((1.0, 1.0, 1.0, 1.0)) == 1
    assert legend == ["a", "hollow: saturated"]


def test_the_footer_says_what_is_synthetic_and_what_derived() -> None:
    footer = conditions(results({}, policy=["a"]), pd.DataFrame())

    assert "a trace (synthetic)" in footer
    assert "a model (derived)" in footer
    assert "SLO: E2E 20 s, TPOT 0.05 s" in footer


def test_a_point_is_dominated_by_one_at_least_as_high_in_all_and_higher_in_one() -> None:
    points = pd.DataFrame([(1, 9), (5, 5), (5, 4), (9, 1), (5, 5), (0, 0)])

    assert is_undominated(points) == [True, True, False, True, True, False]


def test_the_frontier_is_each_policys_own() -> None:
    swept = results(
        {RATE: [1.0]},
        **{
            RATE: [1.0] * 3,
            "policy": ["a", "b", "a"],
            "slo_attainment": [0.2, 0.9, 0.1],
            "case": ["x", "", "y"],
        },
        whole_run_request_throughput_per_s=[1.0, 9.0, 1.0],
    )

    _, table = slo_pareto(swept)

    assert table["on_frontier"].tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("batch_size", "num_bins", "per_s"),
    [
        (8, 1, 0.4472),
        (8, 4, 0.6479),
        (8, 32, 0.7455),
        (128, 1, 6.4475),
        (128, 5, 10.3472),
        (128, 32, 11.8603),
    ],
)
def test_closed_form_has_the_published_values(batch_size: int, num_bins: int, per_s: float) -> None:
    assert saturated_throughput(batch_size, num_bins, 1, 20) == pytest.approx(per_s, abs=5e-5)


def test_an_unknown_figure_is_refused_with_the_nearest_names() -> None:
    swept = results({}, policy=["a"])
    misspelt = SweepResults(Path(), swept.sweep.model_copy(update={"figure": "scalling"}), swept.runs)

    with pytest.raises(ConfigError, match=r"made-up: figure 'scalling' is unknown; did you mean scaling"):
        find_plot(misspelt)
