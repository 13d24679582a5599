import pandas as pd

from batchsim.figures.studies.pareto import plot_fronts
from batchsim.figures.style import look


def table() -> pd.DataFrame:
    """Three that were run, of which the second is the best, and one that was not."""
    return pd.DataFrame(
        {
            "name": ["a on h100, num_gpus 1", "a on h100, num_gpus 2", "b on h100, num_gpus 2", "b on h100"],
            "policy": ["a", "a", "b", "b"],
            "gpu": "h100",
            "verdict": ["misses", "best", "dearer", "not run"],
            "num_replications": [6, 40, 3, 0],
            "usd_per_hour": [6.0, 12.0, 12.0, 24.0],
            "attained": [0.5, 0.96, 1.0, None],
            "attained_alike": [0.52, 0.96, 0.95, None],
            "attained_ci95_low": [0.4, 0.95, 1.0, None],
            "attained_ci95_high": [0.6, 0.97, 1.0, None],
            "attained_less_best_ci95": [0.05, None, 0.01, None],
            "margin": [-0.4, 0.06, 0.1, None],
            "tokens_per_gpu_s": [900.0, 500.0, 500.0, None],
            "tokens_per_user_s": [20.0, 40.0, 45.0, None],
            "on_cost_front": [True, True, False, False],
            "on_speed_front": [True, False, True, False],
        }
    )


def test_fronts_join_what_no_other_beats_and_a_ring_marks_the_best() -> None:
    with look():
        figure = plot_fronts(table(), 0.9, "90% within TTFT <= 1 s")

    cost, speed = figure.axes
    front, *_, ring = (line for line in cost.lines if line.get_linestyle() != ":")
    assert list(front.get_xdata()) == [6.0, 12.0]
    assert list(front.get_ydata()) == [0.52, 0.96]
    assert list(ring.get_xdata()) == [12.0]
    assert list(speed.lines[0].get_xdata()) == [20.0, 45.0]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["a on h100", "b on h100", "Pareto front"]
    title = figure.texts[0].get_text().replace("\n", " ")
    assert title == "a on h100, num_gpus 2 is the cheapest that attains: 12.00 USD/hour, 96.0% good"


def test_in_one_column_the_panels_stand_one_below_the_other_and_nothing_is_cut() -> None:
    with look("one"):
        figure = plot_fronts(table(), 0.9, "")
        figure.draw_without_rendering()

    cost, speed = figure.axes
    width = figure.get_figwidth() * figure.dpi
    assert cost.get_position().y0 > speed.get_position().y1
    for axes, most in ((cost, 12.0), (speed, 45.0)):
        box = axes.xaxis.label.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= width
        assert axes.get_xlim()[1] > 1.05 * most
    assert speed.get_ylim()[1] > 1.05 * 900.0


def test_a_point_that_misses_is_hollow() -> None:
    with look():
        figure = plot_fronts(table(), 0.9, "")

    faces = {
        float(x): line.get_markerfacecolor()
        for line in figure.axes[0].lines
        if line.get_linestyle() == "None" and line.get_markersize() < 10
        for x in line.get_xdata()
    }
    assert faces[6.0] == "white"
    assert faces[12.0] != "white"


def test_a_search_without_an_answer_says_so() -> None:
    with look():
        figure = plot_fronts(table().replace({"verdict": {"best": "undecided"}}), 0.9, "")

    assert figure.texts[0].get_text() == "No configuration is sure to attain the SLO"
