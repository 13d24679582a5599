from pathlib import Path

from batchsim.figures.measured.validation import distributions
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
