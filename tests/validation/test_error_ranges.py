import math
from pathlib import Path

import pandas as pd
import pytest

from batchsim.files import read_json
from batchsim.validation.error_ranges import (
    Range,
    error_range,
    held_out_ranges,
    share_within,
    told_ranges,
    with_e2e,
    write_ranges,
)

#: Of one model 90 errors at -0.1, of another ten from 0.01 to 0.1.
ERRORS = pd.Series([-0.1] * 90 + [number / 100 for number in range(1, 11)])
MODELS = pd.Series(["often"] * 90 + ["rare"] * 10)


def points(metric: str, errors: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {"metric": metric, "measured_s": 2.0, "predicted_s": [2.0 * (1 + error) for error in errors]}
    )


def test_models_count_alike_however_many_points_they_have() -> None:
    assert error_range(ERRORS, MODELS) == Range(-0.1, 0.08)
    assert error_range(ERRORS, pd.Series("all", MODELS.index)) == Range(-0.1, -0.1)


def test_a_model_is_held_against_the_range_of_the_others() -> None:
    without = held_out_ranges(ERRORS, MODELS)

    assert without == {"often": Range(0.01, 0.09), "rare": Range(-0.1, -0.1)}
    assert share_within(ERRORS, [without[name] for name in MODELS]) == 0
    assert share_within(ERRORS, Range(-0.1, 0.05)) == 0.95


def test_told_ranges_are_by_metric_with_their_coverage() -> None:
    table = pd.concat([points("TPOT", [-0.5, 0.5, -0.4, 0.4])], ignore_index=True)

    told = told_ranges(table, pd.Series(["a", "a", "b", "b"]))

    assert told == {
        "num_points": 4,
        "num_groups": 2,
        "errors": {"tpot": {"low": -0.5, "high": 0.5, "held_out_coverage": 0.5}},
    }


def test_one_model_does_not_tell_of_others() -> None:
    told = told_ranges(points("batch", [0.1, 0.3]), pd.Series(["a", "a"]))

    assert told["errors"]["batch"]["held_out_coverage"] is None
    assert all(math.isnan(end) for end in error_range(ERRORS[:0], MODELS[:0]))


def test_requests_of_closed_loops_are_their_tokens_together() -> None:
    loops = pd.DataFrame(
        {
            "metric": ["TTFT", "TPOT"] * 2,
            "output_tokens": [11, 11, 2, 2],
            "measured_s": [1.0, 0.1, 3.0, 0.5],
            "predicted_s": [2.0, 0.2, 3.0, 1.0],
        }
    )

    whole = with_e2e(loops).query("metric == 'E2E'")

    assert whole["measured_s"].tolist() == pytest.approx([2.0, 3.5])
    assert whole["predicted_s"].tolist() == pytest.approx([4.0, 4.0])


def test_kinds_stand_beside_each_other_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "errors.json"

    write_ranges(path, "roofline", "a command", {"h100": {"num_points": 1}})
    write_ranges(path, "passes", "another", {})
    write_ranges(path, "roofline", "a command", {"h200": {"num_points": 2}})

    told = read_json(path)
    assert list(told) == ["passes", "roofline"]
    assert (told["roofline"]["made_by"], told["roofline"]["ranges"]) == (
        "a command", {"h200": {"num_points": 2}},
    )  # fmt: skip
