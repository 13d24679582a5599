import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection, PolyCollection

from batchsim import ConfigError
from batchsim.config.figure import THROUGHPUT
from batchsim.figures.mechanisms import controller_trajectory, prediction_error, saturated_throughput
from batchsim.figures.plots import FIGURES, find_plot
from batchsim.figures.results import SweepResults, read_sweep
from batchsim.figures.save import render
from batchsim.figures.schedulers import is_undominated, latency_throughput, over, scaling, slo_pareto
from batchsim.figures.style import PALETTE, conditions, look, looks_of
from batchsim.files.tables import csv_text
from batchsim.metrics.verdict import judge
from batchsim.results.store import load_run
from batchsim.study.sweep import plan, read_sweep_file
from tests.figures.swept import results

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))

RATE = "workload.request_rate_per_gpu"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("full", [False, True], ids=["small", "full"])
def test_every_experiment_can_be_planned_and_has_a_figure_named_like_it(path: Path, full: bool) -> None:
    sweep = read_sweep_file(path, full=full)

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
        whole_run_output_throughput_tokens_per_s=[200.0, 600.0],
    )

    figure, table = scaling(swept)

    assert table["output_tokens_per_gpu_per_s"].tolist() == [200.0, 150.0]
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "Output tokens\n(1/s per GPU)",
        "SLO attainment",
        "E2E mean (s)",
    ]


def test_rates_are_of_the_steady_window_and_the_caption_counts_runs_without_one() -> None:
    swept = results(
        {RATE: [1.0, 2.0]},
        **{RATE: [1.0, 2.0], "policy": ["a", "a"], "window": ["steady", "whole run"]},
        request_throughput_per_s=[0.5, math.nan],
        whole_run_request_throughput_per_s=[0.8, 0.7],
    )

    _, table = latency_throughput(swept)

    assert table["throughput_per_gpu_per_s"].tolist() == [0.5, 0.7]
    assert "of the whole run in the 1 of 2 runs" in conditions(swept, table)


def test_the_small_print_says_how_much_lies_outside_the_calibrated_range() -> None:
    swept = results({}, policy=["a", "b"], num_extrapolated_batches=[0, 60], num_batches=[100, 100])

    assert "30% of all batches (up to 60% of a run)" in conditions(swept, pd.DataFrame())


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


def test_small_print_says_how_far_times_could_be_off_where_all_runs_agree() -> None:
    def footer(*told: str, low: float | None = -0.1) -> str:
        columns = {"expected_error": list(told), "expected_error_tpot_low": [low] * len(told)}
        return conditions(results({}, policy=["a"] * len(told), **columns), pd.DataFrame())

    assert "(derived); off by much. SLO" in footer("off by much", "off by much")
    assert "off by" not in footer("off by much", "off by little")
    assert "off by" not in footer("off by what is not known", low=None)


def test_the_footer_says_what_is_synthetic_and_what_derived() -> None:
    footer = conditions(results({}, policy=["a"]), pd.DataFrame())

    assert "a trace (synthetic)" in footer
    assert "a model (derived)" in footer
    assert "SLO: E2E 20 s, TPOT 0.05 s" in footer


def test_the_footer_names_all_predictors() -> None:
    kinds = ["oracle", "lognormal", "neighbour_bin", "confusion", "prompt_regression"]

    footer = conditions(results({}, policy=["a"] * 5, predictor=kinds), pd.DataFrame())

    assert f"Output lengths from: {', '.join(kinds)}." in footer


def test_the_footer_tells_a_generator_in_words_and_the_rate_at_which_it_was_run() -> None:
    swept = results({RATE: [2.0, 4.0]}, **{RATE: [2.0, 4.0], "policy": ["a", "a"]})
    base = {
        "workload.generator.kind": "poisson",
        "workload.generator.rate_per_s": 1.0,
        "workload.generator.prompt": {"kind": "lognormal", "mean": 530, "max_tokens": 8_000},
        "workload.generator.output": {"kind": "fixed", "tokens": 9},
    }
    sweep = swept.sweep.model_copy(update={"base": base})

    footer = conditions(SweepResults(swept.folder, sweep, swept.runs), pd.DataFrame())

    assert (
        "Poisson arrivals, prompts lognormal (mean 530, max 8,000 tokens), answers fixed (9 tokens)" in footer
    )
    assert "at 2 to 4 requests/s per GPU" in footer
    assert "rate_per_s" not in footer


