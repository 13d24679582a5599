"""Files that are no traces: too large, packed to burst, broken inside. One sentence, and little memory."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchsim.errors import TraceError
from batchsim.workload.describe import trace_info
from batchsim.workload.formats import KNOWN_FILES, Reading, read_trace
from batchsim.workload.tables import Limits

OWN = "arrival_s,prompt_tokens,output_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
SMALL = Reading(limits=Limits(max_bytes=100_000, max_rows=1_000))


def refused(path: Path, reading: Reading | None = None) -> str:
    with pytest.raises(TraceError) as caught:
        read_trace(path, reading=reading)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def row(**values: Any) -> str:
    return json.dumps({"timestamp": 0, "input_length": 1, "output_length": 1, **values}) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN + "0,1,1\n1,1\n2,1,1\n", "row 3: 2 fields where the header has 3"),
        (OWN + "0,1,1\n1,1,1,1\n2,1,1\n", "row 3: 4 fields where the header has 3"),
        (OWN + "0,1,1\n1,1", "row 3: 2 fields where the header has 3"),
        (OWN + '0,1,1\n1,1,"1\n2,1,1\n3,1,1\n', "row 3: a value does not end on its line"),
        (OWN.strip() + ',model\n0,1,1,x\n1,1,1,"y\n', "row 3: a value does not end on its line"),
        ("prompt_tokens," + OWN + "1,0,2,1\n", "two columns are called prompt_tokens"),
        (OWN + "0,1,1\n\ufeff1,1,1\n", "row 3: a byte-order mark within the text"),
        (OWN + "0,true,1\n1,false,1\n", "column prompt_tokens holds true or false; numbers are needed"),
        (OWN + "0,True,1\n1,5,1\n", "row 2: prompt_tokens is 'True'"),
        (OWN + "0,1,1\n1,1_0,1\n", "row 3: prompt_tokens is '1_0'"),
        (OWN + "9e15,1,1\n9.000000000000001e15,1,1\n", "row 2: arrival_s is 9000000000000000.0; a"),
        (OWN + "0,1,1\n1e308,1,1\n", r"row 3: arrival_s is 1e+308"),
        (OWN + "0,9007199254740992,1\n", "row 2: prompt_tokens is 9007199254740992; a"),
        (OWN.strip() + ",priority\n0,1,1,high\n", "row 2: priority is 'high'"),
        (AZURE + "2023-11-16 18:15:46.68,1,1\nnow,1,1\n", "row 3: TIMESTAMP is 'now'; a date and time"),
        (AZURE + "1000-01-01 00:00:00,1,1\n", "row 2: TIMESTAMP is '1000-01-01 00:00:00'"),
        (AZURE + "2023-11-16 18:15:46,1,1\n9999-01-01 00:00:00,1,1\n", "row 3: TIMESTAMP is '9999-01"),
        (AZURE + "17000,1,1\n", "row 2: TIMESTAMP is 17000; a date and time"),
        (row(input_length=True) + row(timestamp=1000), "row 1: input_length is True"),
        (row(input_length=[1]), "row 1: input_length is [1]"),
        (row(timestamp={"a": 1}), "row 1: timestamp is {'a': 1}"),
        (row(timestamp=10**400), "row 1: timestamp is 1000"),
        (row(session_id=[1]), "row 1: session_id is [1]; text or a number"),
        ('{"timestamp": 1' + "0" * 5000 + "}", "row 1: not valid JSON (Exceeds the limit"),
        (row() + '{"timestamp": ' + "[" * 100_000 + "\n", "row 2: not valid JSON"),
        ("{}\n" * 10_000, "column arrival_s, prompt_tokens, output_tokens missing, found none"),
        ("".join(f'{{"k{number}": 1}}\n' for number in range(2_000)), "2,000 columns; at most 1,000"),
        ("a," * 2_000 + "\n1\n", "2,001 columns; at most 1,000 are read"),
        ("a\x1b[31m,b\n1,2\n", r"found a?[31m, b;"),
        ("\n" * 20_000, "empty file"),
        ("#\n" * 20_000 + OWN + "0,1,1\n", "more than 10,000 lines before the table"),
        ("a,b\0\n1,2\n", "row 1: a zero byte"),
    ],
)  # fmt: skip
def test_what_is_no_trace_is_one_short_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)

    assert message in refused(path)


def test_a_json_array_is_one_sentence_however_large(tmp_path: Path) -> None:
    path = tmp_path / "array.json"
    path.write_text("[" + ",\n".join([row().strip()] * 50_000) + "]")

    message = refused(path)

    assert message == "array.json: a JSON array; one object a line is needed, as `jq -c '.[]'` writes them"


def test_headers_may_have_spaces_and_blank_lines_before_them(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "\n \n" + BURSTGPT.replace(",", " , ") + "5,ChatGPT,472,18,490,API log\n7,GPT-4,4,x,5,API log\n"
    )

    assert "row 5: Response tokens is 'x'" in refused(path)
    path.write_text(path.read_text().replace("x", "1"))
    assert read_trace(path).prompt_tokens.tolist() == [472, 4]


def test_equal_arrivals_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("request_id," + OWN + "5,0,15,1\n3,0,13,1\n9,1,19,1\n")

    trace = read_trace(path)

    assert trace.request_id.tolist() == [3, 5, 9]
    assert trace.prompt_tokens.tolist() == [13, 15, 19]


def test_floats_are_read_to_the_last_digit(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(OWN + "0.30000000000000004,1,1\n")

    assert read_trace(path).arrival_s.tolist() == [0.30000000000000004]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"arrival_s": pa.array([0, 1500], pa.timestamp("ms"))}, "column arrival_s holds dates; numbers"),
        ({"arrival_s": pa.array([0, 1], pa.date32())}, "row 1: arrival_s is datetime.date(1970, 1, 1)"),
        ({"arrival_s": [[0.0], [1.0]]}, "row 1: arrival_s is array([0.])"),
        ({"prompt_tokens": [b"12", b"13"]}, "row 1: prompt_tokens is b'12'"),
        ({"prompt_tokens": [True, False]}, "column prompt_tokens holds true or false"),
        ({"prompt_tokens": pa.array([1, 2], pa.duration("s"))}, "column prompt_tokens holds durations"),
    ],
)
def test_parquet_columns_that_are_no_numbers_are_refused(
    tmp_path: Path, column: dict[str, Any], message: str
) -> None:
    path = tmp_path / "trace.parquet"
    pq.write_table(
        pa.table({"arrival_s": [0.0, 1.0], "prompt_tokens": [1, 2], "output_tokens": [1, 1], **column}), path
    )

    assert message in refused(path)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_durations_are_read_with_their_unit(tmp_path: Path, unit: str) -> None:
    per_s = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    path = tmp_path / "trace.parquet"
    arrivals = pa.array([0, 3 * per_s], pa.duration(unit))
    pq.write_table(pa.table({"arrival_s": arrivals, "prompt_tokens": [1, 2], "output_tokens": [1, 1]}), path)

    assert read_trace(path).arrival_s.tolist() == [0.0, 3.0]


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    assert "is a named pipe; a regular file is needed" in refused(tmp_path / "pipe")
    assert "is a device; a regular file is needed" in refused(Path("/dev/zero"))


BOMBS = {
    "zeros": gzip.compress(b"\0" * 20_000_000),
    "rows": gzip.compress((OWN + "1,1,1\n" * 1_000_000).encode()),
    "objects": gzip.compress(b"{}\n" * 1_000_000),
    "line": gzip.compress((OWN + "1" * 20_000_000).encode()),
    "plain": (OWN + "1,1,1\n" * 100_000).encode(),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_unpacks_beyond_the_limits_is_refused_in_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(BOMBS[name])

    tracemalloc.start()
    message = refused(path, SMALL)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert "zero byte" in message or "--max-trace-" in message
    assert peak_bytes < 8_000_000


def test_a_parquet_file_is_held_to_what_it_unpacks_to(tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    zeros = pa.array([0] * 900)
    lists = pa.ListArray.from_arrays(list(range(0, 900_001, 1_000)), pa.array([7] * 900_000))
    columns = {"arrival_s": zeros, "prompt_tokens": zeros, "output_tokens": zeros}

    pq.write_table(pa.table({**columns, "hash_ids": lists}), path)
    assert path.stat().st_size < 50_000
    assert "more than 100,000 bytes when unpacked; --max-trace-bytes" in refused(path, SMALL)
    pq.write_table(pa.table({name: pa.array([0] * 1_001) for name in columns}), path)
    assert "more than 1,000 rows; --max-trace-rows" in refused(path, SMALL)


def test_limits_can_be_raised(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress((OWN + "1,1,1\n" * 5_000).encode()))

    assert "more than 1,000 rows" in refused(path, SMALL)
    assert len(read_trace(path, reading=Reading(limits=Limits(100_000, 6_000)))) == 5_000


def test_a_file_is_real_only_if_its_bytes_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "BurstGPT_1.csv"
    path.write_text(BURSTGPT + "5,ChatGPT,472,18,490,API log\n")
    guess = read_trace(path).source

    monkeypatch.setattr(
        "batchsim.workload.formats.KNOWN_FILES", {guess.sha256: "BurstGPT_1.csv", **KNOWN_FILES}
    )

    assert guess.kind == "published format, origin not known"
    assert read_trace(path).source.kind == "real"


def test_one_row_is_described_without_a_number_that_json_has_not(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(OWN + "0,5,7\n")

    info = trace_info(read_trace(path))

    assert json.loads(json.dumps(info, allow_nan=False))["mean_rate_per_s"] is None
