"""Formats that share column names: told apart by the others, by values, by options, and never silently."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchsim.errors import ConfigError, TraceError
from batchsim.study.run import simulate
from batchsim.workload.formats import Reading, read_trace
from batchsim.workload.prefixes import prefix_ids

BAILIAN = [
    {"chat_id": 7, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 64, "output_length": 9},
    {"chat_id": 9, "parent_chat_id": 7, "timestamp": 20.5, "input_length": 96, "output_length": 9},
    {"chat_id": 12, "parent_chat_id": -1, "timestamp": 30.5, "input_length": 32, "output_length": 9},
    {"chat_id": 13, "parent_chat_id": 9, "timestamp": 50.5, "input_length": 128, "output_length": 9},
]


def lines(folder: Path, rows: Sequence[Mapping[str, Any]], name: str = "trace.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mooncake(times: Sequence[float], **columns: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {
            "timestamp": time,
            "input_length": 1024,
            "output_length": 2,
            **{name: values[row] for name, values in columns.items()},
        }
        for row, time in enumerate(times)
    ]


def test_bailian_has_seconds_ids_of_16_tokens_and_sessions_by_parents(tmp_path: Path) -> None:
    rows = [
        {**row, "type": "text", "turn": 1, "hash_ids": list(range(int(row["input_length"]) // 16))}
        for row in BAILIAN
    ]

    trace = read_trace(lines(tmp_path, rows))

    assert trace.arrival_s.tolist() == [0.0, 20.0, 30.0, 50.0]
    assert trace.extra["session_id"].tolist() == [7, 7, 12, 7]
    assert trace.extra["log_type"].tolist() == ["text"] * 4
    found = prefix_ids(trace)
    assert found is not None
    assert found.tokens_per_id == 16
    assert [len(ids) for ids in found.ids] == [4, 6, 2, 8]
    assert trace.source.notices == (
        "trace.jsonl: read as bailian: timestamp in s, 16 tokens an id, sessions by parent_chat_id; "
        "--time-unit and --hash-block-tokens say otherwise",
    )


def test_a_parent_that_is_not_in_the_file_makes_a_session_all_the_same(tmp_path: Path) -> None:
    trace = read_trace(lines(tmp_path, [{**row, "parent_chat_id": 5} for row in BAILIAN]))

    assert trace.extra["session_id"].tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize(
    ("chats", "message"),
    [
        ([(1, 2), (2, 1)], "row 1: chat_id 1 is its own parent"),
        ([(1, 1)], "row 1: chat_id 1 is its own parent"),
        ([(1, -1), (1, -1)], "row 2: chat_id 1 stands twice"),
        ([(1, "x")], "row 1: parent_chat_id is 'x'"),
        ([([1], -1)], r"row 1: chat_id is \[1\]"),
    ],
)
def test_chats_that_cannot_be_are_refused(tmp_path: Path, chats: list[tuple[Any, Any]], message: str) -> None:
    rows = [
        {**row, "chat_id": chat, "parent_chat_id": parent}
        for row, (chat, parent) in zip(BAILIAN, chats, strict=False)
    ]

    with pytest.raises(TraceError, match=message):
        read_trace(lines(tmp_path, rows))


@pytest.mark.parametrize(
    "times",
    [[0.3 * row for row in range(200)], [row // 3 for row in range(200)], [0.0, 30.25, 61.5]],
    ids=["fractions", "whole", "few"],
)
def test_seconds_under_the_names_of_milliseconds_are_asked_about(tmp_path: Path, times: list[float]) -> None:
    path = lines(tmp_path, mooncake(times))

    with pytest.raises(TraceError, match=r"are not believed; say what it is in: --time-unit s \(") as caught:
        read_trace(path)

    assert "\n" not in str(caught.value)
    assert read_trace(path, reading=Reading("s")).arrival_s[-1] == times[-1]
    assert read_trace(path, reading=Reading("ms")).arrival_s[-1] == pytest.approx(times[-1] / 1000)


@pytest.mark.parametrize(
    "times", [[0, 10**12], [1_700_000_000_000_000_000 + 10**9 * row for row in (0, 1, 2)]]
)
def test_nanoseconds_under_the_names_of_milliseconds_are_asked_about(
    tmp_path: Path, times: list[int]
) -> None:
    with pytest.raises(TraceError, match=r"are not believed; say what it is in: .* --time-unit ns"):
        read_trace(lines(tmp_path, mooncake(times)))


def test_large_whole_times_keep_their_differences(tmp_path: Path) -> None:
    path = lines(tmp_path, mooncake([1_700_000_000_000_000_000 + 250_000_000 * row for row in range(4)]))

    assert read_trace(path, reading=Reading("ns")).arrival_s.tolist() == [0.0, 0.25, 0.5, 0.75]


def test_a_unit_that_the_column_names_cannot_be_another(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n")

    with pytest.raises(
        ConfigError, match=r"--time-unit .* is ms, but arrival_s of own.csv says its unit itself"
    ):
        read_trace(path, reading=Reading("ms"))
    with pytest.raises(
        ConfigError, match=r"--hash-block-tokens .* is 16, but own.csv has no column of prefix ids"
    ):
        read_trace(path, reading=Reading(hash_block_tokens=16))


def test_ids_of_any_size_are_inferred_or_said(tmp_path: Path) -> None:
    path = lines(tmp_path, mooncake([0, 1000], hash_ids=[[1], [1]]))

    inferred, said = read_trace(path), read_trace(path, reading=Reading(hash_block_tokens=512))

    assert prefix_ids(inferred) == prefix_ids(read_trace(path, reading=Reading(hash_block_tokens=1024)))
    assert "1024 tokens an id" in inferred.source.notices[0]
    found = prefix_ids(said)
    assert found is not None
    assert (found.tokens_per_id, list(found.ids)) == (512, [[1], [1]])


def test_ids_may_be_text_or_larger_than_any_number_of_a_column(tmp_path: Path) -> None:
    hexadecimal = read_trace(lines(tmp_path, mooncake([0, 1000], hash_ids=[["0xa", "f00"], ["0xa", "b"]])))
    large = read_trace(lines(tmp_path, mooncake([0, 1000], hash_ids=[[2**64, 5], [2**64, 6]])))

    for trace in (hexadecimal, large):
        found = prefix_ids(trace)
        assert found is not None
        assert list(found.ids) == [[0, 1], [0, 2]]
    assert "ids that are no numbers numbered" in hexadecimal.source.notices[0]


def test_a_few_ids_more_or_less_are_what_other_tools_write(tmp_path: Path) -> None:
    ids = [[1, 2, 3], [1], [1, 2], None]
    trace = read_trace(lines(tmp_path, mooncake([0, 1000, 2000, 3000], hash_ids=ids)))

    found = prefix_ids(trace)

    assert found is not None
    assert (found.tokens_per_id, list(found.ids)) == (512, [[1, 2], [1], [1, 2], []])
    assert "2 prompts with fewer or more ids than that" in trace.source.notices[0]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            [1, 2, 3, 4, 5],
            "hash_ids has 5 ids for 1024 prompt tokens; at 512 tokens each, 2 are possible; say how",
        ),
        ([True], r"hash_ids is [True]; a list of ids"),
        ([0.5], r"hash_ids is [0.5]; a list of ids"),
        ("ab", "hash_ids is 'ab'; a list of ids"),
    ],
)
def test_ids_that_cannot_be_are_refused_with_their_row(tmp_path: Path, ids: object, message: str) -> None:
    with pytest.raises(TraceError, match=re.escape(f"row 2: {message}")):
        read_trace(lines(tmp_path, mooncake([0, 1000], hash_ids=[[1, 2], ids])))


def test_a_turn_with_a_delay_comes_so_long_after_the_one_before_it(tmp_path: Path) -> None:
    rows = [
        {"session_id": "a", "timestamp": 0, "input_length": 5, "output_length": 2},
        {"session_id": "a", "delay": 500, "input_length": 5, "output_length": 2},
        {"session_id": "b", "timestamp": 300, "input_length": 5, "output_length": 2},
    ]

    trace = read_trace(lines(tmp_path, rows))

    assert trace.arrival_s.tolist() == [0.0, 0.3, 0.5]
    np.testing.assert_array_equal(trace.extra["delay_s"], [np.nan, np.nan, 0.5])
    assert "turns without timestamp" in trace.source.notices[0]
    with pytest.raises(
        TraceError, match="row 2: timestamp is missing; the first turn of a session needs one"
    ):
        read_trace(lines(tmp_path, [{**row, "session_id": number} for number, row in enumerate(rows)]))


def test_columns_that_are_left_out_are_named(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens,NumImages\n2024-05-10 00:00:00,1,1,3\n")

    assert read_trace(path).source.notices == ("azure.csv: left out: NumImages",)


@pytest.mark.parametrize("size", [16, 512])
def test_the_requests_of_a_run_replay_with_their_prefixes_and_sessions(tmp_path: Path, size: int) -> None:
    num_ids = 1024 // size
    rows = mooncake(
        [0, 1000, 2000],
        session_id=["a", "b", "a"],
        hash_ids=[list(range(num_ids)), list(range(90, 90 + num_ids)), list(range(num_ids))],
    )
    config = {"policy": {"preset": "vllm_v1"}, "workload": {"hash_block_tokens": size}}
    trace = str(lines(tmp_path, rows))
    first = simulate(config, overrides={"workload.trace": trace})
    first.save(tmp_path / "run")

    again = simulate(
        {"policy": {"preset": "vllm_v1"}, "workload": {"trace": str(tmp_path / "run" / "requests.parquet")}}
    )

    assert first.requests["cached_tokens"].tolist() == [0, 0, 1008]
    pd.testing.assert_frame_equal(again.requests, first.requests)
    assert again.manifest["workload"]["notices"] == [
        "requests.parquet: the requests of a run; what became of them is left out"
    ]
