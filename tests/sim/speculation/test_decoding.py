"""Steps of several tokens: blocks for drafts, and answers that go on after a preemption."""

import numpy as np
import pytest
import simpy

from batchsim.latency import LinearIterationLatency
from batchsim.sim.recording.step_log import StepLog
from batchsim.sim.request import Request
from batchsim.sim.speculation.acceptance import Speculation, acceptance_by_position
from batchsim.sim.speculation.decoding import SpeculativeDecoding
from batchsim.study.run import simulate
from tests.sim.worlds import workload

LATENCY = LinearIterationLatency(0.01, 0.001, 0.0, 0.0003, 0.00001)


def decoding_of(
    *stored: tuple[int, int], num: int = 3, rate: float = 1.0
) -> tuple[SpeculativeDecoding, list[Request]]:
    """Sequences of so many stored tokens, and tokens left, in blocks of 4."""
    env = simpy.Environment()
    decoding = SpeculativeDecoding(4, Speculation(num, acceptance_by_position(rate, num)), StepLog(), 0)
    requests = []
    for number, (tokens, num_left) in enumerate(stored):
        request = Request(env, number, 0.0, tokens, 1)
        request.admission, request.blocks = number, -(-tokens // 4)
        decoding.join(request, tokens, num_left)
        requests.append(request)
    return decoding, requests


def test_a_step_needs_blocks_for_all_it_verifies() -> None:
    decoding, (request,) = decoding_of((4, 20))

    assert decoding.growth() == 1  # tokens 5 to 8
    assert decoding.advance(1) == 1
    assert (decoding.context_tokens, request.blocks) == (8, 2)


def test_blocks_of_rejected_drafts_are_kept() -> None:
    decoding, (request,) = decoding_of((3, 20), rate=0.0)

    taken = [decoding.advance(1) for _ in range(6)]

    assert taken == [1, 0, 1, 0, 0, 0]  # 3 + 4 tokens, 4 + 4, 5 + 4 ... 8 + 4
    assert request.offset + decoding.step == 9


def test_an_answer_needs_no_blocks_beyond_its_end() -> None:
    decoding, (request,) = decoding_of((4, 1))

    assert decoding.advance(1) == 1  # for one token, though 4 are verified
    assert decoding.take_finished() == [request]
    decoding, _ = decoding_of((4, 1), num=9)
    assert decoding.growth() == 1


def test_who_leaves_takes_the_blocks_that_nobody_else_needs() -> None:
    """Of 3 blocks wanted 2 are taken, for nobody in particular; the second needs 2, the first 1."""
    decoding, (first, second) = decoding_of((3, 20), (4, 20), num=4)
    assert [decoding.blocks_needed(one) for one in (first, second)] == [1, 2]
    decoding.taken = 2

    decoding.leave(second)

    assert (second.blocks, decoding.taken, decoding.growth()) == (2, 1, 0)


def test_a_sequence_that_took_its_blocks_leaves_with_them() -> None:
    decoding, (first, second) = decoding_of((4, 20), (4, 20))
    decoding.take(first)
    assert decoding.has_taken(first)
    assert not decoding.has_taken(second)

    decoding.leave(first)

    assert (first.blocks, decoding.taken, decoding.growth()) == (2, 0, 1)


def test_those_who_end_together_do_so_in_order_of_admission() -> None:
    decoding, (first, second) = decoding_of((3, 4), (9, 2))
    first.admission, second.admission = 2, 1

    decoding.advance(1)

    assert decoding.take_finished() == [second, first]
    assert (decoding.num, decoding.context_tokens, decoding.growth()) == (0, 0, 0)


@pytest.mark.parametrize("preset", ["vllm_v0_swap", "vllm_v1"])
def test_a_preempted_answer_goes_on_where_it_was(preset: str) -> None:
    config = {
        "policy": {"preset": preset},
        "engine": {
            "num_kv_blocks": 30,
            "block_size": 4,
            "speculation": {"num_speculative_tokens": 3, "acceptance": 0.6},
        },
    }
    result = simulate(config, workload([0.0, 0.01, 0.02], 60, 20), latency=LATENCY)
    drafts = Speculation(3, acceptance_by_position(0.6, 3))

    assert result.summary["num_preemptions"] > 0
    for request_id, steps in result.decode_steps.groupby("request_id"):
        lots = np.frombuffer(drafts.accepted(int(request_id), 59), np.uint8)
        if preset == "vllm_v0_swap":  # all but the first token come of steps
            before = steps["tokens"].cumsum() - steps["tokens"]
            assert steps["accepted"].tolist() == lots[before].tolist()
            assert steps["tokens"].sum() == 59
        else:  # a prompt computed again gives a token, too
            again = result.preemptions["request_id"].eq(request_id).sum()
            assert 59 - again <= steps["tokens"].sum() <= 59


def test_drafts_count_in_the_token_budget() -> None:
    """Of 64 tokens, 10 decodes of 4 leave 24 for the prompt that comes then."""
    config = {
        "policy": {"preset": "vllm_v1", "batch_size": 16, "batching": {"max_num_batched_tokens": 64}},
        "engine": {"num_kv_blocks": 1000, "speculation": {"num_speculative_tokens": 3, "acceptance": 0.5}},
    }
    requests = workload([0.0] * 10 + [0.08], [100] * 10 + [2], [6] * 10 + [100])

    spans = simulate(config, requests, latency=LATENCY).iterations

    assert spans.loc[spans["decode_seqs"] == 10, "prefill_tokens"].max() == 24
