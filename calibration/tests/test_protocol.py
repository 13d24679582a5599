from __future__ import annotations

import csv
import gc
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from batchsim.errors import ConfigError, TraceError
from batchsim.latency.fitting.fit import fit
from batchsim.latency.tables.table import read_calibration
from batchsim_calibration.measuring.grid import Point, extent_of, points_of, slots_of
from batchsim_calibration.measuring.operations import EnginePoints, measure_batch_latency
from batchsim_calibration.measuring.outcome import REFERENCE_SAMPLES, drift_of, spreads_of, unsteady_in
from batchsim_calibration.measuring.protocol import MAX_ATTEMPTS, calibrate_latency_grid
from batchsim_calibration.measuring.rows import Row, Task, partial_of
from batchsim_calibration.serving.engine import Chunk, Engine
from batchsim_calibration.serving.models import LoadedModel, load_model, prepare_device
from batchsim_calibration.serving.timing import Timing

SMOKE = points_of("smoke", "cpu", extent_of("smoke", "cpu"))
SOME = SMOKE[::3]
FEW = [Point("decode", 1, context_tokens=8), Point("decode", 2, context_tokens=8), Point("prefill", 1, 8)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model so small that the protocol takes longer than the passes."""
    path = tmp_path_factory.mktemp("model") / "config.json"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    path.write_text(json.dumps({"model_type": "qwen2", **sizes, **heads}))
    prepare_device(torch.device("cpu"))
    return load_model(str(path), random_weights=True, dtype="fp32", attention="sdpa", device="cpu")


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel) -> Engine:
    slots = slots_of(SMOKE)
    return Engine(loaded, num_slots=slots.batch_size, max_tokens=slots.tokens)


class SmallEngine(Engine):
    """Runs out of memory, as a GPU would, where a pass has more than 64 tokens."""

    error = torch.cuda.OutOfMemoryError("injected")

    def step(self, chunks: Sequence[Chunk], decode_slots: Sequence[int]) -> dict[int, int]:
        if sum(len(chunk.token_ids) for chunk in chunks) > 64:
            raise self.error
        return super().step(chunks, decode_slots)


class IdlingEngine(Engine):
    """Leaves the core to others for most of each step."""

    def step(self, chunks: Sequence[Chunk], decode_slots: Sequence[int]) -> dict[int, int]:
        time.sleep(0.01)
        return super().step(chunks, decode_slots)


class TiringEngine(Engine):
    """Takes longer with every step."""

    num_steps = 0

    def step(self, chunks: Sequence[Chunk], decode_slots: Sequence[int]) -> dict[int, int]:
        self.num_steps += 1
        busy_until_s = time.process_time() + 0.0005 * self.num_steps
        while time.process_time() < busy_until_s:
            pass
        return super().step(chunks, decode_slots)


class InterruptAfter:
    """Stops a run, as Ctrl-C does, once so many trials are done."""

    def __init__(self, num_trials: int) -> None:
        self.num_left = num_trials

    def __call__(self, what: str, done: float, total: float) -> None:
        self.num_left -= what == "measuring"
        if self.num_left == 0:
            raise KeyboardInterrupt


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def trials_of(rows: list[dict[str, str]], status: str = "ok") -> Counter[tuple[str, ...]]:
    names = ("kind", "batch_size", "prompt_tokens", "output_tokens", "context_tokens", "purpose", "trial")
    return Counter(tuple(row[name] for name in names) for row in rows if row["status"] == status)


@pytest.fixture(scope="module")
def smoke_table(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smoke") / "smoke.csv"
    calibrate_latency_grid(
        EnginePoints(engine),
        SMOKE,
        path,
        num_trials=3,
        max_extra_trials=1,
        describe=lambda _: {"kind": "measured"},
    )
    return path


def test_a_table_holds_every_trial_of_every_point(smoke_table: Path) -> None:
    trials = trials_of([row for row in rows_of(smoke_table) if row["purpose"] == "trial"])

    assert len(trials) == 3 * len(SMOKE)
    assert set(trials.values()) == {1}
    assert not partial_of(smoke_table).exists()


def test_the_core_reads_a_table_as_measured(smoke_table: Path) -> None:
    calibration = read_calibration(smoke_table)

    assert calibration.provenance == "measured"
    assert len(calibration.points) == len(SMOKE)
    assert calibration.points["num_trials"].min() >= 3


@pytest.mark.parametrize("family", ["phase", "table", "linear", "iteration_table"])
def test_a_table_can_be_fitted(smoke_table: Path, family: str) -> None:
    report = fit(read_calibration(smoke_table), family)  # type: ignore[arg-type]

    assert report.family == family


def test_each_trial_goes_through_the_points_in_an_order_of_its_own(smoke_table: Path) -> None:
    rows = [row for row in rows_of(smoke_table) if row["purpose"] == "trial" and row["status"] == "ok"]
    names = ("kind", "batch_size", "prompt_tokens", "output_tokens", "context_tokens")

    orders = [[tuple(row[name] for name in names) for row in rows if row["trial"] == t] for t in "123"]

    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert orders[0] != orders[1] != orders[2]
    assert [row["trial"] for row in rows] == sorted(row["trial"] for row in rows)


@pytest.mark.parametrize("num_done", [1, 20, 45])
def test_an_interrupted_run_goes_on_and_measures_nothing_twice(
    engine: Engine, tmp_path: Path, num_done: int
) -> None:
    path = tmp_path / "table.csv"
    with pytest.raises(KeyboardInterrupt):
        calibrate_latency_grid(
            EnginePoints(engine),
            SOME,
            path,
            num_trials=3,
            max_extra_trials=1,
            on_progress=InterruptAfter(num_done),
        )
    before = partial_of(path).read_text()
    assert not path.exists()

    outcome = calibrate_latency_grid(EnginePoints(engine), SOME, path, num_trials=3, max_extra_trials=1)

    trials = trials_of(rows_of(path))
    assert path.read_text().startswith(before)
    assert outcome.num_resumed_rows == before.count("\n") - 1 >= num_done
    assert set(trials.values()) == {1}
    assert sum(trial[5] == "trial" for trial in trials) == 3 * len(SOME)


def test_garbage_is_collected_again_after_an_interrupt(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        calibrate_latency_grid(
            EnginePoints(engine), FEW, tmp_path / "table.csv", on_progress=InterruptAfter(1)
        )

    assert gc.isenabled()


def test_a_line_cut_short_by_a_crash_is_measured_again(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with pytest.raises(KeyboardInterrupt):
        calibrate_latency_grid(EnginePoints(engine), FEW, path, num_trials=2, on_progress=InterruptAfter(6))
    whole = partial_of(path).read_text()
    partial_of(path).write_text(whole[:-20])

    calibrate_latency_grid(EnginePoints(engine), FEW, path, num_trials=2)

    trials = trials_of([row for row in rows_of(path) if row["purpose"] == "trial"])
    assert len(trials) == 2 * len(FEW)
    assert set(trials.values()) == {1}
    assert all(len(row) == len(rows_of(path)[0]) and None not in row.values() for row in rows_of(path))


def test_a_broken_line_is_named(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with pytest.raises(KeyboardInterrupt):
        calibrate_latency_grid(EnginePoints(engine), FEW, path, on_progress=InterruptAfter(2))
    partial_of(path).write_text(partial_of(path).read_text().replace("decode,2", "decode,two", 1))

    with pytest.raises(TraceError, match=r"table\.csv\.partial, line 2: cannot be read as a trial"):
        calibrate_latency_grid(EnginePoints(engine), FEW, path)


def test_rows_of_another_configuration_are_not_mixed_in(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with pytest.raises(KeyboardInterrupt):
        calibrate_latency_grid(
            EnginePoints(engine), FEW, path, configuration={"dtype": "fp32"}, on_progress=InterruptAfter(3)
        )

    with pytest.raises(ConfigError, match="begun with another configuration"):
        calibrate_latency_grid(EnginePoints(engine), FEW, path, configuration={"dtype": "bf16"})


def test_a_finished_table_is_not_replaced_unasked(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    calibrate_latency_grid(EnginePoints(engine), FEW, path, num_trials=1)
    before = path.read_text()

    with pytest.raises(ConfigError, match="--overwrite"):
        calibrate_latency_grid(EnginePoints(engine), FEW, path, num_trials=1)

    assert path.read_text() == before


def test_points_too_large_are_marked_and_larger_ones_left_out(loaded: LoadedModel, tmp_path: Path) -> None:
    sizes, lengths = (1, 2, 4, 8), (16, 32)
    points = [Point("prefill", b, n) for b in sizes for n in lengths]
    points += [Point("decode", b, context_tokens=32) for b in sizes]
    path = tmp_path / "table.csv"

    outcome = calibrate_latency_grid(
        EnginePoints(SmallEngine(loaded, num_slots=8, max_tokens=33)), points, path, num_trials=2
    )

    rows = rows_of(path)
    too_large = {
        (int(row["batch_size"]), int(row["prompt_tokens"])) for row in rows if row["status"] == "oom"
    }
    assert too_large == {(4, 32), (8, 16)}
    assert outcome.num_left_out == 1  # eight prompts of 32
    assert [row["wall_s"] for row in rows if row["status"] == "oom"] == ["", ""]
    assert len(read_calibration(path).of_kind("prefill")) == 5
    assert len(read_calibration(path).of_kind("decode")) == 4


def test_a_cpu_runs_out_of_memory_too(loaded: LoadedModel, tmp_path: Path) -> None:
    engine = SmallEngine(loaded, num_slots=2, max_tokens=65)
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    engine.error = raised.value  # type: ignore[assignment]  # whatever words this system has for it

    outcome = calibrate_latency_grid(
        EnginePoints(engine), [*FEW, Point("prefill", 2, 64)], tmp_path / "table.csv"
    )

    assert outcome.rows_by_status["oom"] == 1


def test_another_fault_of_a_pass_ends_the_run(loaded: LoadedModel, tmp_path: Path) -> None:
    engine = SmallEngine(loaded, num_slots=2, max_tokens=65)
    engine.error = RuntimeError("an illegal memory access was encountered")  # type: ignore[assignment]

    with pytest.raises(RuntimeError, match="illegal memory access"):
        calibrate_latency_grid(EnginePoints(engine), [Point("prefill", 2, 64)], tmp_path / "table.csv")


def test_a_resumed_run_does_not_try_what_was_too_large(loaded: LoadedModel, tmp_path: Path) -> None:
    points = [Point("prefill", b, 16) for b in (1, 2, 8)] + FEW
    engine = SmallEngine(loaded, num_slots=8, max_tokens=33)
    path = tmp_path / "table.csv"
    with pytest.raises(KeyboardInterrupt):
        calibrate_latency_grid(
            EnginePoints(engine), points, path, num_trials=2, on_progress=InterruptAfter(2)
        )

    calibrate_latency_grid(EnginePoints(engine), points, path, num_trials=2)

    assert sum(row["status"] == "oom" for row in rows_of(path)) == 1


def test_where_no_attempt_is_clean_the_cleanest_counts(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"

    outcome = calibrate_latency_grid(
        EnginePoints(IdlingEngine(loaded, num_slots=2, max_tokens=9)), FEW, path, num_trials=1
    )

    rows = [row for row in rows_of(path) if row["purpose"] == "trial"]
    assert outcome.num_kept_disturbed == outcome.rows_by_status["ok"]
    for place in range(0, len(rows), MAX_ATTEMPTS):
        attempts = rows[place : place + MAX_ATTEMPTS]
        kept = [row for row in attempts if row["status"] == "ok"]
        assert [row["attempt"] for row in attempts] == ["1", "2", "3", "4"]
        assert [row["cpu_share"] for row in kept] == [max(row["cpu_share"] for row in attempts)]


def test_points_that_spread_widely_get_extra_trials_up_to_a_limit(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    engine = TiringEngine(loaded, num_slots=2, max_tokens=9)
    path = tmp_path / "table.csv"

    outcome = calibrate_latency_grid(EnginePoints(engine), FEW[:1], path, num_trials=4, max_extra_trials=3)

    extra = [row for row in rows_of(path) if row["purpose"] == "extra" and row["status"] == "ok"]
    assert [row["trial"] for row in extra] == ["1", "2", "3"]
    assert outcome.num_unsteady == 1


def test_when_the_time_is_up_the_first_trial_still_covers_all_points(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"

    outcome = calibrate_latency_grid(EnginePoints(engine), FEW, path, num_trials=5, budget_s=1e-9)

    rows = rows_of(path)
    assert {row["trial"] for row in rows if row["purpose"] == "trial"} == {"1"}
    assert not [row for row in rows if row["purpose"] == "extra"]
    assert outcome.num_single == outcome.num_points == len(FEW)
    assert outcome.num_not_taken == 4 * (len(FEW) + REFERENCE_SAMPLES)
    assert math.isnan(outcome.median_spread)
    assert any("the time was up" in sentence for sentence in outcome.warnings())


def test_where_time_runs_short_disturbed_samples_are_not_taken_again(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"

    calibrate_latency_grid(
        EnginePoints(IdlingEngine(loaded, num_slots=2, max_tokens=9)), FEW, path, budget_s=1e-9
    )

    assert {row["attempt"] for row in rows_of(path)} == {"1"}


def test_with_time_enough_nothing_is_left_out(engine: Engine, tmp_path: Path) -> None:
    outcome = calibrate_latency_grid(
        EnginePoints(engine), FEW, tmp_path / "table.csv", num_trials=2, budget_s=1e9
    )

    assert (outcome.num_not_taken, outcome.num_single) == (0, 0)


def test_time_to_come_is_told_after_the_warm_up(engine: Engine, tmp_path: Path) -> None:
    told: list[float] = []

    calibrate_latency_grid(
        EnginePoints(engine), FEW, tmp_path / "table.csv", num_trials=1, on_estimate=told.append
    )

    assert len(told) == 1
    assert told[0] > 0


def measured(point: Point, purpose: str, trial: int, wall_s: float, status: str = "ok") -> Row:
    return Row(Task(point, purpose, trial), Timing(wall_s, wall_s, math.nan), status)  # type: ignore[arg-type]


def test_drift_is_how_far_a_visit_lies_from_the_median_visit() -> None:
    times_s = [1.0, 1.0, 9.0, 1.0, 2.0, 1.0, 1.2, 1.25, 5.0]  # visits of three, medians 1, 1 and 1.25

    rows = [measured(FEW[0], "reference", number, one) for number, one in enumerate(times_s, start=1)]

    assert drift_of(rows) == 0.25
    assert math.isnan(drift_of(rows[:3]))


def test_a_point_is_steady_once_it_has_trials_enough_for_its_spread() -> None:
    spread = 0.12  # times 0.94, 1 and 1.06 in turn: quartiles 0.06 from the median

    def unsteady_after(num_trials: int) -> list[Point]:
        times_s = [1 + spread / 2 * (trial % 3 - 1) for trial in range(num_trials)]
        return unsteady_in([measured(FEW[0], "trial", t, time_s) for t, time_s in enumerate(times_s)])

    assert unsteady_after(15) == [FEW[0]]  # 0.12 / sqrt(15) = 0.031
    assert unsteady_after(18) == []  # 0.12 / sqrt(18) = 0.028


def test_spread_is_the_interquartile_range_over_the_median() -> None:
    rows = [measured(FEW[0], "trial", trial, float(trial)) for trial in (1, 2, 3, 4, 5)]
    rows += [measured(FEW[0], "trial", 6, 99.0, "disturbed"), measured(FEW[0], "reference", 1, 99.0)]

    assert spreads_of(rows) == {FEW[0]: 2 / 3}


def test_a_whole_batch_can_be_timed_alone(engine: Engine) -> None:
    timings = measure_batch_latency(engine, 2, prompt_tokens=8, output_tokens=3, num_trials=4)

    assert len(timings) == 4
    assert all(timing.wall_s > 0 and math.isnan(timing.cuda_s) for timing in timings)
    assert [length for length in engine.lengths if length] == [10, 10]  # the third token is not stored


def test_a_batch_that_an_engine_cannot_hold_is_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="needs 64 slots of 10 tokens; the engine has 5 of 129"):
        measure_batch_latency(engine, 64, prompt_tokens=8, output_tokens=3)


def test_no_trials_are_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        calibrate_latency_grid(EnginePoints(engine), FEW, tmp_path / "table.csv", num_trials=0)
