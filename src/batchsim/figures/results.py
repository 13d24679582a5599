"""Results of sweeps as figures read them: a row per run, averaged over seeds, with intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.config import SloConfig, SweepConfig, flat, validate
from batchsim.config.figure import OUTPUT_TOKENS, THROUGHPUT
from batchsim.errors import BatchsimError, ConfigError
from batchsim.files import reason
from batchsim.metrics.statistics import bounds, t_interval
from batchsim.results.dataset import DATASET, Dataset

#: What every figure says of its runs, or finds them by.
_CONDITIONS = (
    "run_id", "case", "policy", "predictor", "seed", "num_gpus", "num_requests", "workload", "workload_kind",
    "latency_model", "latency_provenance",
)  # fmt: skip

#: Rates per GPU that figures make, and the rate that each is made of.
_PER_GPU = {
    THROUGHPUT: "request_throughput_per_s",
    OUTPUT_TOKENS: "output_throughput_tokens_per_s",
}

#: Share of a run's batches or iterations outside the range of the latency model that need not be told.
_FEW_OUTSIDE = 0.01


@contextmanager
def blamed_on(file: Path, what: str) -> Iterator[None]:
    """Say that a file cannot be drawn, or whatever was to be done with it, where anything goes wrong.

    What is wrong with a column shows itself anywhere on its way to the page.

    Raises
    ------
    ConfigError
        In place of everything that is no sentence of ours yet.
    """
    try:
        yield
    except BatchsimError:
        raise
    except Exception as error:
        raise ConfigError(f"{file}: cannot be {what} ({type(error).__name__}: {reason(error)})") from error


@dataclass(frozen=True, slots=True, eq=False)
class SweepResults:
    """The finished runs of a sweep.

    Attributes
    ----------
    runs
        A row per run, what was varied (dotted keys) and its summary.
    dataset
        Where they come from, with what is kept of each run besides; None for a table that was made up.
    """

    folder: Path
    sweep: SweepConfig
    runs: pd.DataFrame
    dataset: Dataset | None = None

    @property
    def file(self) -> Path:
        """Where the runs come from."""
        return self.folder / DATASET

    @property
    def described(self) -> Mapping[str, Any]:
        """What the dataset says of itself."""
        return {} if self.dataset is None else self.dataset.described

    @property
    def limits(self) -> SloConfig:
        """Limits that all runs have."""
        base = flat(self.sweep.base)
        given = {key.removeprefix("slo."): base[key] for key in base if key.startswith("slo.")}
        return validate(SloConfig, given, str(self.file))

    @property
    def share(self) -> str:
        """How many of the planned runs there are, if not all."""
        planned = self.runs.get("num_runs_planned", pd.Series([len(self.runs)])).max()
        return f"{len(self.runs)} of {planned:.0f} runs" if len(self.runs) < planned else ""

    def facets(self, *used: str) -> list[str]:
        """Settings that still vary among runs with the same values of those ``used``, but for the seed.

        `ConfigError` if one of those ``used`` is not in the table.
        """
        self.need(*used)
        return facets_of(self.sweep, self.runs, used)

    def need(self, *settings: str) -> None:
        """Raise a `ConfigError` if one of these settings is not in the table."""
        for key in settings:
            if key not in self.runs:
                figure = self.sweep.figure
                name = figure if isinstance(figure, str) or figure is None else figure.kind
                raise ConfigError(f"{self.file}: figure {name} needs {key!r}, which these runs lack")

    def having(self, metrics: Sequence[str]) -> list[str]:
        """Those of the metrics that the runs have; a warning names each of the others.

        Raises
        ------
        ConfigError
            If the runs have none of them.
        """
        measured = with_throughput_per_gpu(self.runs)
        there = [name for name in metrics if name in measured and measured[name].notna().any()]
        return self.there_are(metrics, there)

    def there_are(self, names: Sequence[str], there: list[str]) -> list[str]:
        """Return what is there of some names, and warn of each that is not; `ConfigError` if none is."""
        if not there:
            raise ConfigError(f"{self.file}: no run has {' or '.join(names)}; there is nothing to draw")
        for name in names:
            if name not in there:
                warnings.warn(f"{self.file}: no run has {name}; its panel is left out", stacklevel=3)
        return there

    def kept(self, what: str, run_id: str) -> pd.DataFrame:
        """What is kept of a run's tables (`particulars.KEPT`); `ConfigError` if the sweep kept none."""
        table = None if self.dataset is None else self.dataset.kept(what, run_id)
        if table is None:
            raise ConfigError(
                f"{self.file}: keeps no {what} of the runs, from which the figure is drawn; run the sweep "
                'with save = "tables"'
            )
        return table

    @property
    def origins(self) -> Mapping[str, Mapping[str, Any]]:
        """Where each run comes from, by run id: parts of its manifest."""
        return {} if self.dataset is None else self.dataset.origins()

    def quantiles(self, metric: str) -> Mapping[str, NDArray[np.float32]]:
        """Quantiles of a time of each run that has it, by run id, at `sketches.PROBABILITIES`."""
        return {} if self.dataset is None else self.dataset.quantiles(metric)


