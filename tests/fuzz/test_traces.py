"""Damaged traces of every format: one clean sentence, or the numbers that an independent parser reads."""

import csv
import datetime
import gzip
import io
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.errors import BatchsimError
from batchsim.workload.formats import read_trace
from batchsim.workload.prefixes import prefix_ids
from batchsim.workload.request import Workload
from tests.fuzz.mutations import fuzz

NUM_ROWS = 6

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A valid file, and where an independent parser finds its numbers."""

    text: str
    arrival: str
    prompt: str
    output: str
    seconds: Callable[[Any], float] = float
    is_shifted: bool = True

    def expected(self, rows: Sequence[Row]) -> list[tuple[float, float, float]]:
        """Arrival, prompt and answer of the rows that are kept, in order of arrival."""
        kept = [
            (self.seconds(row[self.arrival]), float(row[self.prompt]), float(row[self.output]))
            for row in rows
        ]
        kept = [one for one in kept if one[1] and one[2]]
        first_s = min(one[0] for one in kept) if self.is_shifted else 0.0
        return sorted((arrival_s - first_s, prompt, output) for arrival_s, prompt, output in kept)


def table(header: str, line: Callable[[int], str]) -> str:
    return header + "\n" + "".join(line(row) + "\n" for row in range(NUM_ROWS))


def json_lines(line: Callable[[int], Row]) -> str:
    return "".join(json.dumps(line(row)) + "\n" for row in range(NUM_ROWS))


def wall_clock_s(text: str) -> float:
    """Seconds since 1970 of a date and time with any number of digits."""
    whole, _, digits = text.strip().partition(".")
    moment = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.UTC)
    return moment.timestamp() + (float(f"0.{digits}") if digits else 0.0)


FORMATS = {
    "own": Format(
        table("arrival_s,prompt_tokens,output_tokens", lambda row: f"{row * 0.5},{row + 3},{row + 1}"),
        "arrival_s",
        "prompt_tokens",
        "output_tokens",
        is_shifted=False,
    ),
    "burstgpt": Format(
        table(
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
            lambda row: f"{row * 7 + 5},GPT-4,{row + 3},{row % 3},{row + 9},API log",
        ),
        "Timestamp",
        "Request tokens",
        "Response tokens",
    ),
    "azure": Format(
        table(
            "TIMESTAMP,ContextTokens,GeneratedTokens",
            lambda row: f"2023-11-16 18:15:4{row}.680590{row},{row + 3},{row + 1}",
        ),
        "TIMESTAMP",
        "ContextTokens",
        "GeneratedTokens",
        wall_clock_s,
    ),
    "mooncake": Format(
        json_lines(
            lambda row: {
                "timestamp": row * 1500,
                "input_length": 600 + row,
                "output_length": row + 1,
                "hash_ids": [0, row],
            }
        ),
        "timestamp",
        "input_length",
        "output_length",
        lambda value: float(value) / 1000,
    ),
    "bailian": Format(
        json_lines(
            lambda row: {
                "chat_id": row + 1,
                "parent_chat_id": row - 1,
                "timestamp": row * 2.5,
                "input_length": 40 + row,
                "output_length": row + 1,
                "type": "text",
                "turn": 1,
                "hash_ids": [0, row],
            }
        ),
        "timestamp",
        "input_length",
        "output_length",
    ),
    "llmservingsim": Format(
        json_lines(
            lambda row: {
                "input_toks": 33 + row,
                "output_toks": row + 1,
                "arrival_time_ns": row * 10**9 + 5,
                "hash_ids_16": [1, row],
            }
        ),
        "arrival_time_ns",
        "input_toks",
        "output_toks",
        lambda value: float(value) / 1e9,
    ),
}

VALUES = [
    "", "0", "-1", "1e308", "1e400", "9e15", "nan", "inf", "null", "true", "[]", "{}", "[1,2]", '"x"', "x",
    "0x10", "1_0", "+5", " 5 ", "5.5", "1" + "0" * 30, "1" * 5000, "now", "1000-01-01 00:00:00", '"',
    "\ufeff", "\0", "\t", "=1+1", "[red]", "\x1b[31m", "\uff11\uff12", "2023-11-16 18:15:46", "1,1", "\r",
    "\n", "#",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, text: str) -> bytes:
    """A file with a few faults: values, lines, bytes, its end, its packing."""
    data = text.encode()
    for _ in range(draw(st.integers(0, 3))):
        lines = data.split(b"\n")
        number = draw(st.integers(0, len(lines) - 1))
        kind = draw(
            st.sampled_from(["value", "value", "bytes", "drop", "twice", "swap", "cut", "insert", "case"])
        )
        if kind == "value":
            separator = draw(st.sampled_from([b",", b":"]))
            fields = lines[number].split(separator)
            fields[draw(st.integers(0, len(fields) - 1))] = draw(st.sampled_from(VALUES)).encode()
            lines[number] = separator.join(fields)
        elif kind == "drop":
            del lines[number]
        elif kind == "twice":
            lines.insert(number, lines[number])
        elif kind == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[number], lines[other] = lines[other], lines[number]
        elif kind == "insert":
            lines.insert(number, draw(st.sampled_from(VALUES)).encode())
        elif kind == "case":
            lines[number] = lines[number].upper()
        data = b"\n".join(lines)
        place = draw(st.integers(0, len(data)))
        if kind == "bytes":
            data = data[:place] + draw(st.binary(min_size=1, max_size=3)) + data[place + 1 :]
        elif kind == "cut":
            data = data[:place]
    packed = draw(st.sampled_from([False, False, False, True]))
    if packed:
        data = gzip.compress(data, mtime=0)
        data = data[: draw(st.sampled_from([len(data), len(data), len(data) // 2]))]
    return data


def parsed(data: bytes) -> list[Row]:
    """The rows as the standard library reads them: blank and comment lines at the top left out."""
    text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode("utf-8-sig").rstrip()
    lines = text.split("\n") if "\n" in text else text.split("\r")
    while lines and (not lines[0].strip() or lines[0].startswith("#")):
        del lines[0]
    if lines[0].startswith("{"):
        return [json.loads(line) for line in lines]
    header, *rows = csv.reader(io.StringIO("\n".join(lines)), strict=True)
    names = [" ".join(name.split()) for name in header]
    assert all(len(row) == len(names) for row in rows)
    return [dict(zip(names, row, strict=True)) for row in rows]


def formats_of(rows: Sequence[Row]) -> list[Format]:
    return [
        known
        for known in FORMATS.values()
        if all({known.arrival, known.prompt, known.output} <= set(row) for row in rows[:1])
    ]


def read(path: Path, content: bytes) -> Workload | None:
    """What is read of a file, or None if it is refused in one printable sentence."""
    path.write_bytes(content)
    try:
        trace = read_trace(path)
        prefix_ids(trace)
    except BatchsimError as error:
        message = str(error)
    else:
        return trace
    assert message.isprintable(), message
    assert len(message) < 1_000
    return None


def check(trace: Workload, data: bytes) -> None:
    """Hold what was read to the rows of an independent parser, under any format that has the columns."""
    got = list(
        zip(trace.arrival_s.tolist(), trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
    )
    rows = parsed(data)
    for known in formats_of(rows):
        try:
            expected = known.expected(rows)
        except (ValueError, TypeError, KeyError):
            continue
        close = len(expected) == len(got) and all(
            math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-6)
            for wanted, found in zip(expected, sorted(got), strict=True)
            for one, other in zip(wanted, found, strict=True)
        )
        if close:
            return
    raise AssertionError(f"no format gives {got} of {rows}")


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@fuzz
def test_a_damaged_trace_is_one_sentence_or_the_numbers_in_it(name: str, data: st.DataObject) -> None:
    content = data.draw(damaged(FORMATS[name].text))
    with tempfile.TemporaryDirectory() as folder:
        trace = read(Path(folder) / "trace", content)
    if trace is not None:
        check(trace, content)


@given(faults=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=3)), min_size=1, max_size=3))
@fuzz
def test_a_damaged_parquet_file_is_one_sentence_or_what_arrow_reads(
    faults: list[tuple[float, bytes]],
) -> None:
    file = io.BytesIO()
    columns = {name: list(range(1, 1 + NUM_ROWS)) for name in ("arrival_s", "prompt_tokens", "output_tokens")}
    pq.write_table(pa.table(columns), file)
    content = file.getvalue()
    for share, patch in faults:
        place = 4 + int(share * (len(content) - 4))
        content = content[:place] + patch + content[place + len(patch) :]
    with tempfile.TemporaryDirectory() as folder:
        trace = read(Path(folder) / "trace", content)
    if trace is None:
        return

    table = pq.read_table(pa.BufferReader(content)).to_pandas().sort_values("arrival_s", kind="stable")
    for name in columns:
        assert getattr(trace, name).tolist() == table[name].tolist()