def test_a_bar_below_zero_leaves_a_logarithmic_axis_its_ticks() -> None:
    swept = results(
        {"cluster.num_gpus": [1, 2]},
        **{"cluster.num_gpus": [1, 2], "policy": ["a", "a"]},
        e2e_mean_s=[8.0, 40.0],
        e2e_mean_ci95_s=[9.0, 1.0],
    )

    figure, _ = scaling(swept)
    figure.draw_without_rendering()

    axes = figure.axes[-1]
    low, high = axes.get_ylim()
    assert sum(low <= tick <= high for tick in axes.get_yticks()) > 2


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

    with pytest.raises(
        ConfigError, match=r"dataset.parquet: figure 'scalling' is unknown; did you mean scaling"
    ):
        find_plot(misspelt)


def test_a_line_that_lies_on_another_is_thinner_and_named_with_it() -> None:
    swept = results(
        {RATE: [1.0, 2.0]},
        **{RATE: [1.0, 2.0] * 2, "policy": ["vllm_v1", "vllm_v1", "sarathi", "sarathi"]},
    )

    figure, _ = latency_throughput(swept)

    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    first, second = (line for line in figure.axes[0].lines if line.get_linestyle() != "None")
    assert legend == ["vllm_v1", "sarathi (same as vllm_v1)"]
    assert second.get_linewidth() < first.get_linewidth()


def test_the_verdict_tells_saturated_from_transient_runs_and_each_has_its_mark() -> None:
    swept = results(
        {RATE: [1.0, 2.0, 3.0]},
        **{RATE: [1.0, 2.0, 3.0], "policy": ["a"] * 3, "verdict": ["stable", "transient", "saturated"]},
        saturated=[False, False, True],
    )

    figure, table = latency_throughput(swept)

    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    markers = [drawn for drawn in figure.axes[0].collections if isinstance(drawn, PathCollection)]
    assert table[["num_saturated", "num_transient"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0]]
    assert legend == ["a", "hollow: saturated", "pale: too short to tell"]
    assert len({tuple(marker.get_facecolor()[0]) for marker in markers}) == 3


@pytest.mark.parametrize(
    ("ci95", "num_seeds", "sentence"),
    [
        ([9.0, 9.0], 1, "Bars: 95 % interval of E2E mean within the one run; the others are of one run"),
        ([1.001, math.nan], 1, "Hidden by the markers: 95 % interval of E2E mean within the one run"),
        ([math.nan, math.nan], 1, "No intervals are drawn, and none claimed."),
        ([1.1, 1.1], 2, "The same for all 2 seeds: no intervals are drawn, and none claimed."),
    ],
)  # fmt: skip
def test_the_small_print_claims_the_intervals_that_are_drawn(
    ci95: list[float], num_seeds: int, sentence: str
) -> None:
    rates = [1.0, 1.0] if num_seeds == 2 else [1.0, 2.0]
    swept = results(
        {RATE: [1.0, 2.0]},
        **{RATE: rates, "policy": ["a", "a"], "seed": [1, 2], "e2e_mean_ci95_high_s": ci95},
        e2e_mean_s=[1.0, 1.0] if num_seeds == 2 else [1.0, 8.0],
    )

    figure, _ = latency_throughput(swept)

    assert any(sentence in " ".join(text.get_text().split()) for text in figure.texts)


def test_pale_points_of_requests_that_are_all_there_at_the_start_are_not_called_too_short() -> None:
    told = judge([0.0] * 300, [1.0] * 300, [2.0] * 300, math.nan)
    rest = {"verdict": [told.name] * 2, "verdict_reason": [told.reason] * 2}
    swept = results({RATE: [1.0, 2.0]}, **{RATE: [1.0, 2.0], "policy": ["a", "a"]}, **rest)

    figure, _ = latency_throughput(swept)

    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["a", "pale: all requests arrive at once"]


def test_the_bar_of_a_single_run_reaches_further_up_than_down() -> None:
    ends = {"e2e_mean_ci95_low_s": [0.5, 0.5], "e2e_mean_ci95_high_s": [4.0, 4.0]}
    swept = results(
        {RATE: [1.0, 2.0]}, **{RATE: [1.0, 2.0], "policy": ["a", "a"]}, e2e_mean_s=[1.0, 1.0], **ends
    )

    figure, _ = over(swept, RATE, ["e2e_mean_s"])

    bars = next(drawn for drawn in figure.axes[0].collections if isinstance(drawn, LineCollection))
    assert sorted({float(y) for segment in bars.get_segments() for _, y in segment}) == [0.5, 4.0]


