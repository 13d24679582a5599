"""Datasets of sweeps, to change."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


def change(
    file: Path,
    act: Callable[[pd.DataFrame], pd.DataFrame] = lambda runs: runs,
    described: Mapping[str, Any] | None = None,
) -> None:
    """Change the table of the runs, which may lose rows, or what the dataset says of itself."""
    table = pq.read_table(file)
    told = json.loads(table.schema.metadata[b"batchsim"]) | dict(described or {})
    beside = [field.name for field in table.schema if pa.types.is_nested(field.type)]
    runs = act(table.drop_columns(beside).to_pandas())
    changed = pa.Table.from_pandas(runs.reset_index(drop=True), preserve_index=False)
    for name in beside:
        changed = changed.append_column(name, table[name].take(pa.array(runs.index)))
    pq.write_table(changed.replace_schema_metadata({"batchsim": json.dumps(told)}), file)
