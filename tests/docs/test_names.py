"""What pages say that things are called, held against the things."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from batchsim.cli import main
from batchsim.latency.families import FAMILIES
from tests.docs.pages import ROOT

METRICS = (ROOT / "docs" / "metrics.md").read_text("utf-8")
LATENCY = (ROOT / "docs" / "latency.md").read_text("utf-8")


def names_of_tools() -> dict[str, list[str]]:
    """Our key, and what each tool calls it: the table of the page."""
    section = METRICS.split("## Names of other tools")[1]
    rows = re.findall(r"^\| `(\w+)` \|(.*\|.*\|.*\|.*)\|$", section, re.MULTILINE)
    return {ours: [cell.strip(" *`") for cell in theirs.split("|")] for ours, theirs in rows}


def test_what_vllm_calls_a_number_is_that_number_in_its_file(tmp_path: Path) -> None:
    run = ["run", "--policy", "vllm_v1", "--request-rate", "2", "--num-requests", "300", "--slo", "ttft:500"]
    saved, file = str(tmp_path / "run"), tmp_path / "theirs.json"
    CliRunner().invoke(main, [*run, "--set", "metrics.warmup=0", "-o", saved], catch_exceptions=False)
    CliRunner().invoke(main, ["export", saved, str(file), "--to", "vllm-bench"], catch_exceptions=False)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    theirs = json.loads(file.read_text("utf-8"))

    pairs = {
        ours: (summary[ours] * (1000 if names[0].endswith("_ms") else 1), theirs[names[0]])
        for ours, names in names_of_tools().items()
        if names[0] and ours != "goodput_requests_per_s"  # ours is of the steady window
    }

    assert len(pairs) == 8
    assert {ours: told for ours, (_, told) in pairs.items()} == pytest.approx(
        {ours: value for ours, (value, _) in pairs.items()}, rel=1e-6
    )
    assert "request_goodput" in theirs


def test_families_of_iterations_are_those_that_the_page_names() -> None:
    (said,) = re.findall(r"engines that batch at every iteration take(.*?)\.", LATENCY, re.DOTALL)

    assert set(re.findall(r"`(\w+)`", said)) == {
        name for name, kind in FAMILIES.items() if hasattr(kind, "decode_line")
    }
    assert all(hasattr(kind, "batch_time") for kind in FAMILIES.values())
