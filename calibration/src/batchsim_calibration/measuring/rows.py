"""The file of raw trials while it grows: each row is on disk as soon as it is measured.

Until it is complete it lies under its name with ``.partial`` added. The columns beyond those that
`batchsim.latency.tables.table` reads:

===============  ===========================================================================================
``purpose``      ``trial``; ``extra``, of a point whose trials spread too widely; ``reference``, of the drift
                 monitor. Trials are numbered from 1 on for each point and purpose
``attempt``      which try of this trial, from 1 on
``cpu_share``    CPU time per wall time
``order``        position among all rows
``config_hash``  of the configuration that all rows share
===============  ===========================================================================================
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from batchsim.errors import ConfigError, TraceError
from batchsim.files import reason
from batchsim.latency.tables.table import RAW_COLUMNS
from batchsim_calibration.measuring.grid import Point
from batchsim_calibration.serving.timing import Timing

Purpose = Literal["trial", "extra", "reference"]
Status = Literal["ok", "oom", "disturbed"]
COLUMNS = (*RAW_COLUMNS, "cuda_s", "cpu_s", "purpose", "attempt", "cpu_share", "order", "config_hash")


class Task(NamedTuple):
    """One trial of one point: what a row is the result of, and the key by which a resumed run knows it."""

    point: Point
    purpose: Purpose
    trial: int


class Row(NamedTuple):
    """One measurement; no timing where the device ran out of memory."""

    task: Task
    timing: Timing | None
    status: Status
    attempt: int = 1


def partial_of(path: Path) -> Path:
    """Where the rows lie until they are complete."""
    return path.with_name(f"{path.name}.partial")


def hash_of(configuration: Mapping[str, Any]) -> str:
    """Name a configuration by its content."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:12]


class RowFile:
    """Appends rows to a partial file, and knows those that an interrupted run left there.

    Attributes
    ----------
    rows
        All that the file holds.
    """

    def __init__(self, path: Path, config_hash: str) -> None:
        self.path = path
        self.rows: list[Row] = []
        self._config_hash = config_hash

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Take up what is there, and append from here on.

        Raises
        ------
        ConfigError
            If the rows there are of another configuration, or the system does not let us write.
        TraceError
            If they cannot be read. A last line that was cut short is dropped.
        """
        partial = partial_of(self.path)
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            text = partial.read_text(encoding="utf-8") if partial.is_file() else ""
            whole = text[: text.rfind("\n") + 1]
            self.rows = self._read(whole, partial)
            if len(whole) < len(text):
                os.truncate(partial, len(whole.encode()))
            self._file = partial.open("a", encoding="utf-8", newline="")
        except OSError as error:
            raise ConfigError(f"{partial}: cannot be written ({reason(error)})") from error
        with self._file:
            if not whole:
                self._write([COLUMNS])
            yield

    def append(self, rows: Sequence[Row]) -> None:
        """Put rows on disk, in one piece: all attempts of a trial, or none."""
        start = len(self.rows)
        self._write([self._fields(row, start + offset) for offset, row in enumerate(rows)])
        self.rows.extend(rows)

    def publish(self) -> None:
        """Let the finished table appear under its own name; the file must be closed."""
        partial_of(self.path).replace(self.path)

    def _write(self, lines: Sequence[Sequence[object]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(lines)
        self._file.write(text.getvalue())
        self._file.flush()

    def _fields(self, row: Row, order: int) -> list[object]:
        kind, batch_size, *tokens = row.task.point
        timing = row.timing or Timing(math.nan, math.nan, math.nan)
        wall_s, cpu_s, cuda_s = ("" if math.isnan(one) else f"{one:.9f}" for one in timing)
        share = f"{row.timing.cpu_share:.4f}" if row.timing else ""
        return [
            kind,
            batch_size,
            *(count or "" for count in tokens),
            row.task.trial,
            wall_s,
            row.status,
            cuda_s,
            cpu_s,
            row.task.purpose,
            row.attempt,
            share,
            order,
            self._config_hash,
        ]

    def _read(self, text: str, partial: Path) -> list[Row]:
        reader = csv.DictReader(io.StringIO(text))
        rows = []
        for number, fields in enumerate(reader, start=2):
            if fields.get("config_hash") != self._config_hash:
                raise ConfigError(
                    f"{partial}: was begun with another configuration; give the same options to go on, "
                    "another --name to begin beside it, or delete it"
                )
            try:
                rows.append(_row(fields))
            except (KeyError, TypeError, ValueError) as error:
                raise TraceError(
                    f"{partial}, line {number}: cannot be read as a trial ({error}); "
                    "delete the line to measure it again"
                ) from error
        return rows


def _row(fields: Mapping[str, str]) -> Row:
    count = {name: int(fields[name] or 0) for name in ("prompt_tokens", "output_tokens", "context_tokens")}
    point = Point(fields["kind"], int(fields["batch_size"]), **count)
    times = [float(fields[name] or math.nan) for name in Timing._fields]
    purpose, status = fields["purpose"], fields["status"]
    return Row(
        Task(point, purpose, int(fields["trial"])),  # type: ignore[arg-type]
        None if math.isnan(times[0]) else Timing(*times),
        status,  # type: ignore[arg-type]
        int(fields["attempt"]),
    )