def test_doublings_keep_their_labels_where_a_step_between_them_runs_into_one() -> None:
    limits = [16.0, 32.0, 64.0, 96.0, 128.0, 192.0, 256.0]
    swept = results(
        {"policy.batch_size": limits},
        **{"policy.batch_size": limits, "policy": ["a"] * 7},
        running_mean=limits,
    )

    figure, _ = over(swept, "policy.batch_size", ["running_mean"], has_steps=True)
    figure.canvas.draw()

    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["16", "32", "64", "", "128", "", "256"]


def test_small_shares_of_what_is_recomputed_fill_their_panel() -> None:
    blocks = {"engine.num_kv_blocks": [1000, 2000]}
    swept = results(blocks, **blocks, policy=["a", "a"], recomputed_share=[0.1, 0.02])

    figure, _ = over(swept, "engine.num_kv_blocks", ["recomputed_share"])

    assert figure.axes[0].get_ylim()[1] == pytest.approx(0.108)


def test_predictors_have_marks_for_runs_that_tell_little_and_panels_of_zeros_say_so() -> None:
    swept = results(
        {},
        policy=["a"] * 3,
        case=["oracle", "half", "one bin"],
        predictor=["oracle", "lognormal", "oracle"],
        bin_accuracy=[1.0, 0.5, math.nan],
        slo_attainment=[0.0] * 3,
        verdict=["saturated", "transient", "stable"],
    )

    figure, _ = prediction_error(swept)

    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["dotted: oracle", "hatched: saturated", "pale: too short to tell"]
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["0 in all"]
    oracle, half, one_bin = (patch.get_facecolor() for patch in figure.axes[1].patches)
    assert len({oracle, half, one_bin}) == 3
    assert oracle[:3] == PALETTE[0]


@pytest.mark.parametrize(("width", "inches", "columns"), [("one", 3.3, 1), ("two", 7.0, 3)])
def test_a_figure_is_as_wide_as_asked_and_its_panels_follow(width: str, inches: float, columns: int) -> None:
    swept = results({"cluster.num_gpus": [1, 2]}, **{"cluster.num_gpus": [1, 2], "policy": ["a", "a"]})

    with look(width):
        figure, _ = scaling(swept)

    assert figure.get_figwidth() == inches
    assert figure.axes[0].get_gridspec().ncols == columns


def test_six_panels_in_one_column_fit_on_a_page() -> None:
    swept = results({RATE: [1.0, 2.0]}, **{RATE: [1.0, 2.0], "policy": ["a", "a"]}, busy_fraction=[0.1, 0.2])
    metrics = ["e2e_mean_s", "e2e_p99_s", "slo_attainment", "busy_fraction", "normalized_latency_mean_s"]

    with look("one"):
        figure, _ = over(swept, RATE, [*metrics, "throughput_per_gpu_per_s"])

    assert len(figure.axes) == 6
    assert figure.get_figheight() < 9


def test_eight_panels_in_one_column_still_fit_and_only_the_lowest_of_each_setting_names_the_axis() -> None:
    grid = {"cluster.num_gpus": [1, 2], RATE: [1.0, 2.0]}
    swept = results(
        grid, **{RATE: [1.0, 1.0, 2.0, 2.0], "cluster.num_gpus": [1, 2, 1, 2], "policy": ["a"] * 4}
    )

    with look("one"):
        figure, _ = over(
            swept, RATE, ["e2e_mean_s", "e2e_p99_s", "slo_attainment", "throughput_per_gpu_per_s"]
        )

    assert len(figure.axes) == 8
    assert figure.get_figheight() <= 9
    assert [bool(axes.get_xlabel()) for axes in figure.axes] == [False, False, False, True] * 2


def test_an_own_policy_does_not_look_like_another_of_the_figure() -> None:
    runs = results({}, policy=["vllm_v1", "mine:careful"]).runs

    looks = looks_of(runs, "policy")

    assert looks["mine:careful"].marker != looks["vllm_v1"].marker
    assert looks["mine:careful"].color == PALETTE[0]


def test_fonts_are_embedded_as_truetype() -> None:
    figure, _ = scaling(
        results({"cluster.num_gpus": [1, 2]}, **{"cluster.num_gpus": [1, 2], "policy": ["a", "a"]})
    )

    content = render(figure)["pdf"]

    assert b"/Type0" in content
    assert b"/Type3" not in content


