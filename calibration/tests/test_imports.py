"""What is measured must not lean on what is to be checked: no part of the simulation itself is imported."""

from __future__ import annotations

import ast
from pathlib import Path

import batchsim_calibration

PARTS = {"config", "errors", "files", "latency", "policies", "records", "streams", "workload"}
#: Of results, only how a run lies on disk.
STORE = "batchsim.results.store"


def test_of_batchsim_only_policies_tables_and_traces_are_imported() -> None:
    sources = sorted(Path(batchsim_calibration.__file__).parent.rglob("*.py"))

    parts = {
        name.split(".")[1]
        for source in sources
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom | ast.Import)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
        )
        if name.startswith("batchsim.") and name != STORE
    }

    assert {"policies", "records", "latency"} <= parts <= PARTS
