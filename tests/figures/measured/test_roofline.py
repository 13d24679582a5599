from pathlib import Path

import pandas as pd
import pytest

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
