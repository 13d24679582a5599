"""Distributions of a run's times, kept with it: the right numbers, and read back as written."""

from pathlib import Path

import numpy as np
import pytest

from batchsim import SimulationResult, simulate
from batchsim.errors import ConfigError
from batchsim.metrics.requests import e2e_s
from batchsim.metrics.tokens import itl
from batchsim.records import SKETCH_COLUMNS
from batchsim.results.sketches import PROBABILITIES, sketch
from batchsim.results.store import load_run, read_sketches, read_summary, save_run

PERCENTILES = (50, 90, 95, 99)


@pytest.fixture(scope="module")
def engine() -> SimulationResult:
    return simulate(
        {"policy": {"preset": "vllm_v1"}, "workload": {"request_rate": 2.0, "num_requests": 600}},
        overrides={"metrics.warmup": 0.1},
    )


@pytest.fixture(scope="module")
def batches() -> SimulationResult:
    return simulate({"workload": {"request_rate": 0.3, "num_requests": 300}})


def test_probabilities_ascend_from_the_least_to_the_greatest_and_are_dense_in_the_tail() -> None:
    assert PROBABILITIES[0] == 0.0
    assert PROBABILITIES[-1] == 1.0
    assert (np.diff(PROBABILITIES) > 0).all()
    assert (PROBABILITIES >= 0.99).sum() > 50
    assert len(PROBABILITIES) < 200


@pytest.mark.parametrize("percent", PERCENTILES)
def test_quantiles_are_the_percentiles_of_the_summary(engine: SimulationResult, percent: int) -> None:
    at = int(np.flatnonzero(np.isclose(PROBABILITIES, percent / 100))[0])

    for name in ("e2e", "queueing", "ttft", "tpot"):
        assert engine.sketches[f"{name}_s"][at] == pytest.approx(engine.summary[f"{name}_p{percent}_s"])


def test_ends_are_the_extremes_of_the_covered_requests(engine: SimulationResult) -> None:
    covered = e2e_s(engine.requests)[engine.summary["num_warmup"] :]

    assert engine.sketches["e2e_s"][0] == covered.min()
    assert engine.sketches["e2e_s"][-1] == covered.max()


def test_gaps_between_tokens_are_those_written_out_to_a_thousandth(engine: SimulationResult) -> None:
    covered = engine.requests.iloc[engine.summary["num_warmup"] :]
    gaps, weights = itl(covered, engine.iterations, engine.preemptions).written_out()
    exact = np.repeat(gaps, weights.astype(int))

    assert engine.sketches["itl_s"] == pytest.approx(
        np.quantile(exact, PROBABILITIES, method="inverted_cdf"), rel=2e-3
    )


def test_batches_that_run_to_completion_have_no_gaps(batches: SimulationResult) -> None:
    assert list(batches.sketches) == ["e2e_s", "queueing_s", "ttft_s", "tpot_s"]


def test_nobody_finished_leaves_no_distribution(batches: SimulationResult) -> None:
    assert sketch(batches.records, num_warmup=len(batches.requests)) == {}


def test_a_saved_run_reads_back_what_was_sketched(engine: SimulationResult, tmp_path: Path) -> None:
    engine.save(tmp_path / "run")

    table = read_sketches(tmp_path / "run")

    assert table is not None
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == {
        name: np.dtype(kind).name if kind != "category" else kind for name, kind in SKETCH_COLUMNS.items()
    }
    of_e2e = table[table["metric"] == "e2e_s"]
    assert of_e2e["probability"].to_numpy() == pytest.approx(PROBABILITIES, rel=1e-6)
    assert of_e2e["value"].to_numpy() == pytest.approx(engine.sketches["e2e_s"], rel=1e-6)


def test_the_same_run_gives_the_same_bytes(batches: SimulationResult, tmp_path: Path) -> None:
    batches.save(tmp_path / "one")
    batches.save(tmp_path / "two")

    one, two = (tmp_path / name / "sketches.parquet" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size < 8_000


def test_a_run_without_them_is_whole_and_has_none(engine: SimulationResult, tmp_path: Path) -> None:
    save_run(tmp_path / "run", engine.manifest, engine.summary, engine.tables)

    assert read_sketches(tmp_path / "run") is None
    assert read_summary(tmp_path / "run") is not None
    assert len(load_run(tmp_path / "run")[2]["requests"]) == 600


def test_damaged_ones_are_named(engine: SimulationResult, tmp_path: Path) -> None:
    engine.save(tmp_path / "run")
    (tmp_path / "run" / "sketches.parquet").write_bytes(b"PAR1 and no more")

    with pytest.raises(ConfigError, match=r"sketches\.parquet: cannot be read"):
        read_sketches(tmp_path / "run")
