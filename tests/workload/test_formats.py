"""Every format comes in by its columns; every fault is one sentence with file and row."""

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchsim.errors import ConfigError, TraceError
from batchsim.workload.formats import FAILED, NO_PROMPT, read_trace, write_trace
from batchsim.workload.request import PUBLISHED_FORMAT, Source, Workload
from tests.shared_data import shared_path

BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,0,1087,API log
45,GPT-4,0,7,7,API log
118,GPT-4,417,276,693,API log
"""


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_burstgpt_starts_at_zero_and_counts_what_it_drops(tmp_path: Path) -> None:
    workload = read_trace(written(tmp_path, BURSTGPT))

    assert workload.arrival_s.tolist() == [0.0, 113.0]
    assert workload.prompt_tokens.tolist() == [472, 417]
    assert workload.output_tokens.tolist() == [18, 276]
    assert workload.extra["model"].tolist() == ["ChatGPT", "GPT-4"]
    assert workload.extra["log_type"].tolist() == ["Conversation log", "API log"]
    assert workload.source.dropped == {FAILED: 1, NO_PROMPT: 1}
    assert workload.source.kind == "published format, origin not known"


def test_time_starts_at_the_first_request_kept(tmp_path: Path) -> None:
    text = BURSTGPT.replace("5,ChatGPT,472,18,", "5,ChatGPT,472,0,")

    workload = read_trace(written(tmp_path, text))

    assert workload.arrival_s.tolist() == [0.0]


def test_burstgpt_with_sessions_is_read_by_column_name(tmp_path: Path) -> None:
    text = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "19440110,17,2.5,GPT-4,10,20,30,Conversation log\n"
        "19440111,,1.5,ChatGPT,11,21,32,API log\n"
    )

    workload = read_trace(written(tmp_path, text))

    assert workload.arrival_s.tolist() == [0.0, 1.0]
    assert workload.extra["session_id"].tolist()[0] == "17"
    assert workload.output_tokens.tolist() == [20, 21]


def test_azure_wall_clock_times_keep_their_seven_decimals(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 23:59:59.9799600,4808,10\n"
        "2023-11-17 00:00:00,3180,8\n"
        "2023-11-17 00:00:00.0319601,3180,8\n"
    )

    workload = read_trace(written(tmp_path, text))

    np.testing.assert_allclose(workload.arrival_s, [0.0, 0.02004, 0.0520001], rtol=0, atol=1e-12)


def test_mooncake_milliseconds_become_seconds_and_hashes_stay(tmp_path: Path) -> None:
    text = (
        '{"timestamp": 1000, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}\n'
        '{"timestamp": 4001, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14, 15]}\n'
    )

    workload = read_trace(written(tmp_path, text, "trace.txt"))

    assert workload.arrival_s.tolist() == [0.0, 3.001]
    assert workload.extra["hash_ids"].tolist() == [[0, 1], [0, 14, 15]]


@pytest.mark.parametrize(
    "text",
    [
        "arrival_time_ns,input_toks,output_toks\n500000000,7,3\n2000000000,8,4\n",
        '{"input_toks": 7, "output_toks": 3, "arrival_time_ns": 500000000}\n'
        '{"input_toks": 8, "output_toks": 4, "arrival_time_ns": 2000000000}\n',
    ],
)
def test_llmservingsim_nanoseconds_come_as_csv_or_json_lines(tmp_path: Path, text: str) -> None:
    workload = read_trace(written(tmp_path, text))

    assert workload.arrival_s.tolist() == [0.0, 1.5]
    assert workload.output_tokens.tolist() == [3, 4]
    assert workload.source.kind == "synthetic"


def test_llmservingsim_block_hashes_stay(tmp_path: Path) -> None:
    text = '{"input_toks": 33, "output_toks": 3, "arrival_time_ns": 5, "hash_ids_16": [1, 2]}\n'

    workload = read_trace(written(tmp_path, text))

    assert workload.extra["hash_ids_16"].tolist() == [[1, 2]]


def test_own_format_is_not_shifted_but_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, "output_tokens,arrival_s,prompt_tokens,session_id\n3,2.5,7,9\n4,4.0,8,9\n")

    workload = read_trace(path)

    assert workload.arrival_s.tolist() == [2.5, 4.0]
    assert workload.extra["session_id"].tolist() == [9, 9]
    assert workload.source.kind == "unknown"
    assert workload.source.notices == (
        "trace.csv: the first request arrives at 2.5 s, not at 0; times are kept",
    )


def test_rows_that_go_back_in_time_are_sorted_with_a_notice(tmp_path: Path) -> None:
    path = written(tmp_path, "arrival_s,prompt_tokens,output_tokens\n3,1,1\n0,2,2\n")

    workload = read_trace(path)

    assert workload.prompt_tokens.tolist() == [2, 1]
    assert workload.request_id.tolist() == [1, 0]
    assert workload.source.notices == ("trace.csv: 1 rows go back in time; sorted by arrival",)


@pytest.mark.parametrize("wrapped", [lambda data: data, gzip.compress])
def test_windows_line_ends_byte_order_mark_and_gzip_are_understood(tmp_path: Path, wrapped: object) -> None:
    path = tmp_path / "whatever.dat"
    data = b"\xef\xbb\xbf" + BURSTGPT.replace("\n", "\r\n").encode()
    path.write_bytes(wrapped(data))  # type: ignore[operator]

    workload = read_trace(path)

    assert workload.extra["log_type"].tolist() == ["Conversation log", "API log"]


@pytest.mark.parametrize("kind", ["real", "synthetic", "unknown"])
@pytest.mark.parametrize("name", ["own.csv", "own.csv.gz", "own.parquet"])
def test_what_is_written_is_read_back_with_its_kind(tmp_path: Path, name: str, kind: str) -> None:
    workload = Workload(
        request_id=np.array([7, 3]),
        arrival_s=np.array([0.0, 0.1 + 0.2]),
        prompt_tokens=np.array([5, 6]),
        output_tokens=np.array([1, 2]),
        extra={"model": np.array(["a", "b"], dtype=object), "turn": np.array([1, 2])},
        source=Source("a source,\nwith a line end", kind),  # type: ignore[arg-type]
    )

    write_trace(workload, tmp_path / name)
    again = read_trace(tmp_path / name)

    assert again.to_frame().to_dict("list") == workload.to_frame().to_dict("list")
    assert again.source.kind == kind


def test_the_same_workload_gives_the_same_bytes(tmp_path: Path) -> None:
    workload = read_trace(written(tmp_path, BURSTGPT))

    write_trace(workload, tmp_path / "a.csv.gz")
    write_trace(workload, tmp_path / "b.csv.gz")

    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


def test_lists_go_to_parquet_and_not_to_csv(tmp_path: Path) -> None:
    text = '{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [0, 1]}\n'
    workload = read_trace(written(tmp_path, text))

    write_trace(workload, tmp_path / "own.parquet")

    assert list(read_trace(tmp_path / "own.parquet").extra["hash_ids"][0]) == [0, 1]
    with pytest.raises(ConfigError, match=r"hash_ids holds lists, .* write .parquet"):
        write_trace(workload, tmp_path / "own.csv")


def test_a_comment_on_top_makes_any_format_synthetic(tmp_path: Path) -> None:
    workload = read_trace(written(tmp_path, "# synthetic: made by hand\n# more\n" + BURSTGPT))

    assert workload.source.kind == "synthetic"


def test_a_file_named_synthetic_is_never_real(tmp_path: Path) -> None:
    workload = read_trace(written(tmp_path, "# real: it claims\n" + BURSTGPT, "mooncake_synthetic.csv"))

    assert workload.source.kind == "synthetic"


OWN = "arrival_s,prompt_tokens,output_tokens\n"
JSON = '{"timestamp": 0, "input_length": 1, "output_length": 1}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"trace.csv: empty file"),
        ("\n\n", r"trace.csv: empty file"),
        ("# synthetic: nothing\n", r"trace.csv: empty file"),
        (OWN, r"trace.csv: a header but no rows"),
        ("Timestamp,Model,Request tokens\n1,a,2\n", r"column Response tokens missing, .* understood are"),
        ("a,b\n1,2\n", r"missing, found a, b; understood are batchsim \(arrival_s"),
        (OWN + "0,1,1\n1,-2,1\n", r"trace.csv, row 3: prompt_tokens is -2; a number >= 1 and <= 1e\+09"),
        (OWN + "0,1,1\n1,,1\n", r"trace.csv, row 3: prompt_tokens is missing"),
        (OWN + "0,1,1\n1,nan,1\n", r"row 3: prompt_tokens is missing"),
        (OWN + "0,1,1\n1,many,1\n", r"row 3: prompt_tokens is 'many'"),
        (OWN + "0,1,1\n1,1e300,1\n", r"row 3: prompt_tokens is .*1e\+300"),
        (OWN + "0,1,1\n1,1.5,1\n", r"row 3: prompt_tokens is .*1.5.*; a whole number"),
        (OWN + "0,1,1\n1,1,0\n", r"row 3: output_tokens is 0; a number >= 1"),
        (OWN + "0,1,1\n-1,1,1\n", r"row 3: arrival_s is .*-1"),
        (OWN + "0,1,1\ninf,1,1\n", r"row 3: arrival_s is .*inf"),
        (OWN + "0,1,1\n\n2,1,1\n", r"row 3: arrival_s is missing"),
        (OWN + "0,1,1\n1,1,1,1\n", r"row 3: 4 fields where the header has 3"),
        (OWN + "0,1,1,5\n1,1,1,5\n", r"row 2: 4 fields where the header has 3"),
        ("# synthetic: x\n" + OWN + "0,1,1\n1,1,1,1\n", r"row 4: 4 fields where the header has 3"),
        ("# synthetic: x\n" + OWN + "0,1,1\n1,no,1\n", r"row 4: prompt_tokens is 'no'"),
        (BURSTGPT + "x,GPT-4,1,1,2,API log\n", r"row 6: Timestamp is 'x'"),
        (BURSTGPT + "200,GPT-4,-3,1,2,API log\n", r"row 6: Request tokens is .*-3"),
        (BURSTGPT.partition("\n")[0] + "\n5,GPT-4,3,0,3,API log\n", r"no row has prompt and output tokens"),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n",
            r"row 2: TIMESTAMP is 'yesterday'; a date",
        ),
        (JSON + '{"timest\n', r"row 2: not valid JSON"),
        (JSON + "7\n", r"row 2: a JSON object is needed, found 7"),
        (JSON + '{"timestamp": 1}\n', r"row 2: input_length is missing"),
    ],
)
def test_a_broken_file_is_one_sentence_with_its_row(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)

    with pytest.raises(TraceError, match=message) as caught:
        read_trace(path)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(BURSTGPT.encode(), mtime=0)[:-20], r"trace.csv: broken gzip file"),
        (b"\x1f\x8bnothing", r"trace.csv: broken gzip file"),
        (b"PAR1 and no more", r"trace.csv: broken Parquet file"),
        (BURSTGPT.encode() + b"7,caf\xe9,1,1,2,API log\n", r"trace.csv, row 6: not UTF-8 text \(byte 0xe9\)"),
    ],
)
def test_broken_bytes_are_one_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(data)

    with pytest.raises(TraceError, match=message) as caught:
        read_trace(path)

    assert "\n" not in str(caught.value)


def test_an_absent_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"absent.csv: cannot be read \(No such file"):
        read_trace(tmp_path / "absent.csv")
    with pytest.raises(TraceError, match=r"is a directory"):
        read_trace(tmp_path)


def test_an_asked_format_is_not_replaced_by_another(tmp_path: Path) -> None:
    path = written(tmp_path, BURSTGPT)

    with pytest.raises(TraceError, match="column TIMESTAMP"):
        read_trace(path, format="azure")
    with pytest.raises(ConfigError, match="'csv' is unknown; known are batchsim, burstgpt"):
        read_trace(path, format="csv")


def test_only_known_suffixes_are_written(tmp_path: Path) -> None:
    workload = read_trace(written(tmp_path, BURSTGPT))

    with pytest.raises(ConfigError, match=r"\.txt; use .csv, .csv.gz or .parquet"):
        write_trace(workload, tmp_path / "own.txt")


@pytest.mark.parametrize(
    ("name", "num_rows", "num_failed", "span_s", "kind"),
    [
        ("burstgpt1_head400.csv", 383, 17, 37_269, PUBLISHED_FORMAT),
        ("azure_llm_2023_code.csv", 8_819, 0, 3_435.9, PUBLISHED_FORMAT),
        ("azure_llm_2023_conv.csv", 19_366, 0, 3_501.7, PUBLISHED_FORMAT),
        ("mooncake_conversation.jsonl.gz", 12_031, 0, 3_537.0, PUBLISHED_FORMAT),
        ("mooncake_synthetic.jsonl.gz", 3_993, 0, 1_022.0, "synthetic"),
        ("sharegpt_llama31_8b_300_lengths.csv", 300, 0, 29.1, "synthetic"),
    ],
)
def test_public_traces_have_their_known_size(
    name: str, num_rows: int, num_failed: int, span_s: float, kind: str
) -> None:
    path = shared_path(f"traces/{name}")

    workload = read_trace(path)

    assert len(workload) == num_rows
    assert sum(workload.source.dropped.values()) == num_failed
    assert workload.arrival_s[0] == 0
    assert workload.arrival_s[-1] == pytest.approx(span_s, abs=0.06)
    assert workload.source.kind == kind


FORMULAS = st.sampled_from(["=", "+", "-", "@", "\t", "'", "'=", "''-", "a"])


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_text_that_looks_like_a_formula_is_marked_in_csv_and_read_as_it_was(
    suffix: str, data: st.DataObject, tmp_path: Path
) -> None:
    texts = st.builds(lambda start, rest: f"{start}x{rest}", FORMULAS, st.text("=+-@'1\", ", max_size=4))
    cells = data.draw(st.lists(texts, min_size=3, max_size=3))
    shifts = data.draw(st.lists(st.integers(-9, 9) | st.floats(-1e9, 1e9), min_size=3, max_size=3))
    extra = {"session_id": np.array(cells, dtype=object), "=shift": np.array(shifts, dtype=np.float64)}
    workload = Workload(np.arange(3), np.arange(3.0), np.array([5, 6, 7]), np.array([1, 2, 3]), extra)

    write_trace(workload, tmp_path / f"own.{suffix}")
    again = read_trace(tmp_path / f"own.{suffix}")

    assert again.to_frame().to_dict("list") == workload.to_frame().to_dict("list")
    if suffix == "csv":
        header, *rows = csv.reader(
            io.StringIO((tmp_path / "own.csv").read_text(encoding="utf-8"), newline="")
        )
        assert header[-1] == "'=shift"
        assert [row[-2][:1] for row in rows if row[-2][:1] in set("=+-@\t")] == []
        assert [float(row[-1]) for row in rows] == shifts
