"""Finding and reading the tables of an operator profile; `profiles.operator_profile` says what they hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from batchsim.errors import ConfigError, TraceError
from batchsim.files import MAX_COUNT, read_json
from batchsim.files.tables import CsvTable, read_csv
from batchsim.latency.operators import MOST_LISTED


@dataclass(slots=True)
class ProfileTables:
    """The files of one ``tp<N>`` folder.

    Attributes
    ----------
    sha256
        Of the files that were read.
    notices
        Sentences a user should see.
    """

    folder: Path
    sha256: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def find(self, name: str, folder: Path | None = None) -> Path | None:
        """Return the path of a table, if it is there."""
        folder = folder or self.folder
        found = (folder / f"{name}{suffix}" for suffix in (".csv", ".csv.gz"))
        return next((path for path in found if path.is_file()), None)

    def read(self, name: str, *columns: str, folder: Path | None = None) -> pd.DataFrame:
        """Read counts (and layers' names), and ``time_us`` as ``seconds``; averages points given twice."""
        frame = self.read_raw(name, *columns, "time_us", folder=folder)
        times = frame.groupby(list(columns))["time_us"].mean() * 1e-6
        return times.rename("seconds").reset_index()

    def read_raw(
        self, name: str, *columns: str, folder: Path | None = None, optional: tuple[str, ...] = ()
    ) -> pd.DataFrame:
        """Read these columns: names, times in their own unit, or else counts."""
        table = self.table(name, *columns, folder=folder)
        columns += tuple(column for column in optional if column in table.frame)
        return pd.DataFrame({column: _column(table, column) for column in columns})

    def table(self, name: str, *columns: str, folder: Path | None = None) -> CsvTable:
        """Read a table that has these columns and a row."""
        path = self.find(name, folder)
        if path is None:
            raise ConfigError(
                f"{self.folder}: holds no {name}.csv or {name}.csv.gz; an operator profile needs it"
            )
        table = read_csv(path)
        self.sha256[f"{path.parent.name}/{path.name}"] = table.sha256
        table.need(columns)
        if table.frame.empty:
            raise TraceError(f"{path}: no rows in it; at least one is needed")
        return table

    def meta(self) -> dict[str, Any]:
        """What is known of the profile's origin; empty where nothing is."""
        path = self.folder.parent / "meta.json"
        if not path.exists():
            return {}
        tree = read_json(path, error=TraceError)
        return tree if isinstance(tree, dict) else {}

    def name(self) -> str:
        """What a person calls the profile."""
        meta = self.meta()
        named = [str(meta[key]) for key in ("model", "hardware") if meta.get(key)]
        return f"{' on '.join(named) or self.folder.parent.name}, {self.folder.name}, operators"


def profile_folder(directory: str | Path, tensor_parallel: int) -> Path:
    """Return the one ``tp<N>`` folder in or under a directory."""
    directory, wanted = Path(directory), f"tp{tensor_parallel}"
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such folder; an operator profile is one")
    folders = sorted(
        {path.parent for name in ("dense", "layers") for path in directory.rglob(f"{name}.csv*")}
    )
    found = [folder for folder in folders if folder.name == wanted]
    if len(found) == 1:
        return found[0]
    named = ", ".join(str(folder.relative_to(directory)) for folder in found or folders)
    raise ConfigError(
        f"{directory}: exactly one folder {wanted} with a dense.csv or layers.csv is needed; there "
        + (f"are {named}" if found else f"is none, but {named}" if named else "is none")
    )


#: Columns that hold names, and seconds in the units that the names of others end with.
_NAMES = ("layer", "layer_name", "regime")
_UNITS_S = {"_us": 1e-6, "(ns)": 1e-9}
#: Columns of counts that passes list one by one, see `latency.operators`.
_LISTED = ("tokens", "sequences", "input", "n")


def _column(table: CsvTable, name: str) -> pd.Series[Any]:
    if name in _NAMES:
        return table.words(name)
    for ending, unit_s in _UNITS_S.items():
        if name.endswith(ending):
            return table.times(name, unit_s)
    most = MOST_LISTED if name in _LISTED else MAX_COUNT
    return table.counts(name, least=0, most=most).astype("int64")
