"""What a sweep left behind, as the figures read it, and means over seeds with their intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from batchsim.config import SweepConfig, validate
from batchsim.errors import ConfigError
from batchsim.files import reason
from batchsim.metrics.statistics import t_interval
from batchsim.results.store import load_run


@dataclass(frozen=True, slots=True, eq=False)
class SweepResults:
    """The finished runs of a sweep.

    Attributes
    ----------
    runs
        ``results.csv``: a row per run, what was varied (dotted keys) and its summary.
    """

    folder: Path
    sweep: SweepConfig
    runs: pd.DataFrame

    def facets(self, *used: str) -> list[str]:
        """Keys of the grid that take several values, but for policy, seed and those ``used`` elsewhere."""
        taken = {*used, "seed", "policy.preset"}
        return [key for key in self.sweep.grid if key not in taken and len(self.runs[key].unique()) > 1]

    @property
    def share(self) -> str:
        """How many of the planned runs there are, if not all."""
        planned = self.runs.get("num_runs_planned", pd.Series([len(self.runs)])).max()
        return f"{len(self.runs)} of {planned:.0f} runs" if len(self.runs) < planned else ""

    def tables(self, run_id: str) -> dict[str, pd.DataFrame]:
        """Records of one run; `ConfigError` if the sweep did not keep them."""
        return load_run(self.folder / "runs" / run_id)[2]


def read_sweeps(results_dir: str | Path, names: Sequence[str] | None = None) -> list[SweepResults]:
    """Read the sweeps in a folder of results, or those named; the folder of a single sweep will do as well.

    Raises
    ------
    ConfigError
        If there is none, one named is not there, or one cannot be read.
    """
    results_dir = Path(results_dir)
    folders = sorted(
        file.parent for file in [*results_dir.glob("sweep.json"), *results_dir.glob("*/sweep.json")]
    )
    found = {result.sweep.name: result for result in map(_read_sweep, folders)}
    if not found:
        raise ConfigError(f"{results_dir}: no results of a sweep in it; `batchsim sweep` makes them")
    for name in names or ():
        if name not in found:
            raise ConfigError(
                f"{results_dir}: no results of a sweep {name!r} in it; there are {', '.join(found)}"
            )
    return [found[name] for name in names or found]


def over_seeds(runs: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Average runs that differ in the seed alone.

    Returns
    -------
    pandas.DataFrame
        One row per combination of ``by``, in order of appearance: these columns, the mean of each metric and
        the half width of its 95 % interval (``<metric>_ci95``), ``num_runs``, ``num_saturated``. Of a single
        run only the mean end-to-end time has an interval, the run's own, from batch means.
    """
    rows = []
    for key, part in runs.groupby(list(by), sort=False, dropna=False):
        row = dict(zip(by, key, strict=True))
        for metric in metrics:
            row[metric], row[f"{metric}_ci95"] = t_interval(part[metric])
        if len(part) == 1 and "e2e_mean_s" in metrics:
            row["e2e_mean_s_ci95"] = part["e2e_mean_ci95_s"].iloc[0]
        rows.append({**row, "num_runs": len(part), "num_saturated": int(part["saturated"].sum())})
    return pd.DataFrame(rows)


def _read_sweep(folder: Path) -> SweepResults:
    try:
        tree = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["sweep"]
        sweep = validate(SweepConfig, tree, str(folder / "sweep.json"))
        runs = pd.read_csv(folder / "results.csv", dtype={"case": str})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{folder}: the results of the sweep cannot be read ({reason(error)})") from error
    return SweepResults(folder, sweep, runs.fillna({"case": ""}))
