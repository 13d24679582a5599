"""Nothing on a figure is cut, too small or on top of something else, in either width."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from batchsim.figures.axes import set_axis, stacked
from batchsim.figures.engines import continuous_vs_static
from batchsim.figures.layout import canvas, wrapped
from batchsim.figures.results import SweepResults
from batchsim.figures.save import render
from batchsim.figures.schedulers import bin_sensitivity, scaling, scheduler_comparison
from batchsim.figures.style import SMALLEST, WIDTHS, look
from tests.figures.swept import results

RATE, BINS = "workload.request_rate_per_gpu", "policy.num_bins"
NAMES = [
    "static_fifo",
    "multi_bin",
    "multi_bin, 5 s timer",
    "dynamic_no_bins",
    "a case with a long name of its own",
]


def over_rates() -> SweepResults:
    return results(
        {RATE: [0.1, 0.5, 2.0]},
        **{
            "case": np.repeat(NAMES, 3).tolist(),
            "policy": np.repeat([*NAMES[:4], "vllm_v1"], 3).tolist(),
            RATE: [0.1, 0.5, 2.0] * 5,
            "e2e_mean_s": np.geomspace(0.2, 600, 15).tolist(),
            "e2e_p99_s": np.geomspace(0.5, 900, 15).tolist(),
            "batch_size_mean": np.linspace(1, 20, 15).tolist(),
            "busy_fraction": np.linspace(0, 1, 15).tolist(),
            "saturated": [False, False, True] * 5,
        },
    )


def over_bins() -> SweepResults:
    return results(
        {RATE: [0.5, 3.0], BINS: [1, 2, 32]},
        **{
            "policy": np.tile(np.repeat(["multi_bin", "multi_bin_dynamic"], 3), 2).tolist(),
            RATE: np.repeat([0.5, 3.0], 6).tolist(),
            BINS: [1, 2, 32] * 4,
            "e2e_mean_s": np.linspace(5, 52, 12).tolist(),
            "padding_waste_output": np.linspace(0, 1, 12).tolist(),
        },
    )


@pytest.fixture(scope="module", params=[(name, width) for name in ("rates", "bins") for width in WIDTHS])
def drawn(request: pytest.FixtureRequest) -> Figure:
    """A figure with everything in its place."""
    name, width = request.param
    with look(width):
        figure, _ = scheduler_comparison(over_rates()) if name == "rates" else bin_sensitivity(over_bins())
        figure.draw_without_rendering()
    assert figure.get_figwidth() == WIDTHS[width]
    return figure


def texts(figure: Figure) -> Iterator[Text]:
    """All that is written; ticks beyond their axis are not."""
    written = {text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()}
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            shown = {tick.label1 for tick in axis._update_ticks()}
            written -= {tick.label1 for tick in axis.get_major_ticks()} - shown
    return iter(written)


def test_no_text_leaves_the_page_or_is_smaller_than_seven_points(drawn: Figure) -> None:
    page = drawn.bbox

    for text in texts(drawn):
        box = text.get_window_extent()
        assert text.get_fontsize() >= SMALLEST
        assert box.x0 >= page.x0 - 1, text
        assert box.x1 <= page.x1 + 1, text
        assert box.y0 >= page.y0 - 1, text
        assert box.y1 <= page.y1 + 1, text
    assert drawn.get_figheight() <= 9.01


def test_labels_of_panels_and_the_legend_do_not_run_into_each_other(drawn: Figure) -> None:
    boxes = [axes.yaxis.label.get_window_extent() for axes in drawn.axes]
    legend = drawn.legends[0].get_window_extent()

    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
    assert not any(legend.overlaps(axes.get_tightbbox()) for axes in drawn.axes)
    assert legend.x1 <= drawn.bbox.x1


def test_every_axis_has_ticks_to_read(drawn: Figure) -> None:
    for axes in drawn.axes:
        boxes = [tick.label1.get_window_extent() for tick in axes.yaxis._update_ticks()]
        assert len(boxes) >= 2
        assert not any(one.overlaps(other) for one, other in pairwise(boxes))


@pytest.mark.parametrize(("least", "most"), [(0.1, 14), (5, 52), (0.02, 50), (1e-3, 1e5), (0.5, 160)])
@pytest.mark.parametrize("height", [0.6, 3.0])
def test_decades_are_marked_as_there_is_room(least: float, most: float, height: float) -> None:
    with look("one"):
        figure = Figure(figsize=(3.3, height))
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        axes.plot([1, 2], [least, most])
        set_axis(axes, "y", "e2e_mean_s")
        figure.draw_without_rendering()

        inside = [tick for tick in axes.get_yticks() if least <= tick <= most]
        room = axes.bbox.height / figure.dpi * 72 / SMALLEST
        assert 1 <= len(inside) <= room


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_as_wide_as_asked_and_embeds_true_type(width: str) -> None:
    with look(width):
        figure, _ = canvas(over_rates(), 1, 1, over_rates().runs)
        first, second = render(figure), render(figure)

    (box,) = {part.split(b"]")[0] for part in first["pdf"].split(b"/MediaBox [")[1:]}
    _, _, across, _ = map(float, box.split())
    assert across == pytest.approx(72 * WIDTHS[width], abs=0.01)
    assert b"/FontFile2" in first["pdf"]
    assert b"/Type3" not in first["pdf"]
    assert first == second


def test_lines_are_as_wide_as_measured() -> None:
    text = "WWW iii WWWW iiii mmm multi_bin_dynamic: 2.7x"
    figure = Figure(figsize=(3.3, 1.0))

    lines = wrapped(text, 1.0, 9.0, is_bold=True)

    assert " ".join(lines) == text
    assert len(lines) > 2
    for line in lines:
        box = figure.text(0, 0, line, fontsize=9.0, fontweight="bold").get_window_extent()
        assert box.width <= figure.dpi * 1.0 + 3 or " " not in line


def test_a_legend_has_as_many_columns_as_fit_and_breaks_what_is_too_long() -> None:
    def legend_of(*labels: str) -> tuple[int, float]:
        handles = [Line2D([], [], label=label) for label in labels]
        with look("one"):
            figure, _ = canvas(over_rates(), 1, 1, over_rates().runs, handles=handles)
            figure.draw_without_rendering()
        legend = figure.legends[0]
        return legend._ncols, legend.get_window_extent().width / figure.dpi

    assert legend_of("a", "b", "c")[0] == 3
    assert legend_of("multi_bin_dynamic", "multi_bin", "static_fifo", "dynamic_no_bins")[0] == 2
    columns, inches = legend_of("this is the name of a case that is far too long for a line of a column", "b")
    assert columns == 1
    assert inches <= WIDTHS["one"]


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("Throughput (1/s per GPU)", ["Throughput", "(1/s per GPU)"]),
        ("E2E mean (s)", ["E2E mean (s)"]),
        ("SLO attainment, worst tenant", ["SLO attainment,", "worst tenant"]),
    ],
)
def test_the_unit_of_a_label_begins_a_line(label: str, lines: list[str]) -> None:
    assert stacked(label, 20).split("\n") == lines


def test_panels_of_a_column_share_their_axis() -> None:
    with look("one"):
        figure, _ = continuous_vs_static(over_rates())
        figure.draw_without_rendering()

        *upper, lowest = figure.axes
        assert lowest.get_xlabel()
        assert not any(axes.get_xlabel() for axes in upper)
        assert not any(label.get_visible() for axes in upper for label in axes.get_xticklabels())


def test_a_name_that_begins_with_an_underscore_stays_in_the_legend_though_it_is_broken() -> None:
    label = " _private and then a lot more than one line of a single column of a paper could hold"
    handles = [Line2D([], [], label=label)]

    with look("one"):
        figure, _ = canvas(over_rates(), 1, 1, over_rates().runs, handles=handles)

    assert figure.legends[0].get_texts()[0].get_text().startswith(" _private")


@pytest.mark.parametrize(("num_rows", "fits"), [(8, True), (36, False)])
def test_panels_are_high_enough_to_read_whether_a_page_holds_them_all_or_not(
    num_rows: int, fits: bool
) -> None:
    with look("two"):
        figure, rows = canvas(over_rates(), num_rows, 2, over_rates().runs)
        for axes in (one for row in rows for one in row):
            axes.set(xlabel="Bins", ylabel="E2E mean (s)")
        figure.draw_without_rendering()

    inches = min(one.get_window_extent().height for row in rows for one in row) / figure.dpi
    assert inches > 0.4
    assert (figure.get_figheight() <= 9.0) == fits


def test_labels_of_low_panels_do_not_reach_into_what_stands_above() -> None:
    rates = [0.24, 0.5, 0.56, 1.0, 1.5, 2.0]
    gpus = [1, 2, 4, 8]
    swept = results(
        {RATE: rates, "cluster.num_gpus": gpus},
        **{
            RATE: np.repeat(rates, 4).tolist(),
            "cluster.num_gpus": gpus * 6,
            "policy": ["static_fifo"] * 24,
            "output_throughput_per_gpu_tokens_per_s": np.linspace(1, 90, 24).tolist(),
            "slo_attainment": np.linspace(0, 1, 24).tolist(),
            "e2e_mean_s": np.geomspace(0.2, 600, 24).tolist(),
        },
    )

    with look("two"):
        figure, _ = scaling(swept)
        figure.draw_without_rendering()
        heights = [
            (axes.yaxis.label.get_window_extent().height, axes.get_window_extent().height)
            for axes in figure.axes
        ]

    assert len(heights) == 18
    assert all(label < panel for label, panel in heights)