def facets_of(sweep: SweepConfig, runs: pd.DataFrame, used: Sequence[str]) -> list[str]:
    """Settings that still vary among runs with the same values of those ``used``, but for the seed."""
    facets: list[str] = []
    for key in dict.fromkeys([*sweep.axes, "case", *_settings(sweep)]):
        if key == "seed" or key in used or key not in runs:
            continue
        if runs.groupby([*used, *facets], dropna=False)[key].nunique(dropna=False).max() > 1:
            facets.append(key)
    return facets


def sweep_folders(results_dir: str | Path, names: Sequence[str] | None = None) -> list[Path]:
    """Find the sweeps in a folder of results, or those named; the folder of a single sweep will do as well.

    Raises
    ------
    ConfigError
        If there is none, or one named is not there.
    """
    results_dir = Path(results_dir)
    # The first is there as soon as a sweep has begun; pictures take the second alone.
    patterns = [f"{below}{name}" for name in ("sweep.json", DATASET) for below in ("", "*/")]
    folders = sorted({file.parent for pattern in patterns for file in results_dir.glob(pattern)})
    found = {folder.resolve().name: folder for folder in folders}
    if not found:
        raise ConfigError(f"{results_dir}: no results of a sweep in it; `batchsim sweep` makes them")
    for name in names or ():
        if name not in found:
            raise ConfigError(
                f"{results_dir}: no results of a sweep {name!r} in it; there are {', '.join(found)}"
            )
    return [found[name] for name in names or found]


def read_sweep(folder: Path) -> SweepResults:
    """Read the results of one sweep from its dataset; `ConfigError` if they cannot be used."""
    file = folder / DATASET
    if not file.exists():
        raise ConfigError(f"{file}: is not there; the sweep has not ended yet, and the same command ends it")
    dataset = Dataset(file)
    sweep = validate(SweepConfig, dataset.described.get("sweep", {}), str(file))
    runs = dataset.runs.drop_columns(["sweep"]).to_pandas()
    missing = [name for name in _CONDITIONS if name not in runs]
    if missing or runs.empty:
        what = f"has no column {missing[0]}" if missing else "has no runs"
        raise ConfigError(
            f"{file}: {what}; the sweep, run again, writes it anew from the runs that are there"
        )
    mixed = [str(name) for name in runs if runs[name].dtype == object]
    runs[mixed] = runs[mixed].fillna(np.nan)  # nothing is the same everywhere
    return SweepResults(folder, sweep, runs.fillna({"case": ""}), dataset)


def _settings(sweep: SweepConfig) -> dict[str, list[Any]]:
    """All that a sweep varies, with the values that it lists; None for a case that leaves one open."""
    cases = [flat(case) for case in sweep.cases]
    of_cases = {key: [case.get(key) for case in cases] for case in cases for key in case if key != "label"}
    return {**of_cases, **sweep.axes}


