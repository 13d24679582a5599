"""What the dataset of a sweep keeps of a run beside its summary, so that it is drawn without its folder.

That is where it comes from, and how its times are distributed; and of a sweep that keeps tables what went on
over time, what controllers decided, and what each tenant got: as much of it as a page can show.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from batchsim.errors import ConfigError
from batchsim.files import read_json
from batchsim.metrics.requests import TIMES
from batchsim.metrics.system import num_between, num_waiting
from batchsim.records import CONTROLLER_COLUMNS, FAILED, TENANT_COLUMNS, arrays
from batchsim.results.store import CLUSTER_TABLES, ITERATION_TABLES, TABLES, load_run, read_quantiles

if TYPE_CHECKING:
    import pyarrow as pa

#: Parts of a run's manifest, each of them JSON. When it ran, and for how long, is none of them: the same runs
#: have the same dataset.
ORIGIN, ORIGIN_PARTS = "origin", ("config", "workload", "latency", "versions", "notices")
#: Quantiles of a time, at `sketches.PROBABILITIES`: the column of each.
QUANTILES: Mapping[str, str] = {f"{name}_s": f"quantiles.{name}_s" for name in (*TIMES, "itl")}
#: What is kept of the tables of a run.
COURSES, DECISIONS, TENANTS = "courses", "decisions", "tenants"
KEPT: Mapping[str, Mapping[str, Any]] = {
    COURSES: {
        "at_s": np.float64,
        "waiting": np.int64,  # arrived, and not yet scheduled for the first time
        "running": np.int64,  # scheduled, and not finished
    },
    DECISIONS: {
        **CONTROLLER_COLUMNS,
        "measured_batch_size": np.float64,  # of the batch that ended when it was decided; NaN for iterations
    },
    TENANTS: TENANT_COLUMNS,
}

#: Of the tables of either world and of clusters, the columns that all have.
_COLUMNS = {**CLUSTER_TABLES, **ITERATION_TABLES, **TABLES}

#: Points of a course, and decisions of a run: more than a page can show.
_MOST_POINTS, _MOST_DECISIONS = 500, 20_000


def particulars(directory: Path, *, with_tables: bool) -> pa.Table:
    """Read the particulars of a finished run: a table of one row.

    Raises
    ------
    ConfigError
        If a file of the run is not there or cannot be read; it names the file.
    """
    import pyarrow as pa

    manifest, quantiles = read_json(directory / "manifest.json"), read_quantiles(directory)
    origin = {part: json.dumps(manifest.get(part), ensure_ascii=False) for part in ORIGIN_PARTS}
    columns = [pa.array([origin], _origin())]
    for name in QUANTILES:
        values = quantiles.get(name)
        kind = pa.list_(pa.float32())
        columns.append(pa.nulls(1, kind) if values is None else _listed(pa.array(values)))
    if with_tables:
        tables = _whole_tables(directory)
        made = {COURSES: _courses, DECISIONS: _decisions, TENANTS: _tenants}
        columns += [_listed(_rows(KEPT[name], make(tables))) for name, make in made.items()]
    return pa.Table.from_arrays(columns, schema=schema(with_tables=with_tables))


def schema(*, with_tables: bool) -> pa.Schema:
    """Columns of `particulars`; none of them is of plain values."""
    import pyarrow as pa

    kinds = {ORIGIN: _origin(), **dict.fromkeys(QUANTILES.values(), pa.list_(pa.float32()))}
    if with_tables:
        kinds |= {name: pa.list_(_kind(columns)) for name, columns in KEPT.items()}
    return pa.schema(kinds.items())


def _whole_tables(directory: Path) -> Mapping[str, pd.DataFrame]:
    tables = load_run(directory)[2]
    for name, table in tables.items():
        if missing := [column for column in _COLUMNS[name] if column not in table]:
            raise ConfigError(f"{directory / name}.parquet: has no column {missing[0]}")
    return tables


def _origin() -> pa.DataType:
    import pyarrow as pa

    return pa.struct([(part, pa.string()) for part in ORIGIN_PARTS])


def _kind(columns: Mapping[str, Any]) -> pa.StructType:
    import pyarrow as pa

    return pa.struct(
        [
            (name, pa.string() if dtype == "category" else pa.from_numpy_dtype(dtype))
            for name, dtype in columns.items()
        ]
    )


def _listed(values: pa.Array) -> pa.Array:
    """All values as one value: a list."""
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def _rows(columns: Mapping[str, Any], frame: pd.DataFrame) -> pa.Array:
    import pyarrow as pa

    kind = _kind(columns)
    return pa.StructArray.from_arrays(
        [pa.array(frame[field.name].tolist(), field.type) for field in kind], fields=list(kind)
    )


def _courses(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How many requests wait and run at evenly spaced instants of the run.

    Not those that were lost with a replica: when that was, no table tells.
    """
    requests = tables["requests"]
    end_s = float(requests["finish_s"].max()) if requests["finish_s"].notna().any() else 0.0
    at_s = np.linspace(0, end_s, _MOST_POINTS)
    kept = arrays(requests[requests["status"] != FAILED])
    running = num_between(kept["scheduled_s"], kept["finish_s"], at_s)
    return pd.DataFrame({"at_s": at_s, "waiting": num_waiting(kept, at_s), "running": running})


def _decisions(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What controllers decided, evenly many of it, and the size of the batch that each had measured."""
    decided = tables["controllers"]
    if len(decided) > _MOST_DECISIONS:
        decided = decided.iloc[np.linspace(0, len(decided) - 1, _MOST_DECISIONS).round().astype(np.intp)]
    if "batches" not in tables:
        return decided.assign(measured_batch_size=np.nan)
    batches = tables["batches"].drop_duplicates("finish_s").set_index("finish_s")["batch_size"]
    return decided.assign(measured_batch_size=decided["time_s"].map(batches).astype(np.float64))


def _tenants(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    return tables.get(TENANTS, pd.DataFrame(columns=list(TENANT_COLUMNS)))
