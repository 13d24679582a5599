import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from batchsim.cli import main
from batchsim.cli.numbers import duration, milliseconds
from batchsim.cli.runs import difference_interval
from tests.cli.test_commands import TRACE


@pytest.mark.parametrize(
    ("value_ms", "shown"),
    [
        (45_010.4, "45,010"),
        (1234.5, "1,234"),
        (999.96, "1,000"),
        (12.3456, "12.35"),
        (9.99996, "10.00"),
        (0.123456, "0.1235"),
        (0.0, "0.0"),
        (-106.06, "-106.1"),
        (-1.777e-8, "0.0"),  # rounding of times in whole nanoseconds
    ],
)
def test_milliseconds_have_four_digits_or_are_whole(value_ms: float, shown: str) -> None:
    assert milliseconds(value_ms) == shown


def test_differences_keep_their_sign() -> None:
    assert milliseconds(6681.3, "+") == "+6,681"


@pytest.mark.parametrize(
    ("mean_s", "half_width_s", "is_saturated", "told"),
    [
        (-0.085, 1.5, False, "-1,585 to +1,415"),
        (0.94, 48.9, False, "wider than either mean: no difference can be told"),
        (0.94, math.nan, False, "none: too few independent stretches"),
        (0.94, math.nan, True, "none: saturated"),
        (0.0, 0.0, False, "+0.0 to +0.0"),
    ],
)
def test_differences_have_both_ends_of_their_interval_or_the_reason_why_not(
    mean_s: float, half_width_s: float, is_saturated: bool, told: str
) -> None:
    summaries = [{"saturated": False, "e2e_mean_s": 2.0}, {"saturated": is_saturated, "e2e_mean_s": 1.9}]

    assert difference_interval(mean_s, half_width_s, summaries) == told


def test_no_difference_is_printed_where_no_request_finished_under_both(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(TRACE, encoding="utf-8")
    nothing_fits = ["--set", "engine.num_kv_blocks=1", "--policy", "vllm_v0,vllm_v1"]

    result = CliRunner().invoke(main, ["compare", "--trace", str(tmp_path / "trace.csv"), *nothing_fits])

    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.stdout.splitlines() if "vllm_v1 " in line and "none" in line]
    assert [cell.strip() for cell in row.split("│")[1:-1]][1::2] == ["-", "0"]


@pytest.mark.parametrize(
    ("command", "num_policies"), [(["run"], 1), (["compare", "--policy", "static_fifo,dynamic_no_bins"], 2)]
)
def test_statistics_with_a_limit_are_printed_with_their_verdict(
    command: list[str], num_policies: int, tmp_path: Path
) -> None:
    (tmp_path / "trace.csv").write_text(TRACE, encoding="utf-8")
    limits = ["--slo", "ttft_p97.5:0.001", "--slo", "e2e_mean:1e9"]

    result = CliRunner().invoke(main, [*command, "--trace", str(tmp_path / "trace.csv"), *limits])

    rows = {line.split("│")[1].strip(): line for line in result.stdout.splitlines() if "│" in line}
    assert rows["TTFT P97.5"].count("(missed)") == rows["E2E mean"].count("(met)") == num_policies
    assert "(m" not in rows["TTFT mean"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "?"), (0.0, "0.1 s"), (4.26, "4.3 s"), (41.0, "41 s"), (150.0, "2 min"), (7500.0, "2 h 5 min")],
)
def test_durations_are_shown_as_people_say_them(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown
