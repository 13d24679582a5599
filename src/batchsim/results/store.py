"""Run directories on disk: they appear whole or not at all, and the same tables give the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.errors import ConfigError
from batchsim.files import (
    cleanly,
    decoded,
    parsed_json,
    read_bytes,
    reason,
    remove_dead_partials,
    resolved,
    sibling,
)
from batchsim.files.tables import check_numbers
from batchsim.metrics.weighted import Floats
from batchsim.records import (
    BATCH_COLUMNS,
    CONTROLLER_COLUMNS,
    DECODE_STEP_COLUMNS,
    ITERATION_COLUMNS,
    ITERATION_REQUEST_COLUMNS,
    KV_COPY_COLUMNS,
    PREEMPTION_COLUMNS,
    REPLICA_STATE_COLUMNS,
    REQUEST_COLUMNS,
    SKETCH_COLUMNS,
    TENANT_COLUMNS,
    TRANSFER_COLUMNS,
)
from batchsim.results.sketches import PROBABILITIES
from batchsim.workload.formats import write_trace
from batchsim.workload.request import Workload

if TYPE_CHECKING:
    import pyarrow as pa

#: Tables of a run directory in each world.
TABLES = {"requests": REQUEST_COLUMNS, "batches": BATCH_COLUMNS, "controllers": CONTROLLER_COLUMNS}
ITERATION_TABLES = {
    "requests": ITERATION_REQUEST_COLUMNS,
    "iterations": ITERATION_COLUMNS,
    "preemptions": PREEMPTION_COLUMNS,
    "controllers": CONTROLLER_COLUMNS,
}
#: Tables that only some clusters, engines and workloads have: written where they have rows.
CLUSTER_TABLES = {
    "transfers": TRANSFER_COLUMNS,
    "tenants": TENANT_COLUMNS,
    "decode_steps": DECODE_STEP_COLUMNS,
    "replica_states": REPLICA_STATE_COLUMNS,
    "kv_copies": KV_COPY_COLUMNS,
}

#: What the largest tables of runs stay far below: bytes in their file, and values unpacked.
_MOST_BYTES, _MOST_CELLS = 2**32, 2**30
_ROWS_AT_ONCE = 2**19

#: All that a run directory may hold; one with anything else is never replaced.
_FILES = {
    "manifest.json",
    "summary.json",
    "workload.csv",
    "failure.json",
    "aggregated.json",
    "replications.csv",
    "sketches.parquet",
    *(f"{name}.parquet" for name in (*TABLES, *ITERATION_TABLES, *CLUSTER_TABLES)),
}


def save_run(
    directory: Path,
    manifest: Mapping[str, Any],
    summary: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    *,
    sketches: Mapping[str, Floats] | None = None,
    workload: Workload | None = None,
    more: Mapping[str, str] = MappingProxyType({}),
    overwrite: bool = False,
) -> None:
    """Write ``manifest.json``, ``summary.json`` and a parquet file per table into a new directory.

    What `sketches.sketch` made of the run is ``sketches.parquet``. A workload that is given is
    ``workload.csv``: what a measured run needs to be simulated again; ``more`` are texts by file name,
    ``aggregated.json`` and ``replications.csv`` of a run that was repeated. All is written beside the
    directory first and then renamed, so that a reader never meets half a run. The manifest comes last and
    says under ``files`` how long each of the others is and what it hashes to.

    Raises
    ------
    ConfigError
        If the directory holds a run and ``overwrite`` is false, holds anything else, or cannot be written.
    ValueError
        For a NaN or infinity in the manifest or summary; JSON has none, None is the value to use.
    """
    with _new_directory(directory, overwrite=overwrite) as partial:
        (partial / "summary.json").write_bytes(_json_bytes(summary))
        if workload is not None:
            write_trace(workload, partial / "workload.csv")
        for name, text in more.items():
            (partial / name).write_text(text, encoding="utf-8", newline="")
        for name, frame in tables.items():
            _write_table(partial / f"{name}.parquet", frame)
        if sketches is not None:
            _write_sketches(partial / "sketches.parquet", sketches)
        files = {file.name: _fingerprint_of(file) for file in sorted(partial.iterdir())}
        (partial / "manifest.json").write_bytes(_json_bytes({**manifest, "files": files}))


def adopt_run(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a run that another machine has saved, instead of what is there; as `save_run`."""
    if others := files.keys() - _FILES:
        raise ConfigError(f"{directory}: {min(others)} is no file of a run")
    with _new_directory(directory, overwrite=True) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(content)


