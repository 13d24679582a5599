"""What is written for other tools, read back by our readers of the same formats."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.workload.formats import Reading, read_trace
from batchsim.workload.prefixes import prefix_ids
from batchsim.workload.request import Kind, Source, Workload
from batchsim.workload.writers.foreign import FOREIGN, write_foreign

PROMPTS, OUTPUTS = [1100, 1536, 30], [7, 1, 500]


def trace(arrival_s: list[float], kind: Kind = "unknown", **extra: Any) -> Workload:
    columns = {"arrival_s": arrival_s, "prompt_tokens": PROMPTS, "output_tokens": OUTPUTS, **extra}
    return Workload.from_frame(pd.DataFrame(columns), Source("given", kind))


def ids(*rows: list[int]) -> list[list[int]]:
    return list(rows)


@pytest.mark.parametrize(
    ("name", "file", "reading"),
    [
        ("burstgpt", "a.csv", Reading()),
        ("burstgpt", "a.csv.gz", Reading()),
        ("mooncake", "a.jsonl", Reading(time_unit="ms")),
        ("mooncake", "a.jsonl.gz", Reading(time_unit="ms")),
        ("guidellm", "a.jsonl", Reading(time_unit="s")),
    ],
)
def test_requests_come_back_from_the_first_arrival_on(
    name: str, file: str, reading: Reading, tmp_path: Path
) -> None:
    write_foreign(trace([2.5, 3.125, 60.0]), tmp_path / file, name)

    back = read_trace(tmp_path / file, reading=reading)

    assert back.arrival_s.tolist() == [0.0, 0.625, 57.5]
    assert back.prompt_tokens.tolist() == PROMPTS
    assert back.output_tokens.tolist() == OUTPUTS


def test_burstgpt_has_the_columns_of_the_published_file_and_whole_seconds_where_it_can(
    tmp_path: Path,
) -> None:
    labels = {"model": ["GPT-4", "ChatGPT", "GPT-4"], "log_type": ["API log"] * 3}

    notices = write_foreign(trace([5.0, 7.0, 9.0], **labels), tmp_path / "a.csv", "burstgpt")

    assert (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()[:2] == [
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
        "0,GPT-4,1100,7,1107,API log",
    ]
    assert notices == ()
    back = read_trace(tmp_path / "a.csv")
    assert {key: back.extra[key].tolist() for key in labels} == labels


def test_burstgpt_has_its_lengths_where_loaders_that_count_columns_take_them(tmp_path: Path) -> None:
    labels = {"model": ["GPT-4"] * 3, "log_type": ["API log"] * 3, "session_id": ["a", "b", "a"]}

    write_foreign(trace([5.0, 7.0, 9.0], **labels), tmp_path / "a.csv", "burstgpt")

    rows = pd.read_csv(tmp_path / "a.csv").to_numpy().tolist()
    assert [row[2:4] for row in rows] == [list(pair) for pair in zip(PROMPTS, OUTPUTS, strict=True)]
    assert read_trace(tmp_path / "a.csv").extra["session_id"].tolist() == ["a", "b", "a"]


def test_burstgpt_says_what_it_does_not_know(tmp_path: Path) -> None:
    notices = " ".join(write_foreign(trace([0.0, 0.5, 1.0]), tmp_path / "a.csv", "burstgpt"))

    assert "has fractions of a second" in notices
    assert "Model and Log Type not known: 'unknown' stands there" in notices


def test_mooncake_rounds_to_milliseconds_and_says_by_how_much(tmp_path: Path) -> None:
    notices = write_foreign(trace([0.0, 1.0004, 2.0]), tmp_path / "a.jsonl", "mooncake")

    first = json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert first["timestamp"] == 1000
    assert "a.jsonl: as mooncake, arrivals are rounded to whole milliseconds, by 0.4 ms at most" in notices


def test_mooncake_keeps_who_shares_what_and_numbers_the_rest_of_a_prompt(tmp_path: Path) -> None:
    given = trace([0.0, 1.0, 2.0], hash_ids=ids([70, 80], [70, 90, 95], []))

    write_foreign(given, tmp_path / "a.jsonl", "mooncake")

    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["hash_ids"] for row in rows] == [[0, 1, 2], [0, 3, 4], [5]]  # as many as blocks, rounded up
    back = prefix_ids(read_trace(tmp_path / "a.jsonl", reading=Reading(time_unit="ms")))
    assert back is not None
    assert [list(row) for row in back.ids] == [[0, 1], [0, 3, 4], []]


def test_smaller_blocks_make_larger_ones_by_the_prompt_up_to_their_end(tmp_path: Path) -> None:
    shared, other = list(range(64)), [*range(40), *range(1000, 1056)]  # alike for 40 blocks of 16 tokens
    given = trace([0.0, 1.0, 2.0], hash_ids_16=ids([*shared, 2000, 2001, 2002, 2003], other, [0]))

    notices = write_foreign(given, tmp_path / "a.jsonl", "mooncake")

    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["hash_ids"] for row in rows] == [[0, 1, 2], [0, 3, 4], [5]]
    assert any("share whole blocks of 512 tokens, not of 16" in sentence for sentence in notices)


def test_blocks_that_do_not_fit_into_each_other_are_told_and_left_out(tmp_path: Path) -> None:
    given = trace([0.0, 1.0, 2.0], hash_ids_24=ids([1] * 45, [1] * 64, [1]))

    notices = write_foreign(given, tmp_path / "a.jsonl", "mooncake")

    assert any("prefix ids of 24 tokens do not make blocks of 512" in sentence for sentence in notices)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({id_ for row in rows for id_ in row["hash_ids"]}) == 3 + 3 + 1


def test_mooncake_carries_sessions_and_delays(tmp_path: Path) -> None:
    given = trace([0.0, 1.0, 2.0], session_id=["a", "b", "a"], delay_s=[np.nan, np.nan, 0.75])

    notices = write_foreign(given, tmp_path / "a.jsonl", "mooncake")

    back = read_trace(tmp_path / "a.jsonl", reading=Reading(time_unit="ms"))
    assert back.extra["session_id"].tolist() == ["a", "b", "a"]
    assert np.array_equal(back.extra["delay_s"], [np.nan, np.nan, 0.75], equal_nan=True)
    assert not any("cannot be carried" in sentence for sentence in notices)


@pytest.mark.parametrize(
    ("given", "written"), [([3, 11, 3], ["3", "11", "3"]), ([3.0, np.nan, 3.0], ["3", None, "3"])]
)
def test_sessions_of_mooncake_are_text(given: list[float], written: list[str | None], tmp_path: Path) -> None:
    write_foreign(trace([0.0, 1.0, 2.0], session_id=given), tmp_path / "a.jsonl", "mooncake")

    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row.get("session_id") for row in rows] == written


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_format_has_no_place_for_is_named(name: str, tmp_path: Path) -> None:
    given = trace([0.0, 1.0, 2.0], "synthetic", priority=[1, 0, 2], tenant=["a", "a", "b"])
    given = given.take(np.array([0, 2]))

    notices = write_foreign(given, tmp_path / f"a{FOREIGN[name].suffix}", name)

    file = f"a{FOREIGN[name].suffix}: as {name},"
    assert f"{file} priority, tenant, request_id cannot be carried" in notices
    assert any("that its requests are synthetic has no place in it" in sentence for sentence in notices)


def test_a_name_that_says_synthetic_is_read_as_such(tmp_path: Path) -> None:
    given = trace([0.0, 1.0, 2.0], "synthetic", model=["m"] * 3, log_type=["l"] * 3)

    notices = write_foreign(given, tmp_path / "synthetic.csv", "burstgpt")

    assert notices == ()
    assert read_trace(tmp_path / "synthetic.csv").source.kind == "synthetic"


@pytest.mark.parametrize("file", ["a.json", "a.csv", "a", "a.jsonl.zip"])
def test_a_file_is_named_for_what_is_in_it(file: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mooncake is written as \.jsonl or \.jsonl\.gz"):
        write_foreign(trace([0.0, 1.0, 2.0]), tmp_path / file, "mooncake")


def test_the_same_requests_make_the_same_bytes(tmp_path: Path) -> None:
    for file in ("one.jsonl.gz", "two.jsonl.gz"):
        write_foreign(trace([0.0, 1.0, 2.0]), tmp_path / file, "guidellm")

    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()
