"""The finished runs of a sweep as one Parquet file, each column of one type; and what is asked of it in SQL.

Columns of plain values are the table of the runs; beside them stand those of `particulars`, which pictures
take. The same runs give the same bytes: no time and no place of writing is in them.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim._version import __version__
from batchsim.errors import BatchsimError, ConfigError
from batchsim.files import read_bytes, reason, replacing
from batchsim.results.particulars import KEPT, ORIGIN, ORIGIN_PARTS, QUANTILES, schema

if TYPE_CHECKING:
    import pyarrow as pa

#: Its name in the folder of a sweep.
DATASET = "dataset.parquet"
#: Of what its columns and metadata mean; a reader refuses those that it does not know.
SCHEMA_VERSION = 2

#: What the largest sweeps stay far below.
_MOST_BYTES, _MOST_CELLS = 2**30, 2**28
#: Of particulars that are held and written at once.
_BYTES_AT_ONCE = 2**22


def write_dataset(
    path: Path,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    described: Mapping[str, Any],
    beside: Iterable[pa.Table] | None = None,
    *,
    with_tables: bool = False,
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
    beside, with_tables
        The `particulars` of the runs, a table of one row each; and whether they hold what is kept of tables.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = dict.fromkeys(key for row in rows for key in row)
    columns = {"sweep": pa.array([name] * len(rows), pa.string())}
    columns |= {key: _column([row.get(key) for row in rows]) for key in names}
    told = {"schema_version": SCHEMA_VERSION, "batchsim": __version__, "sweep_name": name, **described}
    plain, more = pa.table(columns), schema(with_tables=with_tables)
    if beside is None:
        beside = [pa.Table.from_arrays([pa.nulls(len(plain), field.type) for field in more], schema=more)]
    whole = pa.schema([*plain.schema, *more], {"batchsim": json.dumps(told, allow_nan=False)})
    with (
        replacing(path) as partial,
        pq.ParquetWriter(partial, whole, compression="zstd", write_page_checksum=True) as writer,
    ):
        start = 0
        for table in _in_parts(more, beside):
            part = plain.slice(start, len(table))
            writer.write_table(pa.Table.from_arrays([*part.columns, *table.columns], schema=whole))
            start += len(table)


def _in_parts(columns: pa.Schema, rows: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables of as many rows as are not too much at once; one without rows where there are none."""
    import pyarrow as pa

    part, size = [columns.empty_table()], 0
    for row in rows:
        part.append(row)
        size += row.nbytes
        if size > _BYTES_AT_ONCE:
            yield pa.concat_tables(part).combine_chunks()
            part, size = [columns.empty_table()], 0
    yield pa.concat_tables(part).combine_chunks()


class Dataset:
    """The dataset of one sweep, of which only what is asked for is unpacked.

    Attributes
    ----------
    described
        What it says of itself.

    Raises
    ------
    ConfigError
        If there is none, or one that cannot be read; so do the methods.
    """

    def __init__(self, file: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.file = file
        content = read_bytes(file, max_bytes=_MOST_BYTES)
        with self._reading():
            self._parquet = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
            metadata, columns = self._parquet.metadata, self._parquet.schema_arrow
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            nums = [group.column(place).num_values for group in groups for place in range(group.num_columns)]
            if max(metadata.num_rows * len(columns), sum(nums)) > _MOST_CELLS:
                raise ConfigError(f"{file}: more than {_MOST_CELLS:,} values; it is no dataset of a sweep")
            described = json.loads((columns.metadata or {}).get(b"batchsim", b"{}"))
            version = described.get("schema_version") if isinstance(described, dict) else None
            if version != SCHEMA_VERSION:
                raise ConfigError(
                    f"{file}: is no dataset that this batchsim knows; the sweep, run again, writes it anew"
                )
            self.described: dict[str, Any] = described
            self._plain = [field.name for field in columns if not pa.types.is_nested(field.type)]
            self._starts = list(accumulate((group.num_rows for group in groups), initial=0))
        self._last: tuple[str, int, Any] = ("", -1, None)

    @property
    def runs(self) -> pa.Table:
        """A row per run: columns of plain values."""
        return self._columns(self._plain)

    def origins(self) -> dict[str, dict[str, Any]]:
        """Where each run comes from, `particulars.ORIGIN_PARTS`, by run id."""
        with self._reading():
            given = self._columns([ORIGIN])[ORIGIN].to_pylist()
            parts = ({part: json.loads(one[part]) for part in ORIGIN_PARTS} for one in given)
            return dict(zip(self._places, parts, strict=True))

    def quantiles(self, metric: str) -> dict[str, NDArray[np.float32]]:
        """Quantiles of a time, at `sketches.PROBABILITIES`, of each run that has it, by run id."""
        name = QUANTILES[metric]
        with self._reading():
            of_runs = zip(self._places, self._columns([name])[name], strict=True)
            return {run_id: values.values.to_numpy() for run_id, values in of_runs if values.is_valid}

    def kept(self, what: str, run_id: str) -> pd.DataFrame | None:
        """What is kept of a run's tables, `particulars.KEPT`; None where the sweep kept none."""
        import pyarrow as pa

        if what not in self._parquet.schema_arrow.names:
            return None
        with self._reading():
            place = self._places[run_id]
            group = bisect_right(self._starts, place) - 1
            if self._last[:2] != (what, group):
                self._last = (what, group, self._parquet.read_row_group(group, [what])[what].combine_chunks())
            values = self._last[2][place - self._starts[group]].values
            names = [field.name for field in values.type]
            frame: pd.DataFrame = pa.Table.from_arrays(values.flatten(), names).to_pandas()
            return frame.astype(dict(KEPT[what]))

    @cached_property
    def _places(self) -> dict[str, int]:
        """Which row is of which run."""
        run_ids = self._columns(["run_id"])["run_id"].to_pylist()
        return {run_id: place for place, run_id in enumerate(run_ids)}

    def _columns(self, names: Sequence[str]) -> pa.Table:
        with self._reading():
            # What is asked for by its name comes with all that the name is the beginning of.
            return self._parquet.read(list(names)).select(list(names))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Say in one sentence that the file cannot be read."""
        import pyarrow as pa

        try:
            yield
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            OverflowError,
            AttributeError,
            pa.ArrowException,
        ) as error:
            raise ConfigError(
                f"{self.file}: cannot be read as the dataset of a sweep ({reason(error)}); the sweep, run "
                "again, writes it anew"
            ) from error


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
    return Dataset(Path(directory) / DATASET).described


def read_table(directory: str | Path) -> pa.Table:
    """Read as `load_sweep`, as a table of Arrow."""
    import pyarrow as pa

    directory = Path(directory)
    files = sorted([*directory.glob(DATASET), *directory.glob(f"*/{DATASET}")])
    if not files:
        raise ConfigError(f"{directory}: no {DATASET} of a sweep in it; `batchsim sweep` writes it")
    tables = [Dataset(file).runs for file in files]
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


def _united(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """All columns, each of the narrowest type that holds it in every schema."""
    import pyarrow as pa

    types: dict[str, Any] = {}
    for field in (field for columns in schemas for field in columns):
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
