"""A validation as a page of Markdown, such as ``docs/fidelity-vllm.md``: logic, model, end to end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from batchsim.validation.comparison import THROUGHPUT
from batchsim.validation.replays.cases import Case, Validation

#: Error of a mean that passes however little repeats vary.
MEAN_BAR = 0.08

_WITHIN = "within spread"


def page_of(validation: Validation) -> str:
    """Return the page: what each gate says, and the errors of means beside the spread of repeats."""
    parts = [
        "# A measured engine beside its simulation",
        f"Measured: {', '.join(dict.fromkeys(case.measured_on for case in validation.cases))}. Predicted by "
        f"{validation.prediction}. How to read it: [validation.md](validation.md).",
        _in_short(validation),
        "## Logic: are the iterations the same?",
        "The recorded durations are handed to the simulator in order; its scheduler decides anew.",
        *_gates(validation, "logic"),
        "## Model: how long does an iteration take?",
        "Errors at points that the fit was not shown.",
        *_gates(validation, "model"),
        "The model beside what was recorded, in total: errors of the form, and of a machine that changes its "
        "speed.",
        _runs(validation.runs),
        "## End to end",
        f"Means over all requests and repeats. An error passes up to {MEAN_BAR:.0%}; one that is larger, but "
        "no larger than what the repeats themselves vary by (half their range, per mean), is within their "
        "spread: such a machine cannot tell.",
        *(part for case in validation.cases for part in _case(case)),
    ]
    return "\n\n".join(parts) + "\n"


def judge(error: float, spread: float) -> str:
    """Judge the error of a mean by the bar, and by the repeats' own spread; one run alone has none."""
    if abs(error) <= MEAN_BAR:
        return "pass"
    return _WITHIN if abs(error) <= spread else "fail"


def _in_short(validation: Validation) -> str:
    logic = [gate.verdict == "pass" for gate in validation.gates if gate.gate == "logic"]
    model = [gate.verdict for gate in validation.gates if gate.gate == "model"]
    verdicts = [
        judge(row["error"], row["spread"])
        for case in validation.cases
        for row in _means(case).to_dict("records")
    ]
    told = [
        f"logic passes in {sum(logic)} of {len(logic)} runs",
        f"the model for {model.count('pass')} of {len(model)} kinds of points ({model.count('inconclusive')} "
        "inconclusive)",
        f"{verdicts.count('pass')} of {len(verdicts)} means end to end, {verdicts.count(_WITHIN)} more "
        "within the spread of repeats",
    ]
    return f"**In short**: {'; '.join(told)}."


def _gates(validation: Validation, name: str) -> Iterator[str]:
    gates = [gate for gate in validation.gates if gate.gate == name]
    yield _table(("of", "verdict", "finding"), ((one.subject, one.verdict, one.finding) for one in gates))


def _runs(runs: pd.DataFrame) -> str:
    names = {
        "run": "run",
        "num_requests": "requests",
        "num_operations": "iterations",
        "num_preempted": "preemptions",
        "load": "busy",
        "bias": "bias of total time",
    }
    shown = runs[[name for name in names if name in runs]]
    formats = {"load": ".0%", "bias": "+.1%"}
    rows = (
        [format(value, formats.get(str(name), "")) for name, value in row.items()]
        for row in shown.to_dict("records")
    )
    return _table([names[str(name)] for name in shown], rows)


def _case(case: Case) -> Iterator[str]:
    repeats = len(case.measured)
    yield f"### {case.name}: {repeats} repeat{'s' if repeats > 1 else ''}, busy {case.load:.0%}"
    rows = []
    for row in _means(case).to_dict("records"):
        is_rate = row["metric"] == THROUGHPUT
        name = f"throughput ({row['statistic']}/s)" if is_rate else f"{row['metric'].upper()} mean (ms)"
        values = [f"{row[side] * (1 if is_rate else 1000):,.4g}" for side in ("measured", "predicted")]
        verdict = judge(row["error"], row["spread"])
        rows.append((name, *values, f"{row['error']:+.1%}", _share(row["spread"]), verdict))
    yield _table(("", "measured", "predicted", "error", "repeats vary by", "verdict"), rows)
    errors = case.comparison.errors
    tails = errors[errors["statistic"].isin(["p50", "p90", "p99"])]
    told = (
        f"{row['metric'].upper()} {row['statistic'].upper()} {row['error']:+.1%} ({_share(row['spread'])})"
        for row in tails.to_dict("records")
    )
    yield f"Errors of percentiles, and by how much repeats vary: {', '.join(told)}."


def _means(case: Case) -> pd.DataFrame:
    errors = case.comparison.errors
    return errors[errors["statistic"].eq("mean") | errors["metric"].eq(THROUGHPUT)]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _share(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.1%}"
