from dataclasses import replace

import numpy as np
import pytest

from batchsim.latency.base import IterationShape
from batchsim.latency.expert_load import ExpertLoad
from batchsim.latency.roofline import RooflineLatency
from batchsim.specs import load_gpu, load_model

MODEL = load_model("deepseek-v3")
NUM_EXPERTS, EACH = MODEL.num_experts, MODEL.experts_per_token


def drawn(tokens: int, num_gpus: int, trials: int = 300) -> tuple[float, float]:
    """Mean over trials of the largest load, per mean load, and of the most experts reached on a GPU."""
    rng = np.random.default_rng(1)
    of_gpu = np.arange(NUM_EXPERTS) * num_gpus // NUM_EXPERTS
    loads, reached = [], []
    for _ in range(trials):
        chosen = np.argsort(rng.random((tokens, NUM_EXPERTS)), axis=1)[:, :EACH].ravel()
        loads.append(np.bincount(of_gpu[chosen], minlength=num_gpus).max() * num_gpus / (tokens * EACH))
        reached.append(np.bincount(of_gpu[np.unique(chosen)], minlength=num_gpus).max() * num_gpus)
    return float(np.mean(loads)), float(np.mean(reached))


@pytest.mark.parametrize("num_gpus", [2, 8, 32])
@pytest.mark.parametrize("tokens", [1, 8, 64, 256])
def test_the_fullest_gpu_has_what_lots_give_it(tokens: int, num_gpus: int) -> None:
    load = ExpertLoad(MODEL, num_gpus)

    most, reached = drawn(tokens, num_gpus)

    # A few tokens are no normal number of them.
    assert load.load(tokens) == pytest.approx(most, rel=0.05 if tokens >= 64 else 0.25)
    assert load.reached(tokens) == pytest.approx(reached, rel=0.05 if tokens >= 64 else 0.25)


def test_nobody_has_more_than_there_is() -> None:
    few = ExpertLoad(replace(MODEL, num_experts=16, experts_per_token=4), 8)  # of two experts each

    assert few.load(0.01) == 4  # half of the choices, not an eighth
    assert few.reached(10**6) == 16


def test_one_gpu_and_shared_slices_have_the_mean() -> None:
    alone = ExpertLoad(MODEL, 1)

    assert alone.load(3) == 1
    assert alone.reached(3) == MODEL.reached_experts(3)
    assert ExpertLoad(load_model("llama-3.1-8b"), 8).reached(5) == 0


def test_a_pass_takes_as_long_as_the_gpu_with_most_tokens() -> None:
    def seconds(expert_parallel: int, tokens: int) -> float:
        latency = RooflineLatency(
            MODEL, load_gpu("h200"), 0.5, 0.7, 0.0, tensor_parallel=8, expert_parallel=expert_parallel
        )
        return latency.iteration_s(IterationShape(0, tokens, tokens))

    sliced, whole = ([seconds(parallel, tokens) for tokens in (16, 4096)] for parallel in (1, 8))
    assert whole[0] > 1.1 * sliced[0]
    assert 1 < whole[1] / sliced[1] < 1.03  # many tokens even out
