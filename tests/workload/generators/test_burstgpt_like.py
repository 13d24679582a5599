"""The BurstGPT-like generator meets what is published; the embedded trace is what the generator makes."""

import gzip
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.workload.formats import read_trace
from batchsim.workload.generators.burstgpt_like import burstgpt_like
from batchsim.workload.generators.embedded import (
    PUBLISHED,
    QUOTED,
    comparison_table,
    embedded_frame,
    statistics,
    write_burstgpt_csv,
    write_embedded_trace,
)
from tests.shared_data import shared_path

WORKLOADS = Path(__file__).resolve().parents[3] / "workloads"
COLUMNS = ["Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type"]


@pytest.fixture(scope="module")
def months() -> list[pd.DataFrame]:
    """Four independent traces of eight weeks each."""
    return [burstgpt_like(60_000, np.random.default_rng(seed), num_days=56) for seed in range(4)]


@pytest.fixture(scope="module")
def embedded() -> pd.DataFrame:
    text = gzip.decompress((WORKLOADS / "burstgpt_like.csv.gz").read_bytes())
    return pd.read_csv(io.BytesIO(text), comment="#")


def mean_over(frames: list[pd.DataFrame], name: str) -> float:
    return float(np.mean([statistics(frame)[name] for frame in frames]))


def test_a_trace_has_the_columns_of_burstgpt_in_whole_seconds_and_order(months: list[pd.DataFrame]) -> None:
    frame = months[0]

    assert list(frame.columns) == COLUMNS
    assert frame["Timestamp"].dtype == np.int64
    assert frame["Timestamp"].is_monotonic_increasing
    assert frame["Timestamp"].between(0, 56 * 86_400 - 1).all()
    assert (frame["Total tokens"] == frame["Request tokens"] + frame["Response tokens"]).all()
    assert frame["Request tokens"].between(1, 8_000).all()
    assert frame["Response tokens"].between(0, 2_000).all()


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("failed_share", 0.001),  # 4 sigma of 240,000 rows
        ("conversation_share", 0.003),
        ("gpt4_share", 0.03),  # campaigns are dealt whole, so the share is met up to one campaign
        ("request_mean_tokens", 25),  # cut at 8,000 tokens after the match
        ("response_mean_tokens", 3),
    ],
)
def test_shares_and_means_are_the_published_ones(
    months: list[pd.DataFrame], name: str, tolerance: float
) -> None:
    assert mean_over(months, name) == pytest.approx(PUBLISHED[name], abs=tolerance)


def test_medians_are_short_as_quoted(months: list[pd.DataFrame]) -> None:
    # quoted: median request 74 to 251, median response 14 to 34
    assert 74 <= mean_over(months, "request_p50_tokens") <= 350
    assert 10 <= mean_over(months, "response_p50_tokens") <= 34


def test_days_differ_about_as_much_as_published(months: list[pd.DataFrame]) -> None:
    assert 0.6 < mean_over(months, "daily_cv") < 2.2


def test_conversations_rest_at_night_and_halve_at_weekends(months: list[pd.DataFrame]) -> None:
    talks = pd.concat(months).query("`Log Type` == 'Conversation log'")
    hour = talks["Timestamp"] // 3_600 % 24
    is_weekend = talks["Timestamp"] // 86_400 % 7 >= 5

    peak = hour.isin([10, 11, 15, 16]).mean() / 4
    night = hour.isin([3, 4, 5, 6]).mean() / 4
    per_weekend_day, per_weekday = is_weekend.sum() / 2, (~is_weekend).sum() / 5

    assert peak > 5 * night
    assert per_weekend_day / per_weekday == pytest.approx(0.5, abs=0.05)


def test_answers_in_conversations_follow_the_published_curve(months: list[pd.DataFrame]) -> None:
    answered = pd.concat(months).query("`Log Type` == 'Conversation log' and `Response tokens` > 0")

    for low, high, published in ((20, 50, 250), (100, 300, 160), (900, 1_100, 280), (1_900, 2_100, 450)):
        near = answered[answered["Request tokens"].between(low, high)]["Response tokens"]
        assert near.mean() == pytest.approx(published, rel=0.1)


def test_api_calls_are_burstier_than_conversations_within_a_period(embedded: pd.DataFrame) -> None:
    def dispersion(log_type: str) -> float:
        """Mean over 20-minute periods of variance / mean of the arrivals per minute; 1 for Poisson."""
        minute = embedded.loc[embedded["Log Type"] == log_type, "Timestamp"] // 60
        periods = np.bincount(minute, minlength=14 * 1_440).reshape(-1, 20)
        periods = periods[periods.sum(axis=1) >= 10]
        return float(np.mean(periods.var(axis=1) / periods.mean(axis=1)))

    assert dispersion("Conversation log") > 1.0
    assert dispersion("API log") > 1.5 * dispersion("Conversation log")


def test_conversations_fail_more_often_than_api_calls(months: list[pd.DataFrame]) -> None:
    rows = pd.concat(months)
    failed = rows["Response tokens"].eq(0).groupby(rows["Log Type"]).mean()

    assert failed["Conversation log"] == pytest.approx(0.05, abs=0.007)
    assert failed["API log"] < 0.02


@pytest.mark.parametrize("num_requests", [1, 2, 30])
def test_tiny_traces_work(num_requests: int) -> None:
    frame = burstgpt_like(num_requests, np.random.default_rng(3))

    assert len(frame) == num_requests


def test_the_default_span_has_the_published_rate() -> None:
    frame = burstgpt_like(300_000, np.random.default_rng(3))

    assert statistics(frame)["mean_rate_per_s"] == pytest.approx(PUBLISHED["mean_rate_per_s"], rel=0.05)


@pytest.mark.parametrize(("name", "value"), [("num_days", 0.0), ("num_days", "7"), ("failed_share", 0.5)])
def test_parameters_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value!r}"):
        burstgpt_like(10, np.random.default_rng(0), **{name: value})  # type: ignore[arg-type]


def test_the_embedded_trace_is_what_the_generator_makes(tmp_path: Path) -> None:
    write_embedded_trace(tmp_path / "again.csv.gz")

    made = gzip.decompress((tmp_path / "again.csv.gz").read_bytes())
    assert made == gzip.decompress((WORKLOADS / "burstgpt_like.csv.gz").read_bytes())


def test_the_embedded_trace_is_read_as_synthetic() -> None:
    workload = read_trace(WORKLOADS / "burstgpt_like.csv.gz")

    assert workload.source.kind == "synthetic"
    assert len(workload) + sum(workload.source.dropped.values()) == 100_000


def test_the_readme_compares_the_trace_that_is_there(embedded: pd.DataFrame) -> None:
    readme = (WORKLOADS / "README.md").read_text(encoding="utf-8")

    assert comparison_table(embedded) in readme


def test_everything_published_is_measured(embedded: pd.DataFrame) -> None:
    assert {*PUBLISHED, *QUOTED} == set(statistics(embedded))


def test_the_embedded_trace_holds_no_stretch_of_the_real_one(embedded: pd.DataFrame) -> None:
    real = pd.read_csv(shared_path("traces/burstgpt1_head400.csv"))

    common = real.merge(embedded, on=COLUMNS)

    assert common.empty


def test_a_generated_file_is_labelled_and_read_back(tmp_path: Path) -> None:
    frame = embedded_frame().head(100)

    write_burstgpt_csv(frame, tmp_path / "made.csv", "by a test")

    assert (tmp_path / "made.csv").read_text(encoding="utf-8").startswith("# synthetic: by a test\n")
    assert read_trace(tmp_path / "made.csv").source.kind == "synthetic"
