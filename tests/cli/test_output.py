from pathlib import Path

import pytest
from click.testing import CliRunner

from batchsim.cli import main
from batchsim.cli.output import milliseconds
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
    ],
)
def test_milliseconds_have_four_digits_or_are_whole(value_ms: float, shown: str) -> None:
    assert milliseconds(value_ms) == shown


def test_differences_keep_their_sign() -> None:
    assert milliseconds(6681.3, "+") == "+6,681"


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
