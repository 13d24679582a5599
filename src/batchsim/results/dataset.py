"""The finished runs of a sweep as one Parquet file, each column of one type; and what is asked of it in SQL.

The same runs give the same bytes: no time and no place of writing is in them.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from batchsim._version import __version__
from batchsim.errors import BatchsimError, ConfigError
from batchsim.files import read_bytes, reason, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

#: Its name in the folder of a sweep.
DATASET = "dataset.parquet"
#: Of what its columns and metadata mean; a reader refuses those that it does not know.
SCHEMA_VERSION = 1

#: What the largest sweeps stay far below.
_MOST_BYTES, _MOST_CELLS = 2**30, 2**28


def write_dataset(
    path: Path, name: str, rows: Sequence[Mapping[str, Any]], described: Mapping[str, Any]
) -> None:
    """Write a row per run, whole; a column of truths, whole numbers, numbers or text for each key.

    A key that a row lacks, or that is None there, is null. What is neither is JSON: a list, a table, or a
    value among others of another kind. Where nothing is known, the column is of numbers.

    Parameters
    ----------
    name
        Of the sweep: the first column, ``sweep``, which tells the runs of several apart.
    described
        What the file says of itself besides, JSON-ready; `describe` reads it back.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = dict.fromkeys(key for row in rows for key in row)
    columns = {"sweep": pa.array([name] * len(rows), pa.string())}
    columns |= {key: _column([row.get(key) for row in rows]) for key in names}
    told = {"schema_version": SCHEMA_VERSION, "batchsim": __version__, "sweep_name": name, **described}
    table = pa.table(columns).replace_schema_metadata({"batchsim": json.dumps(told, allow_nan=False)})
    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd", write_page_checksum=True)
    write_whole(path, content.getvalue())


def load_sweep(directory: str | Path) -> pd.DataFrame:
    """Read the finished runs of a sweep, or of all sweeps in a folder: a row each.

    Columns are ``sweep``, ``run_id``, ``case``, what was varied (dotted keys), and the keys of the summaries
    (docs/metrics.md); ``num_runs_planned`` is how many rows the whole sweep has. Times are seconds. What a
    run has not is missing; of several sweeps, so is what the run's sweep does not vary.

    Raises
    ------
    ConfigError
        If there is none, or one that cannot be read.
    """
    frame: pd.DataFrame = read_table(directory).to_pandas(types_mapper=_nullable_truths())
    return frame


def describe(directory: str | Path) -> dict[str, Any]:
    """Return what the dataset of one sweep says of itself: the sweep file's content, the inputs' hashes."""
    file = Path(directory) / DATASET
    told: dict[str, Any] = json.loads(_read(file).schema.metadata[b"batchsim"])
    return told


def read_table(directory: str | Path) -> pa.Table:
    """Read as `load_sweep`, as a table of Arrow."""
    import pyarrow as pa

    directory = Path(directory)
    files = sorted([*directory.glob(DATASET), *directory.glob(f"*/{DATASET}")])
    if not files:
        raise ConfigError(f"{directory}: no {DATASET} of a sweep in it; `batchsim sweep` writes it")
    tables = [_read(file) for file in files]
    schema = _united([table.schema for table in tables])
    return pa.concat_tables(_fitted(table, schema) for table in tables)


def query(sql: str, directory: str | Path) -> pa.Table:
    """Ask DuckDB for something of ``runs``, the table that `read_table` gives.

    Raises
    ------
    BatchsimError
        If DuckDB is not installed.
    ConfigError
        For SQL that DuckDB does not take, or that gives no table with a name for each column.
    """
    try:
        import duckdb
    except ImportError as error:
        raise BatchsimError("a query needs DuckDB: pip install 'batchsim[query]'") from error
    runs = read_table(directory)
    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as connection:
        connection.register("runs", runs)
        try:
            asked = connection.sql(sql)
            answer = None if asked is None else asked.to_arrow_table()
        except (duckdb.Error, RuntimeError) as error:  # of Python's are some of conversions
            raise ConfigError(f"query: {_sentence(str(error), sql, runs.column_names)}") from error
    if answer is None:
        raise ConfigError('query: gives no table; write one such as "select policy, e2e_mean_s from runs"')
    name, number = Counter(answer.column_names).most_common(1)[0]
    if number > 1:
        raise ConfigError(f"query: {number} columns are called {name}; give them names of their own with AS")
    return answer


def _column(values: Sequence[Any]) -> pa.Array:
    import pyarrow as pa

    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {bool} and kinds:
        return pa.array(values, pa.bool_())
    if kinds <= {int} and kinds:
        try:
            return pa.array(values, pa.int64())
        except OverflowError:
            kinds = {float}
    if kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    texts = (value if value is None or isinstance(value, str) else _json(value) for value in values)
    return pa.array(texts, pa.string())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _read(file: Path) -> pa.Table:
    """Read one dataset; `ConfigError` if it is none of ours."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = read_bytes(file, max_bytes=_MOST_BYTES)
    try:
        parquet = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        if parquet.metadata.num_rows * len(parquet.schema_arrow) > _MOST_CELLS:
            raise ConfigError(f"{file}: more than {_MOST_CELLS:,} values; it is no dataset of a sweep")
        told = json.loads((parquet.schema_arrow.metadata or {}).get(b"batchsim", b"{}"))
        version = told.get("schema_version") if isinstance(told, dict) else None
        if version != SCHEMA_VERSION:
            raise ConfigError(
                f"{file}: is no dataset that this batchsim knows; the sweep, run again, writes it anew"
            )
        return parquet.read()
    except (OSError, ValueError, TypeError, KeyError, OverflowError, pa.ArrowException) as error:
        raise ConfigError(
            f"{file}: cannot be read as the dataset of a sweep ({reason(error)}); the sweep, run again, "
            "writes it anew"
        ) from error


def _united(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """All columns, each of the narrowest type that holds it in every schema."""
    import pyarrow as pa

    types: dict[str, Any] = {}
    for field in (field for schema in schemas for field in schema):
        known = types.setdefault(field.name, field.type)
        if known != field.type:
            are_numbers = {known, field.type} <= {pa.int64(), pa.float64()}
            types[field.name] = pa.float64() if are_numbers else pa.string()
    return pa.schema(types.items())


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    return pa.table(
        {
            field.name: table[field.name].cast(field.type)
            if field.name in table.column_names
            else pa.nulls(len(table), field.type)
            for field in schema
        }
    )


def _nullable_truths() -> Any:
    import pyarrow as pa

    return {pa.bool_(): pd.BooleanDtype()}.get


def _sentence(text: str, sql: str, names: Iterable[str]) -> str:
    """Of what DuckDB says, what is wrong and what comes near; not where in the query it stands."""
    lines = [line.strip() for line in text.split("LINE ")[0].splitlines()]
    said = " ".join(filter(None, lines)).partition(": ")[2] or text
    bare = [name for name in names if "." in name and name in sql and f'"{name}"' not in sql]
    return f'{said}; a name with dots stands in double quotes: "{bare[0]}"' if bare else said
