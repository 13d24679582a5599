"""The engine must answer what transformers' own `generate` answers, however its sequences come and go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM

from batchsim.errors import PlanError
from batchsim_calibration.serving.engine import Chunk, Engine, is_out_of_memory
from batchsim_calibration.serving.models import LoadedModel

NUM_TOKENS = 12
MakeModel = Callable[..., LoadedModel]


def generate(loaded: LoadedModel, prompt: torch.Tensor, num_tokens: int = NUM_TOKENS) -> list[int]:
    """Answer one prompt alone, by transformers' own loop, cache and attention."""
    config = loaded.model.config.__class__(**loaded.model.config.to_dict())
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()
    model.load_state_dict(loaded.model.state_dict())
    model.generation_config.eos_token_id = None
    answer = model.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt[None]),  # or it takes a token for padding
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return answer[0, len(prompt) :].tolist()


def prompts_of(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(512, (length,), generator=generator) for length in lengths]


def finish(engine: Engine, answers: dict[int, list[int]], num_tokens: int = NUM_TOKENS) -> None:
    """Decode until every slot has its tokens; each drops out when it has."""
    while slots := [slot for slot, answer in answers.items() if len(answer) < num_tokens]:
        for slot, token in engine.step((), slots).items():
            answers[slot].append(token)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_chunked_prompts_beside_decodes_answer_as_generate_does(
    varied_model: MakeModel, family: str, attention: str
) -> None:
    loaded = varied_model(family, attention)
    prompts = prompts_of(7, 33, 64, 3)
    expected = [generate(loaded, prompt) for prompt in prompts]
    engine = Engine(loaded, num_slots=4, max_tokens=128)
    slots = [3, 1, 0, 2]  # of the prompts: not the order in which they start to decode
    answers = {slot: [] for slot in slots}

    for chunks, decodes in (
        ([Chunk(3, prompts[0], True), Chunk(1, prompts[1][:10], False)], []),
        ([Chunk(1, prompts[1][10:25], False), Chunk(0, prompts[2][:40], False)], [3]),
        ([Chunk(1, prompts[1][25:], True)], [3]),
        ([Chunk(0, prompts[2][40:], True)], [1, 3]),
        ([Chunk(2, prompts[3], True)], [3, 0, 1]),
    ):
        for slot, token in engine.step(chunks, decodes).items():
            answers[slot].append(token)
    finish(engine, answers)

    assert [answers[slot] for slot in slots] == expected
    assert min(len(set(answer)) for answer in expected) > 4  # or anything would do as an answer


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_prompt_in_chunks_has_the_logits_of_the_whole(varied_model: MakeModel, attention: str) -> None:
    loaded = varied_model("qwen3", attention)
    (prompt,) = prompts_of(90)
    logits: list[torch.Tensor] = []
    loaded.model.lm_head.register_forward_hook(lambda module, given, output: logits.append(output[0]))
    engine = Engine(loaded, num_slots=2, max_tokens=128)
    engine.step([Chunk(0, prompt, True)], [])

    engine.step([Chunk(1, prompt[:31], False)], [0])
    engine.step([Chunk(1, prompt[31:32], False)], [])
    engine.step([Chunk(1, prompt[32:], True)], [0])

    whole, chunked = logits[0][0], logits[3][1]  # the second is beside a decode
    assert torch.allclose(chunked, whole, rtol=0, atol=1e-4)
    assert whole.std() > 0.1  # or so small a difference would mean nothing


def test_memory_of_the_kv_cache_is_taken_when_the_engine_is_made(varied_model: MakeModel) -> None:
    with pytest.raises(RuntimeError) as raised:
        Engine(varied_model(), num_slots=1 << 20, max_tokens=1 << 20)

    assert is_out_of_memory(raised.value)


def test_a_slot_given_to_another_sequence_forgets_the_first(varied_model: MakeModel) -> None:
    loaded = varied_model()
    first, second = prompts_of(50, 20)
    engine = Engine(loaded, num_slots=2, max_tokens=128)
    engine.step([Chunk(0, first, True)], [])
    engine.step((), [0])

    engine.clear(0)
    answers = {0: [engine.step([Chunk(0, second, True)], [])[0]]}
    finish(engine, answers)

    assert answers[0] == generate(loaded, second)