def over_seeds(runs: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Average runs that differ in the seed alone: replications, or seeds that the sweep lists.

    Returns
    -------
    pandas.DataFrame
        One row per combination of ``by``, in order of appearance: these columns, the mean of each metric and
        the half width of its 95 % interval (``<metric>_ci95``), ``num_runs``, ``num_saturated`` and
        ``num_transient``. Seeds that change nothing give no interval. Of a single run only the mean
        end-to-end time can have an interval, the run's own: it reaches further up than down
        (``e2e_mean_s_ci95_below``).
    """
    rows = []
    for key, part in runs.groupby(list(by), sort=False, dropna=False):
        row = dict(zip(by, key, strict=True))
        for metric in metrics:
            interval, first = t_interval(part[metric]), part[metric].iloc[0]
            row[metric], row[f"{metric}_ci95"] = interval.mean, interval.half_width
            if (part[metric] == first).all():  # the seed changes nothing: there is no spread to tell of
                row[metric], row[f"{metric}_ci95"] = first, math.nan
        if len(part) == 1 and "e2e_mean_s" in metrics:
            (run,) = part.to_dict("records")
            mean_s = run["e2e_mean_s"]
            row["e2e_mean_s_ci95"] = run.get("e2e_mean_ci95_high_s", math.nan) - mean_s
            row["e2e_mean_s_ci95_below"] = mean_s - run.get("e2e_mean_ci95_low_s", math.nan)
        counts = {f"num_{state}": int((states(part) == state).sum()) for state in ("saturated", "transient")}
        rows.append({**row, "num_runs": len(part), **counts})
    return pd.DataFrame(rows)


def reach(table: pd.DataFrame, metric: str) -> tuple[pd.Series[float], pd.Series[float]]:
    """How far a metric's intervals reach below the means and above, no further than it can be (`bounds`)."""
    least, most = bounds(metric)
    above = table[f"{metric}_ci95"]
    below = table.get(f"{metric}_ci95_below", above).fillna(above)
    return below.clip(upper=table[metric] - least), above.clip(upper=most - table[metric])


def outside_range(runs: pd.DataFrame) -> str:
    """Say which share of the batches or iterations leave the latency model's range, if it is over 1 %."""
    shares = []
    kinds = (
        ("batches", "num_extrapolated_batches", "num_batches"),
        ("iterations", "num_extrapolated_iterations", "iterations_total"),
    )
    for what, outside, total in kinds:
        if outside in runs and total in runs and runs[total].sum() > 0:
            share = runs[outside].sum() / runs[total].sum()
            most = (runs[outside] / runs[total]).max()
            if most > _FEW_OUTSIDE:
                shares.append(f"{share:.0%} of all {what} (up to {most:.0%} of a run)")
    return f"Outside the calibrated range of the latency model: {' and '.join(shares)}" if shares else ""


def states(runs: pd.DataFrame) -> pd.Series[str]:
    """Tell of each run whether it was ``stable``, ``saturated`` or ``transient``, too short to tell."""
    if "verdict" in runs:
        return runs["verdict"].astype(str)
    is_saturated = runs.get("saturated", pd.Series(False, runs.index)).astype(str) == "True"
    return is_saturated.map({True: "saturated", False: "stable"})


def averages(results: SweepResults, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Average over seeds as `over_seeds`, with the throughput per GPU besides."""
    results.need(*by)
    return over_seeds(with_throughput_per_gpu(results.runs), by, metrics)


def with_throughput_per_gpu(runs: pd.DataFrame) -> pd.DataFrame:
    """Add requests and output tokens per second and GPU, of the window that time averages are of, too.

    That is the steady window, or the whole run where there is none.
    """
    rates = {
        made: window_rate(runs, name) / runs["num_gpus"]
        for made, name in _PER_GPU.items()
        if f"whole_run_{name}" in runs
    }
    return runs.assign(**rates)


def window_rate(runs: pd.DataFrame, name: str) -> pd.Series[float]:
    """A rate of the steady window; of the whole run for each run without one."""
    whole_run = runs[f"whole_run_{name}"]
    return runs[name].fillna(whole_run) if name in runs else whole_run