def save_failure(directory: Path, failure: Mapping[str, Any]) -> None:
    """Write ``failure.json``, why there is no run in a directory, instead of what is there; as `save_run`."""
    with _new_directory(directory, overwrite=True) as partial:
        (partial / "failure.json").write_bytes(_json_bytes(failure))


def read_summary(directory: Path, tables: Iterable[str] = ()) -> dict[str, Any] | None:
    """Read the summary of a run that is whole and has these tables; None if there is no run.

    Whole are its sketches, and, where any tables are asked for, all of its tables.

    Raises
    ------
    ConfigError
        For a run of which a file is missing, cut short or not what was written; it says which.
    """
    manifest, summary = directory / "manifest.json", directory / "summary.json"
    if not manifest.exists():
        return None
    files = _object(manifest, read_bytes(manifest), is_ours=True).get("files")
    wanted = [f"{table}.parquet" for table in tables]
    if not isinstance(files, dict) or "summary.json" not in files:
        raise ConfigError(f"{manifest}: does not say which files belong to the run")
    if not files.keys() >= set(wanted):
        return None
    looked_at = files.keys() - {"summary.json"} if wanted else files.keys() & {"sketches.parquet"}
    for file in map(directory.joinpath, looked_at):  # by their size alone: to read them all takes long
        if not file.is_file() or file.stat().st_size != files[file.name].get("bytes"):
            raise ConfigError(f"{file}: is missing or cut short")
    content = read_bytes(summary)
    if _fingerprint(content) != files["summary.json"]:
        raise ConfigError(f"{summary}: is not what was written")
    return _object(summary, content, is_ours=True)


