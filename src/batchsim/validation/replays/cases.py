"""What a validation leaves: measured runs, each beside its prediction, and what the gates say of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from batchsim.study.result import SimulationResult
from batchsim.study.setup.hardware import AnyLatency
from batchsim.validation.comparison import Comparison
from batchsim.validation.replays.gates import Gate


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Repeats of a measured run, and what was predicted for them.

    Attributes
    ----------
    name
        That of the run directories, without the number of the repeat, or of the file.
    policy
        The preset that drove it, or under which it was simulated.
    measured
        The requests of each repeat.
    measured_on
        Model and machine, or the benchmark, in words.
    load
        Busy share of the engine, the largest of the repeats; NaN where results do not tell.
    predicted
        The predicted requests.
    num_extrapolated
        Simulated operations outside the range of the latency model; None where a run directory predicts.
    """

    name: str
    policy: str
    measured: Sequence[pd.DataFrame]
    measured_on: str
    load: float
    predicted: pd.DataFrame
    comparison: Comparison
    num_extrapolated: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """Measured runs beside their prediction.

    Attributes
    ----------
    prediction
        What predicted, in words: a latency model and its provenance, or a run directory.
    cases
        One per measured run, repeats together.
    gates
        Empty where a run directory predicts: that is a comparison, nothing else.
    runs
        One row per measured run directory or file: ``run``, ``case``, ``num_requests``; of a directory also
        ``num_operations``, ``num_preempted`` and ``load``; with a latency model also its ``bias`` (seconds it
        predicts for the recorded operations / seconds they took - 1) and ``num_outside``, those outside its
        range.
    notices
        What was inferred and assumed.
    """

    prediction: str
    cases: Sequence[Case]
    gates: Sequence[Gate]
    runs: pd.DataFrame
    notices: Sequence[str] = ()

    @property
    def errors(self) -> pd.DataFrame:
        """The errors of all cases (`Comparison.errors`), with a column ``case`` first."""
        parts = [case.comparison.errors.assign(case=case.name) for case in self.cases]
        table = pd.concat(parts, ignore_index=True)
        return table[["case", *table.columns.drop("case")]]

    @property
    def is_logic_sound(self) -> bool:
        """Whether no run failed the logic gate."""
        return all(gate.verdict != "fail" for gate in self.gates if gate.gate == "logic")

    def to_json(self) -> dict[str, Any]:
        """All that there is to say, JSON-ready."""
        return {
            "prediction": self.prediction,
            "notices": list(self.notices),
            "gates": [gate._asdict() for gate in self.gates],
            "runs": _plain(self.runs),
            "cases": [
                {
                    "name": case.name,
                    "policy": case.policy,
                    "measured_on": case.measured_on,
                    "num_repeats": len(case.measured),
                    "load": None if math.isnan(case.load) else case.load,
                    "num_extrapolated": case.num_extrapolated,
                    "num_requests": case.comparison.num_requests,
                    "only_measured": list(case.comparison.only_measured),
                    "only_predicted": list(case.comparison.only_predicted),
                    "errors": _plain(case.comparison.errors),
                }
                for case in self.cases
            ],
        }


def predicted_requests(result: SimulationResult) -> tuple[pd.DataFrame, int]:
    """Return the requests of a simulation, and how many operations lay outside the latency model's range."""
    operations = result.iterations if result.records.is_iteration_level else result.batches
    return result.requests, int(operations["is_extrapolated"].sum())


def model_in_words(latency: AnyLatency) -> str:
    """Name a latency model as `Validation.prediction` does."""
    return f"a latency model of {latency.info.name} ({latency.info.provenance})"


def _plain(table: pd.DataFrame) -> list[dict[Any, Any]]:
    return table.astype(object).where(table.notna(), None).to_dict("records")
