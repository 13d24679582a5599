"""From a workload section of the configuration to training and evaluated requests."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchsim.config import WorkloadConfig
from batchsim.errors import ConfigError, TraceError
from batchsim.workload.generators.synthetic import generate
from batchsim.workload.load import EMBEDDED_TRACE, embedded_trace, load_trace, prepare
from batchsim.workload.request import Workload

POISSON = {
    "kind": "poisson",
    "rate_per_s": 2.0,
    "prompt": {"kind": "fixed", "tokens": 10},
    "output": {"kind": "uniform", "low": 1, "high": 9},
}


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def prepared(
    training_fraction: float = 0.0, num_gpus: int = 1, workload: Workload | None = None, **settings: Any
) -> tuple[Workload, Workload]:
    return prepare(WorkloadConfig(**settings), num_gpus, rng(), workload, training_fraction)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    rows = "".join(f"{second},{'ab'[second % 2]},{second + 1},1\n" for second in range(10))
    path.write_text("arrival_s,model,prompt_tokens,output_tokens\n" + rows, encoding="utf-8")
    return path


@pytest.mark.parametrize("training_fraction", [0.0, 0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("num_requests", [1, 7, 100])
def test_a_generator_evaluates_exactly_what_is_asked(num_requests: int, training_fraction: float) -> None:
    training, evaluated = prepared(training_fraction, generator=POISSON, num_requests=num_requests)

    assert len(evaluated) == num_requests
    assert (evaluated.arrival_s[0] == 0) == (training_fraction > 0)
    assert len(training) == pytest.approx(
        num_requests * training_fraction / (1 - training_fraction), abs=1 if training_fraction else 0
    )
    assert (len(training) > 0) == (training_fraction > 0)


def test_a_generator_needs_a_number() -> None:
    with pytest.raises(ConfigError, match="num_requests is missing"):
        prepared(generator=POISSON)


def test_a_selection_from_a_generator_still_evaluates_what_is_asked() -> None:
    training, evaluated = prepared(
        0.2, generator={"kind": "burstgpt_like"}, num_requests=80, log_type="Conversation log"
    )

    assert (len(training), len(evaluated)) == (20, 80)
    assert set(evaluated.extra["log_type"]) == {"Conversation log"}


def test_a_window_too_short_for_the_generator_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_requests is 100, but .* has only \d+ requests"):
        prepared(generator=POISSON, num_requests=100, window=(0.0, 10.0))


def test_a_trace_sets_training_aside_before_it_counts(trace: Path) -> None:
    training, evaluated = prepared(0.2, trace=str(trace), num_requests=3)

    assert training.request_id.tolist() == [0, 1]
    assert evaluated.request_id.tolist() == [2, 3, 4]


def test_a_trace_with_too_few_rows_names_both_numbers(trace: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"num_requests is 9, but trace.csv has only 8 requests besides the 2"
    ):
        prepared(0.2, trace=str(trace), num_requests=9)


def test_rows_are_filtered_then_cut_to_the_window_then_counted(trace: Path) -> None:
    training, evaluated = prepared(0.25, trace=str(trace), trace_model="b", window=(1.0, 9.0), num_requests=2)

    assert training.request_id.tolist() == [1]
    assert evaluated.request_id.tolist() == [3, 5]
    assert evaluated.arrival_s.tolist() == [0, 2]


def test_request_rate_is_that_of_the_evaluated_requests(trace: Path) -> None:
    _, evaluated = prepared(0.2, trace=str(trace), num_requests=5, request_rate=4.0)

    assert evaluated.mean_rate_per_s == pytest.approx(4.0)


def test_request_rate_per_gpu_grows_with_the_cluster(trace: Path) -> None:
    _, evaluated = prepared(num_gpus=3, trace=str(trace), request_rate_per_gpu=4.0)

    assert evaluated.mean_rate_per_s == pytest.approx(12.0)


def test_requests_per_gpu_grow_with_the_cluster(trace: Path) -> None:
    on_one, on_three = (
        prepared(trace=str(trace), num_requests_per_gpu=2, num_gpus=num_gpus)[1] for num_gpus in (1, 3)
    )

    assert [len(on_one), len(on_three)] == [2, 6]


def test_rate_scale_compresses_time(trace: Path) -> None:
    _, evaluated = prepared(trace=str(trace), rate_scale=4.0)

    assert evaluated.arrival_s[:3].tolist() == [0, 0.25, 0.5]


def test_a_workload_at_hand_is_used_instead_of_a_trace() -> None:
    given = generate(POISSON, 5, rng())

    _, evaluated = prepared(workload=given, trace="absent.csv", num_requests=4)

    assert evaluated.output_tokens.tolist() == given.output_tokens[:4].tolist()


def test_the_same_seed_gives_the_same_requests() -> None:
    first = prepared(0.1, generator=POISSON, num_requests=50)[1]
    second = prepared(0.1, generator=POISSON, num_requests=50)[1]

    assert first.to_frame().equals(second.to_frame())


def test_an_unchanged_file_is_read_once_and_a_changed_one_again(trace: Path) -> None:
    first = load_trace(trace)
    again = load_trace(str(trace))
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n", encoding="utf-8")
    changed = load_trace(trace)

    assert again is first
    assert len(changed) == 1


def test_an_absent_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"absent.csv: no such file"):
        prepared(trace=str(tmp_path / "absent.csv"))


def test_the_embedded_trace_is_found_from_the_current_folder_upwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / EMBEDDED_TRACE).parent.mkdir()
    (tmp_path / EMBEDDED_TRACE).touch()
    monkeypatch.chdir(below)

    assert embedded_trace().samefile(tmp_path / EMBEDDED_TRACE)


def test_the_embedded_trace_is_found_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    _, evaluated = prepared(num_requests=10)

    assert evaluated.source.kind == "synthetic"


def test_a_request_rate_is_that_of_every_hour_and_a_rate_scale_is_not() -> None:
    (_, evened), (_, squeezed) = (
        prepared(trace=str(embedded_trace()), num_requests=20_000, **rate)
        for rate in ({"request_rate": 2.0}, {"rate_scale": 20.0})
    )

    counts, squeezed_counts = (
        np.histogram(one.arrival_s, 40, (0, one.arrival_s[-1]))[0] for one in (evened, squeezed)
    )
    assert counts.max() < 1.5 * counts.mean()
    assert squeezed_counts.max() > 5 * squeezed_counts.mean()
    assert not any("busiest hour" in notice for notice in evened.source.notices)
    assert any("busiest hour" in notice for notice in squeezed.source.notices)


def test_evening_out_keeps_the_bursts_of_the_shipped_trace() -> None:
    _, evened = prepared(trace=str(embedded_trace()), request_rate=2.0)
    _, given = prepared(trace=str(embedded_trace()))

    # As many requests in an instant as before.
    shared = [(np.diff(one.arrival_s) == 0).mean() for one in (given, evened)]
    assert shared[0] == shared[1]
    counts = np.histogram(evened.arrival_s, int(evened.arrival_s[-1]))[0]  # windows of a second
    assert counts.var() / counts.mean() > 2.5


@pytest.mark.parametrize("kind", ["poisson", "gamma"])
def test_generators_of_a_constant_rate_are_only_rescaled(kind: str) -> None:
    generator = {**POISSON, "kind": kind, "rate_per_s": 0.1, **({"cv": 2.0} if kind == "gamma" else {})}
    _, plain = prepared(generator=generator, num_requests=5000)
    _, paced = prepared(generator=generator, num_requests=5000, request_rate=4.0)

    assert paced.arrival_s * 4.0 / plain.mean_rate_per_s == pytest.approx(plain.arrival_s, rel=1e-9)


def test_a_number_of_requests_per_gpu_grows_with_the_cluster(trace: Path) -> None:
    _, of_trace = prepared(num_gpus=3, trace=str(trace), num_requests_per_gpu=2)
    _, made = prepared(num_gpus=3, generator=POISSON, num_requests_per_gpu=20)

    assert (len(of_trace), len(made)) == (6, 60)