def test_a_sequence_recomputed_after_a_preemption_goes_on_as_if_nothing_had_happened(
    varied_model: MakeModel,
) -> None:
    loaded = varied_model()
    (prompt, other) = prompts_of(30, 11)
    engine = Engine(loaded, num_slots=2, max_tokens=128)
    answers = {0: [], 1: []}
    for slot, token in engine.step([Chunk(0, prompt, True), Chunk(1, other, True)], []).items():
        answers[slot].append(token)
    finish(engine, answers, 5)

    engine.clear(0)
    again = torch.cat([prompt, torch.tensor(answers[0])])
    for slot, token in engine.step([Chunk(0, again, True)], [1]).items():
        answers[slot].append(token)
    finish(engine, answers)

    assert answers == {0: generate(loaded, prompt), 1: generate(loaded, other)}


def test_a_long_sequence_that_sits_out_goes_on_where_it_stopped(varied_model: MakeModel) -> None:
    loaded = varied_model()
    long, short = prompts_of(50, 5)
    engine = Engine(loaded, num_slots=2, max_tokens=128)
    first = engine.step([Chunk(0, long, True), Chunk(1, short, True)], [])
    answers = {slot: [token] for slot, token in first.items()}

    answers[1].append(engine.step((), [1])[1])
    finish(engine, answers)

    assert answers == {0: generate(loaded, long), 1: generate(loaded, short)}


def test_whole_batches_of_unequal_prompts_answer_as_each_alone(
    varied_model: MakeModel,
) -> None:
    loaded = varied_model("qwen3")
    prompts = prompts_of(5, 19, 42, 8, 27)
    engine = Engine(loaded, num_slots=5, max_tokens=64)

    first = engine.step([Chunk(slot, prompt, True) for slot, prompt in enumerate(prompts)], [])
    answers = {slot: [token] for slot, token in first.items()}
    finish(engine, answers)

    assert list(answers.values()) == [generate(loaded, prompt) for prompt in prompts]


def test_bfloat16_runs_and_counts_tokens(varied_model: MakeModel) -> None:
    engine = Engine(varied_model(dtype="bf16"), num_slots=2, max_tokens=32)

    engine.step([Chunk(1, prompts_of(9)[0], True)], [])
    engine.step((), [1])

    assert engine.lengths == (0, 10)


def test_a_pretended_context_takes_part_like_a_real_one(varied_model: MakeModel) -> None:
    engine = Engine(varied_model(), num_slots=3, max_tokens=32)
    engine.pretend(0, 20)
    engine.pretend(2, 31)

    tokens = engine.step((), [2, 0])

    assert set(tokens) == {0, 2}
    assert engine.lengths == (21, 0, 32)


def test_what_does_not_fit_or_is_not_due_is_refused_in_a_sentence(
    varied_model: MakeModel,
) -> None:
    engine = Engine(varied_model(), num_slots=2, max_tokens=16)
    (prompt,) = prompts_of(12)
    engine.step([Chunk(0, prompt, True)], [])
    before = engine.lengths

    for chunks, decodes, sentence in (
        ([Chunk(1, torch.cat([prompt, prompt]), True)], [], "slot 1 holds 0 of at most 16 tokens"),
        ([Chunk(0, prompt[:1], True)], [], "slot 0 was given a chunk, but its prompt is complete"),
        ([], [1], "slot 1 cannot decode: its prompt is not complete"),
        ([], [0, 0], "each named once"),
        ([], [], "at least one is needed"),
        ([Chunk(1, prompt[:0], True)], [], "was given 0 more"),
    ):
        with pytest.raises(PlanError, match=sentence):
            engine.step(chunks, decodes)

    assert engine.lengths == before
    with pytest.raises(PlanError, match="slot 1 cannot hold 16 tokens and one more"):
        engine.pretend(1, 16)
