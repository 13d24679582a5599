from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from batchsim.figures.measured import roofline
from batchsim.figures.measured.roofline import plot_roofline_errors
from batchsim.validation.roofline.static_batches import predict_static_batches
from tests.validation.roofline.published import write_batches


@pytest.mark.parametrize("metrics", [("batch",), ("batch", "TTFT", "TPOT")])
def test_both_forms_are_written_with_a_panel_for_each_metric(tmp_path: Path, metrics: tuple[str]) -> None:
    point = predict_static_batches(write_batches(tmp_path / "batches.csv", {})).table
    points = pd.concat([point.assign(metric=metric) for metric in metrics])

    picture = plot_roofline_errors(points, tmp_path / "v1.0_errors")

    assert picture == tmp_path / "v1.0_errors.png"
    assert picture.stat().st_size > 0
    assert (tmp_path / "v1.0_errors.pdf").stat().st_size > 0


def test_a_name_with_dollar_signs_is_no_formula(tmp_path: Path) -> None:
    point = predict_static_batches(write_batches(tmp_path / "batches.csv", {})).table

    picture = plot_roofline_errors(point.assign(metric="batch", gpu=r"$\frac$"), tmp_path / "errors")

    assert picture.stat().st_size > 0


def test_every_gpu_has_a_look_of_its_own_that_a_legend_beside_the_panels_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = predict_static_batches(write_batches(tmp_path / "batches.csv", {})).table
    gpus = ["a100", "b200", "gh200", "h100", "h200", "l4", "mi250"]
    drawn: list[Figure] = []
    monkeypatch.setattr(roofline, "save", lambda figure, stem: drawn.append(figure))

    plot_roofline_errors(
        pd.concat([point.assign(metric="batch", gpu=gpu) for gpu in gpus]), tmp_path / "errors"
    )

    (figure,) = drawn
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*gpus, "exact", "half, double"]
    assert [axes.get_legend() for axes in figure.axes] == [None]
    looks = {(line.get_color(), line.get_marker()) for line in legend.get_lines()[: len(gpus)]}
    assert len({color for color, _ in looks}) == len(gpus)
    assert len({marker for _, marker in looks}) > 3