def test_text_in_a_table_for_spreadsheets_is_no_formula_and_numbers_stay_numbers() -> None:
    table = pd.DataFrame({"case": ["=1+1", "@x", "-x", "-1.5", "a=b"], "=y": [-1.5, 2.0, -3.0, 0.5, 1.0]})

    lines = csv_text(table).splitlines()

    assert lines == ["case,'=y", "'=1+1,-1.5", "'@x,2.0", "'-x,-3.0", "-1.5,0.5", "a=b,1.0"]


def test_scaling_lasts_equally_long_on_any_number_of_gpus() -> None:
    (path,) = (path for path in EXPERIMENTS if path.stem == "scaling")

    for full in (False, True):
        for run in plan(read_sweep_file(path, full=full), path):
            assert run.config.workload.num_requests is None
            assert run.config.workload.num_requests_per_gpu is not None
            assert run.config.workload.request_rate_per_gpu is not None


def test_multi_bin_stands_with_its_timer_beside_the_rule_of_full_batches() -> None:
    (path,) = (path for path in EXPERIMENTS if path.stem == "scheduler_comparison")

    labels = {run.case: run.config.policy for run in plan(read_sweep_file(path), path)}

    assert {"multi_bin", "multi_bin, 5 s timer"} <= labels.keys()
    assert labels["multi_bin, 5 s timer"].batching["kind"] == "Timer"


def test_a_case_with_dollar_signs_or_an_underscore_first_stands_in_the_legend_as_it_is() -> None:
    swept = results(
        {"policy.batch_size": [1, 2]},
        **{"policy.batch_size": [1, 2] * 2, "policy": ["a"] * 4},
        case=["_x", "_x", r"$\frac$", r"$\frac$"],
        running_mean=[1.0, 2.0, 3.0, 4.0],
    )

    with look():
        figure, _ = over(swept, "policy.batch_size", ["running_mean"], by="case")
        content = render(figure)

    legend = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert legend == ["_x", r"$\frac$"]
    assert len(content["png"]) > 0


def test_intervals_over_replications_are_a_band_and_a_point_alone_has_a_bar() -> None:
    rates, metric = [1.0, 2.0, 3.0, 4.0], [101.0, 102.0, 105.0, 105.0, 107.0, 109.0, 103.0, 105.0]
    swept = results(
        {RATE: rates},
        **{RATE: [rate for rate in rates for _ in range(2)], "policy": ["a"] * 8, "replication": [0, 1] * 4},
        e2e_mean_s=metric,
    )

    figure, table = over(swept, RATE, ["e2e_mean_s"])

    drawn = figure.axes[0].collections
    (band,) = (one for one in drawn if isinstance(one, PolyCollection))
    ys = {round(float(y), 3) for path in band.get_paths() for _, y in path.vertices}
    ends = [table["e2e_mean_s"] + sign * table["e2e_mean_s_ci95"] for sign in (-1, 1)]
    assert {round(end[place], 3) for end in ends for place in (2, 3)} <= ys  # at 2, both runs are equal
    (bars,) = (one for one in drawn if isinstance(one, LineCollection))
    assert len(bars.get_segments()) == 1
    told = [" ".join(text.get_text().split()) for text in figure.texts]
    assert any("over 2 replications (Student's t)" in text for text in told)


def test_points_of_a_frontier_have_bars_both_ways() -> None:
    swept = results(
        {RATE: [1.0, 2.0]},
        **{RATE: [1.0, 1.0, 2.0, 2.0], "policy": ["a"] * 4, "replication": [0, 1] * 2},
        slo_attainment=[0.49, 0.5, 0.39, 0.4],
        whole_run_request_throughput_per_s=[1.0, 1.1, 1.9, 2.0],
    )

    figure, table = slo_pareto(swept)

    bars = [one for one in figure.axes[0].collections if isinstance(one, LineCollection)]
    lengths = [abs(np.diff(one.get_segments()[0], axis=0)).max() for one in bars]
    half_widths = [table.loc[0, f"{one}_ci95"] for one in (THROUGHPUT, "slo_attainment")]
    assert sorted(lengths) == pytest.approx(sorted(2 * one for one in half_widths))


def test_a_trajectory_is_that_of_the_first_replication(two_sweeps: Path) -> None:
    swept = read_sweep(two_sweeps / "courses")
    runs = swept.runs[swept.runs["policy"] == "dynamic_no_bins"].assign(replication=[0, 1])

    _, table = controller_trajectory(replace(swept, runs=runs))

    first = load_run(swept.folder / "runs" / str(runs["run_id"].iloc[0]))[2]["controllers"]
    assert table["time_s"].tolist() == first["time_s"].tolist()