def check_vacant(directory: Path, *, overwrite: bool, inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise before a long run what `save_run` would raise after it: a directory taken or not writable.

    An input that lies in it would go with what is replaced: that is refused as well. What runs that were
    killed left beside it is removed.
    """
    directory = Path(directory)
    partial = sibling(directory)
    with cleanly(directory, partial):
        _refuse_if_taken(directory, overwrite=overwrite)
        for one in inputs:
            if one is not None and resolved(one).parent == resolved(directory):
                raise ConfigError(f"{directory}: holds {Path(one).name}, an input; choose another directory")
        if directory.parent.exists():
            partial.mkdir()
            remove_dead_partials(directory.parent)


def load_run(directory: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, pd.DataFrame]]:
    """Read a run directory back: manifest, summary, tables. `ConfigError` if it holds no readable run.

    It names the file that cannot be read.
    """
    directory = Path(directory)
    if not (directory / "manifest.json").exists():
        raise ConfigError(f"{directory}: no run in it (manifest.json is missing)")
    manifest, summary = (
        _object(file, read_bytes(file)) for file in (directory / "manifest.json", directory / "summary.json")
    )
    known = ITERATION_TABLES if (directory / "iterations.parquet").exists() else TABLES
    known = known | {
        name: columns for name, columns in CLUSTER_TABLES.items() if (directory / f"{name}.parquet").exists()
    }
    tables = {name: _read_table(directory / f"{name}.parquet", columns) for name, columns in known.items()}
    manifest.pop("files", None)  # of the directory, not of the run
    return manifest, summary, tables


def read_sketches(directory: Path) -> pd.DataFrame | None:
    """Read the distributions of a run's times, `records.SKETCH_COLUMNS`; None where none were saved.

    Raises
    ------
    ConfigError
        If they cannot be read; it names the file.
    """
    file = Path(directory) / "sketches.parquet"
    return _read_table(file, SKETCH_COLUMNS) if file.exists() else None


def read_quantiles(directory: Path) -> dict[str, NDArray[np.float32]]:
    """Read them as arrays, by metric, its value at each of `PROBABILITIES`: ten times as fast."""
    file = Path(directory) / "sketches.parquet"
    if not file.exists():
        return {}
    table = _read_arrow(file)
    try:
        names = table["metric"].unique().to_pylist()
        values = table["value"].to_numpy().astype(np.float32).reshape(len(names), len(PROBABILITIES))
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{file}: cannot be read as a table of a run ({reason(error)})") from error
    return dict(zip(names, values, strict=True))


def run_id(config: Mapping[str, Any], version: str, trace_hash: str | None) -> str:
    """Name a run by what it depends on: 12 hexadecimal digits, whatever the order of the keys."""
    canonical = json.dumps(
        [config, version, trace_hash], sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:12]


def _write_table(path: Path, frame: pd.DataFrame) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Without pandas' own metadata: it names the pandas version, and the bytes would depend on it.
    schema = pa.Schema.from_pandas(frame, preserve_index=False).remove_metadata()
    # By parts: a long run, which fills the memory already, is not there once more in another form.
    with path.open("wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for start in range(0, max(len(frame), 1), _ROWS_AT_ONCE):
            part = frame.iloc[start : start + _ROWS_AT_ONCE]
            writer.write_table(pa.Table.from_pandas(part, schema, preserve_index=False))


def _write_sketches(path: Path, sketches: Mapping[str, Floats]) -> None:
    """Write `records.SKETCH_COLUMNS`, from arrays: a frame in between takes longer than all else of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names, num = list(sketches), len(PROBABILITIES)
    codes = np.repeat(np.arange(len(names), dtype=np.int32), num)
    columns = {
        "metric": pa.DictionaryArray.from_arrays(codes, pa.array(names, pa.string())),
        "probability": np.tile(PROBABILITIES, len(names)).astype(np.float32),
        "value": np.concatenate([*sketches.values(), []]).astype(np.float32),
    }
    # Nobody searches such a file by its values, and these are all different.
    pq.write_table(
        pa.table(columns), path, compression="zstd", use_dictionary=["metric"], write_statistics=False
    )


def _object(file: Path, content: bytes, *, is_ours: bool = False) -> dict[str, Any]:
    """Parse a file of a run; of what a sweep wrote itself, not every value is looked at: there are many."""
    tree = None
    if is_ours:
        with suppress(ValueError, RecursionError):
            tree = json.loads(content)
    if tree is None:
        tree = parsed_json(decoded(content, file), file)
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: holds {type(tree).__name__}; an object is needed")
    return tree


def _read_arrow(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = read_bytes(path, max_bytes=_MOST_BYTES)
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        if file.metadata.num_rows * len(file.schema_arrow) > _MOST_CELLS:
            raise ConfigError(f"{path}: more than {_MOST_CELLS:,} values; it is no table of a run")
        return file.read()
    except (OSError, ValueError, TypeError, KeyError, OverflowError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read as a table of a run ({reason(error)})") from error


def _read_table(path: Path, columns: Mapping[str, Any]) -> pd.DataFrame:
    import pyarrow as pa

    table = _read_arrow(path)
    try:
        # A category column without any value is read back as plain objects.
        frame: pd.DataFrame = table.to_pandas()
        types = {name: columns[name] for name in frame.columns if name in columns}
        for name, dtype in types.items():
            if dtype not in ("category", frame[name].dtype):
                check_numbers(frame[name], dtype, path, first_row=1)
        return frame.astype(types)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read as a table of a run ({reason(error)})") from error


@contextmanager
def _new_directory(directory: Path, *, overwrite: bool) -> Iterator[Path]:
    """Where to write what becomes the directory, at once and whole, when the block ends well."""
    directory = Path(directory)
    partial = sibling(directory)
    with cleanly(directory, partial):
        _refuse_if_taken(directory, overwrite=overwrite)
        partial.mkdir(parents=True)
        yield partial
        _move_into_place(partial, directory)


def _refuse_if_taken(directory: Path, *, overwrite: bool) -> None:
    if directory.is_symlink():
        raise ConfigError(f"{directory}: is a symbolic link; name the folder that it leads to")
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ConfigError(f"{directory}: is a file; choose a directory")
    if directory.samefile(Path.cwd()):
        raise ConfigError(f"{directory}: is the current folder, which cannot be replaced; choose another")
    names = {file.name for file in directory.iterdir()}
    if others := names - _FILES:
        raise ConfigError(
            f"{directory}: holds files that are no run ({min(others)}); choose a new or empty directory"
        )
    if names and not names & {"manifest.json", "failure.json"}:
        raise ConfigError(f"{directory}: holds files that are no run; choose a new or empty directory")
    if "manifest.json" in names and not overwrite:
        raise ConfigError(
            f"{directory}: holds a run already; choose another directory, or replace it with --overwrite"
        )


def _fingerprint(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _fingerprint_of(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _move_into_place(partial: Path, directory: Path) -> None:
    """Rename; an old directory steps aside first, because not every system replaces one by renaming."""
    for is_last in (False, False, True):
        old = sibling(directory)
        with suppress(FileNotFoundError):
            directory.rename(old)
        try:
            partial.rename(directory)
            return
        except OSError:  # refused, or another process that does the same run was faster
            if is_last or not directory.exists():
                with suppress(OSError):
                    old.rename(directory)
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
