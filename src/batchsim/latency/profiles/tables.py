"""Finding and reading the tables of an operator profile; `profiles.operator_profile` says what they hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchsim.errors import ConfigError, TraceError


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
        self,
        name: str,
        *columns: str,
        folder: Path | None = None,
        unchecked: Sequence[str] = ("layer", "regime"),
    ) -> pd.DataFrame:
        """Read these columns, and check that those of numbers hold some."""
        path = self.find(name, folder)
        if path is None:
            raise ConfigError(
                f"{self.folder}: holds no {name}.csv or {name}.csv.gz; an operator profile needs it"
            )
        self.sha256[f"{path.parent.name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            frame = pd.read_csv(path, skipinitialspace=True)
        except (OSError, ValueError, pd.errors.ParserError) as error:
            raise TraceError(f"{path}: not a CSV table ({error})") from error
        missing = [column for column in columns if column not in frame.columns]
        if missing:
            raise TraceError(f"{path}: column {', '.join(missing)} missing; found {', '.join(frame.columns)}")
        for column in columns:
            if column not in unchecked:
                _check_numbers(path, frame, column)
        return frame

    def meta(self) -> dict[str, Any]:
        """What is known of the profile's origin; empty where nothing is."""
        path = self.folder.parent / "meta.json"
        if not path.is_file():
            return {}
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TraceError(f"{path}: cannot be read as JSON ({error})") from error
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


def _check_numbers(path: Path, frame: pd.DataFrame, column: str) -> None:
    is_time = column.endswith(("_us", "(ns)"))
    values = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=np.float64)
    good = np.isfinite(values) & ((values > 0) if is_time else (values >= 0) & (values == np.floor(values)))
    if not good.all():
        row = int(np.argmin(good))
        needed = "a finite number > 0" if is_time else "a whole number >= 0"
        given = frame[column].iloc[row]
        shown = "blank" if pd.isna(given) else str(given)
        raise TraceError(f"{path}, line {row + 2}: {column} is {shown}; {needed} is needed")
