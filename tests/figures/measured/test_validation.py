from pathlib import Path

import pytest
from matplotlib.figure import Figure

from batchsim.figures.measured import validation
from batchsim.figures.measured.validation import distributions, plot_validation
from batchsim.latency.analytic import AffineBatchLatency
from batchsim.latency.store import save_latency
from batchsim.validation.replays.validate import validate
from tests.validation.replays.measured_worlds import engine, measure


def test_every_repeat_and_the_prediction_have_a_value_for_each_request(tmp_path: Path) -> None:
    for number in (1, 2):
        measure(tmp_path / "runs" / f"static_fifo-{number}", "static_fifo", trace=(30, 2.0), seed=number)
    save_latency(engine(), tmp_path / "latency.json")
    (case,) = validate([tmp_path / "runs"], tmp_path / "latency.json").cases

    drawn = distributions(case)

    num_later = int((case.predicted["output_tokens"] > 1).sum())
    sizes = {name: ([len(one) for one in measured], len(one)) for name, (measured, one) in drawn.items()}
    assert sizes == {"ttft": ([30, 30], 30), "tpot": ([num_later] * 2, num_later), "e2e": ([30, 30], 30)}


def test_a_time_that_the_model_does_not_tell_is_not_drawn(tmp_path: Path) -> None:
    measure(tmp_path / "run", "static_fifo", trace=(30, 2.0))
    save_latency(AffineBatchLatency(0.1, 0.02, 0.1, "output"), tmp_path / "latency.json")
    (case,) = validate([tmp_path / "run"], tmp_path / "latency.json").cases

    assert list(distributions(case)) == ["e2e"]


def test_repeats_have_greys_of_their_own_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        measure(tmp_path / "runs" / f"static_fifo-{number}", "static_fifo", trace=(30, 2.0), seed=number)
    save_latency(engine(), tmp_path / "latency.json")
    drawn: list[Figure] = []
    monkeypatch.setattr(validation, "save", lambda figure, stem: drawn.append(figure))

    plot_validation(validate([tmp_path / "runs"], tmp_path / "latency.json"), tmp_path)

    (figure,) = drawn
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["predicted", "measured, run 1", "measured, run 2", "measured, run 3"]
    for axes in figure.axes:
        assert len({str(line.get_color()) for line in axes.get_lines()}) == 4
