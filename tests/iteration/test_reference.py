"""The engine and a plain reference engine agree on random small worlds, token for token.

All times are multiples of a power of two, so that sums are exact and an arrival at a
boundary is one for both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchsim.records import Records
from tests.iteration.reference import Coefficients, Log, Orca, Rule, Sarathi, VllmV0, VllmV1, simulate
from tests.iteration.worlds import Trace, assert_iterations, assert_times, requests_of, run_plainly


@dataclass(frozen=True)
class World:
    trace: Trace
    latency: Coefficients
    num_blocks: int
    block_size: int
    max_num_seqs: int
    budget: int  # tokens in an iteration, at least max_num_seqs


SOME_SECONDS = st.sampled_from([0.0, 1 / 64, 1 / 16, 1 / 4])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    gaps_s = st.sampled_from([0.0, 0.0, 0.25, 1.0, 3.5, 40.0])
    lengths = st.tuples(gaps_s, st.integers(1, 14), st.integers(1, 12))
    trace, now_s = [], 0.0
    for gap_s, prompt_tokens, output_tokens in draw(st.lists(lengths, min_size=1, max_size=16)):
        now_s += gap_s
        trace.append((now_s, prompt_tokens, output_tokens))
    max_num_seqs = draw(st.integers(1, 5))
    return World(
        trace,
        Coefficients(draw(st.sampled_from([0.25, 1.0])), *(draw(SOME_SECONDS) for _ in range(5))),
        num_blocks=draw(st.integers(3, 16)),
        block_size=draw(st.integers(1, 4)),
        max_num_seqs=max_num_seqs,
        budget=max_num_seqs + draw(st.integers(0, 10)),
    )


@dataclass(frozen=True)
class Case:
    """A preset with parameters, and the rule that should do the same within a token budget."""

    preset: str
    rule: Callable[[int], Rule]
    batching: dict[str, Any]
    swap_block_s: float = 0.0


CASES = {
    "v0": Case("vllm_v0", VllmV0, {}),
    "v0-watermark": Case("vllm_v0", lambda budget: VllmV0(budget, watermark=0.2), {"watermark": 0.2}),
    "v0-swap": Case(
        "vllm_v0_swap", lambda budget: VllmV0(budget, swap_s_per_block=0.5), {}, swap_block_s=0.25
    ),
    "v0-swap-watermark": Case(
        "vllm_v0_swap",
        lambda budget: VllmV0(budget, watermark=0.2, swap_s_per_block=0.5),
        {"watermark": 0.2},
        swap_block_s=0.25,
    ),
    "v1": Case("vllm_v1", VllmV1, {}),
    "v1-threshold": Case(
        "vllm_v1",
        lambda budget: VllmV1(budget, long_prefill_threshold=3),
        {"long_prefill_threshold": 3},
    ),
    "v1-by-chunk": Case(
        "vllm_v1", lambda budget: VllmV1(budget, checks_whole_prompt=False), {"allocate": "chunk"}
    ),
    "v1-before-0.19": Case(
        "vllm_v1",
        lambda budget: VllmV1(budget, 3, checks_whole_prompt=False, spares_single=False),
        {"long_prefill_threshold": 3, "engine_version": "0.18.0"},
    ),
    "sarathi": Case("sarathi", Sarathi, {}),
    "orca-max": Case("orca", lambda _: Orca("max", max_tokens=12), {"reserve": "max", "max_tokens": 12}),
    "orca-outgrown": Case("orca", lambda _: Orca("max", max_tokens=3), {"reserve": "max", "max_tokens": 3}),
    "orca-pow2": Case("orca", lambda _: Orca("pow2"), {"reserve": "pow2"}),
    "orca-predicted": Case("orca", lambda _: Orca("predicted"), {"reserve": "predicted"}),
}


def records_of(world: World, case: Case, *, is_exact: bool) -> Records:
    budget = {} if case.preset == "orca" else {"max_num_batched_tokens": world.budget}
    return run_plainly(
        requests_of(world.trace),
        world.latency,
        {"preset": case.preset, "batch_size": world.max_num_seqs, "batching": {**budget, **case.batching}},
        world.num_blocks,
        block_size=world.block_size,
        swap_block_s=case.swap_block_s,
        is_exact=is_exact,
    )


def log_of(world: World, rule: Rule) -> Log:
    return simulate(
        rule,
        world.trace,
        num_blocks=world.num_blocks,
        block_size=world.block_size,
        max_num_seqs=world.max_num_seqs,
        latency=world.latency,
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@settings(max_examples=12)
@given(world=worlds())
def test_engine_agrees_with_the_reference_on_every_iteration(case: Case, world: World) -> None:
    log = log_of(world, case.rule(world.budget))

    records = records_of(world, case, is_exact=True)

    assert_iterations(records, log.rows)
    assert_times(records, log)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@settings(max_examples=12)
@given(world=worlds())
def test_engine_in_spans_agrees_with_the_reference_on_every_request(case: Case, world: World) -> None:
    log = log_of(world, case.rule(world.budget))

    records = records_of(world, case, is_exact=False)

    assert_times(records, log, relative=1e-9)


@settings(max_examples=100)
@given(world=worlds(), threshold=st.integers(0, 4), checks_whole_prompt=st.booleans())
def test_v1_may_serve_decodes_before_incomplete_prompts(
    world: World, threshold: int, checks_whole_prompt: bool
) -> None:
    in_order = log_of(world, VllmV1(world.budget, threshold, checks_whole_prompt, in_order=True))

    decodes_first = log_of(world, VllmV1(world.budget, threshold, checks_whole_prompt))

    assert decodes_first.rows == in_order.rows


def test_answer_that_outgrows_its_reservation_after_a_preemption_gives_back_all_it_took() -> None:
    # A's last token takes the block of B, whose reservation is used up in the same iteration as it would have
    # been without: B lost an iteration, and its prefill gives it a token. C needs every block.
    trace = [(0.0, 1, 6), (2.5, 1, 6), (100.0, 6, 1)]
    world = World(trace, Coefficients(), num_blocks=10, block_size=1, max_num_seqs=4, budget=4)
    case = Case("orca", lambda _: Orca("max", max_tokens=4), {"max_tokens": 4})
    log = log_of(world, case.rule(world.budget))

    records = records_of(world, case, is_exact=True)

    assert_iterations(records, log.rows)
    assert_times(records, log)
