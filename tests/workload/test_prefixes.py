"""Ids of full prompt blocks, out of the columns that traces have for them."""

import re
from pathlib import Path

import numpy as np
import pytest

from batchsim.errors import TraceError
from batchsim.workload.formats import read_trace, write_trace
from batchsim.workload.prefixes import PrefixIds, prefix_ids
from batchsim.workload.request import Source, Workload
from tests.shared_data import shared_path


def workload(prompt_tokens: list[int], **extra: list[object]) -> Workload:
    columns = {}
    for name, values in extra.items():
        columns[name] = np.empty(len(values), dtype=object)
        columns[name][:] = values
    num = len(prompt_tokens)
    return Workload(
        np.arange(num), np.zeros(num), np.array(prompt_tokens), np.ones(num, int), columns, Source("a trace")
    )


def num_known(found: PrefixIds) -> list[int]:
    """How many of each request's ids a cache without limits knows when it arrives."""
    cached: set[int] = set()
    counts = []
    for ids in found.ids:
        counts.append(next((num for num, id_ in enumerate(ids) if id_ not in cached), len(ids)))
        cached.update(ids)
    return counts


def share_known(found: PrefixIds) -> float:
    return sum(num_known(found)) / sum(len(ids) for ids in found.ids)


def test_a_workload_without_ids_has_none() -> None:
    assert prefix_ids(workload([5])) is None


@pytest.mark.parametrize(("name", "tokens"), [("hash_ids", 512), ("hash_ids_16", 16), ("prefix_ids", 16)])
def test_the_column_says_how_many_tokens_an_id_covers(name: str, tokens: int) -> None:
    found = prefix_ids(workload([2 * tokens], **{name: [[7, 8]]}))

    assert found == PrefixIds(tokens, [[7, 8]])


def test_only_full_blocks_have_an_id() -> None:
    found = prefix_ids(workload([1023, 1024, 1025, 100], hash_ids=[[1, 2], [1, 3], [1, 3, 4], [5]]))

    assert found is not None
    assert found.ids == [[1], [1, 3], [1, 3], []]


def test_ids_come_back_from_parquet_as_plain_numbers(tmp_path: Path) -> None:
    write_trace(workload([40, 16], hash_ids_16=[[1, 2], []]), tmp_path / "own.parquet")

    found = prefix_ids(read_trace(tmp_path / "own.parquet"))

    assert found == PrefixIds(16, [[1, 2], []])
    assert type(found.ids[0][0]) is int


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (float("nan"), "a trace, request 1: hash_ids is missing; a list of whole numbers is needed"),
        ([0.5], "a trace, request 1: hash_ids is [0.5]; a list of whole numbers is needed"),
        ("[1]", "a trace, request 1: hash_ids is '[1]'; a list of whole numbers is needed"),
        (
            [1, 2, 3, 4, 5],
            "a trace, request 1: hash_ids has 5 ids for 600 prompt tokens; "
            "at 512 tokens each, 2 are possible",
        ),
    ],
)
def test_a_value_that_cannot_be_is_one_sentence_with_its_request(ids: object, message: str) -> None:
    with pytest.raises(TraceError, match=re.escape(message)):
        prefix_ids(workload([512, 600], hash_ids=[[1], ids]))


@pytest.mark.parametrize(
    ("name", "num_reusable", "share"),
    [("sharegpt-llama-3.1-8b-300-sps10", 19_520, 0.0759), ("sharegpt-qwen3-300-sps10", 20_448, 0.0790)],
)
def test_prompt_tokens_of_llmservingsim_can_be_reused(name: str, num_reusable: int, share: float) -> None:
    trace = read_trace(shared_path(f"groundtruth/llmservingsim/workloads/{name}.jsonl.gz"))

    found = prefix_ids(trace)

    assert found is not None
    assert [len(ids) for ids in found.ids] == (trace.prompt_tokens // 16).tolist()
    assert 16 * sum(num_known(found)) == num_reusable
    assert num_reusable / trace.prompt_tokens.sum() == pytest.approx(share, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "share_listed", "share_full"),
    [("mooncake_conversation", 0.366, 0.382), ("mooncake_synthetic", 0.640, 0.659)],
)
def test_blocks_of_mooncake_come_again(name: str, share_listed: float, share_full: float) -> None:
    trace = read_trace(shared_path(f"traces/{name}.jsonl.gz"))

    found = prefix_ids(trace)

    assert found is not None
    assert found.ids == [
        ids[: tokens // 512]
        for ids, tokens in zip(trace.extra["hash_ids"], trace.prompt_tokens.tolist(), strict=True)
    ]
    listed = PrefixIds(512, list(trace.extra["hash_ids"]))  # with the rests of prompts
    assert share_known(listed) == pytest.approx(share_listed, abs=5e-4)
    assert share_known(found) == pytest.approx(share_full, abs=5e-4)
