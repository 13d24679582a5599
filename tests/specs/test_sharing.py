import math
from dataclasses import replace

import pytest

from batchsim.errors import ConfigError
from batchsim.specs import (
    GPUSpec,
    ModelSpec,
    Sharing,
    gpu_activation_bytes,
    gpu_weight_bytes,
    kv_capacity_tokens,
    load_model,
)
from batchsim.specs.sharing import CUDA_BYTES, LOGIT_BYTES, gpu_kv_bytes

GIB = 2**30

DENSE = ModelSpec("dense", 4, 64, 8, 2, 8, 128, 100, tied_embeddings=False)
EXPERTS = replace(DENSE, num_experts=6, experts_per_token=2, expert_intermediate_size=32)
LATENT = replace(DENSE, num_kv_heads=1, kv_lora_rank=16, qk_rope_head_dim=2, v_head_dim=8)
GPU = GPUSpec("card", 10**9, 1e13, 1e11)


def test_one_gpu_holds_all_weights() -> None:
    for model in (DENSE, EXPERTS, LATENT, replace(DENSE, tied_embeddings=True)):
        assert gpu_weight_bytes(model, Sharing()) == model.weight_bytes


def test_tensors_are_shared_but_key_and_value_heads_not_below_one() -> None:
    norms = 9 * 64
    shared = (DENSE.num_parameters - norms) / 4

    two_copies = DENSE.num_layers * DENSE.kv_parameters / 4
    assert gpu_weight_bytes(DENSE, Sharing(4)) == math.ceil(2 * (shared + two_copies + norms))
    assert gpu_kv_bytes(DENSE, Sharing(4), 100) == gpu_kv_bytes(DENSE, Sharing(), 100) / 2


def test_latents_lie_on_every_gpu() -> None:
    one, eight = gpu_weight_bytes(LATENT, Sharing()), gpu_weight_bytes(LATENT, Sharing(8))

    kept = 4 * LATENT.kv_parameters + 9 * 64
    assert eight == math.ceil((one - 2 * kept) / 8 + 2 * kept)
    assert gpu_kv_bytes(LATENT, Sharing(8), 100) == gpu_kv_bytes(LATENT, Sharing(), 100)


def test_experts_are_divided_by_all_gpus_of_a_stage() -> None:
    without = replace(EXPERTS, expert_intermediate_size=1)
    per_expert = 2 * (EXPERTS.expert_parameters - without.expert_parameters) * 4

    def of_experts(sharing: Sharing) -> int:
        return gpu_weight_bytes(EXPERTS, sharing) - gpu_weight_bytes(without, sharing)

    assert of_experts(Sharing(2)) == 3 * per_expert
    assert of_experts(Sharing(2, data_parallel=2)) == 1.5 * per_expert
    assert of_experts(Sharing(2, data_parallel=2, expert_parallel=4)) == 2 * per_expert  # whole ones


def test_groups_with_attention_of_their_own_hold_it_whole_and_have_kv_of_their_own() -> None:
    alone, together = Sharing(2), Sharing(2, data_parallel=2)

    assert gpu_kv_bytes(EXPERTS, together, 10) == gpu_kv_bytes(EXPERTS, alone, 10)
    capacity = kv_capacity_tokens(EXPERTS, GPU, 0.1, together)
    left_bytes = 0.9e9 - gpu_weight_bytes(EXPERTS, together)
    assert capacity == pytest.approx(2 * left_bytes / gpu_kv_bytes(EXPERTS, together, 1), rel=1e-6)


def test_stages_have_their_layers_and_one_end_of_the_vocabulary() -> None:
    head, final_norm = 2 * 64 * 100, 2 * 64
    layers_bytes = DENSE.weight_bytes - 2 * head - final_norm

    two = gpu_weight_bytes(DENSE, Sharing(pipeline_parallel=2))
    assert two == layers_bytes // 2 + final_norm + head
    assert gpu_kv_bytes(DENSE, Sharing(pipeline_parallel=2), 10) == gpu_kv_bytes(DENSE, Sharing(), 10) / 2
    # Three stages of four layers: the longest has two.
    assert gpu_kv_bytes(DENSE, Sharing(pipeline_parallel=3), 10) == gpu_kv_bytes(DENSE, Sharing(), 10) / 2


@pytest.mark.parametrize(
    ("stages", "layers", "dense"),
    [(1, [10], [3]), (2, [5, 5], [3, 0]), (3, [3, 4, 3], [3, 0, 0]), (4, [2, 3, 3, 2], [2, 1, 0, 0])],
)
def test_stages_are_cut_as_vllm_cuts_them(stages: int, layers: list[int], dense: list[int]) -> None:
    model = replace(EXPERTS, num_layers=10, num_dense_layers=3)

    found = Sharing(pipeline_parallel=stages).stages(model)

    assert [stage.layers for stage in found] == layers
    assert [stage.dense_layers for stage in found] == dense
    assert sum(stage.ends for stage in found) == 2


def test_the_fullest_stage_decides_how_much_fits() -> None:
    # Five layers each, three of the first without experts
    model = replace(EXPERTS, num_layers=10, num_dense_layers=3, intermediate_size=1)
    sharing = Sharing(pipeline_parallel=2)

    held_bytes = 5 * 2 * (EXPERTS.query_parameters + EXPERTS.kv_parameters + 64 * 6)
    held_bytes += 5 * 2 * 6 * EXPERTS.expert_parameters + 2 * 11 * 64 + 2 * 64 * 100
    assert gpu_weight_bytes(model, sharing) == held_bytes
    left_bytes = 0.9e9 - held_bytes
    assert kv_capacity_tokens(model, GPU, 0.1, sharing) == int(left_bytes / gpu_kv_bytes(model, sharing, 1))


def test_the_largest_pass_peaks_in_its_layers_or_in_its_logits() -> None:
    def activations(tokens: int, sequences: int) -> float:
        return gpu_activation_bytes(DENSE, Sharing(), tokens, sequences) - CUDA_BYTES

    assert activations(1000, 1) == pytest.approx(2 * 1000 * (4 * 64 + 3 * 128), abs=1)
    assert activations(10, 500) == pytest.approx(500 * 100 * LOGIT_BYTES + 2 * 10 * 64, abs=1)


def test_a_window_holds_no_more_than_its_tokens_and_a_state_is_as_long_as_it_is() -> None:
    model = replace(
        DENSE, num_window_layers=2, window_tokens=10, num_linear_layers=1, linear_state_bytes=5000
    )
    layer_bytes = 2 * 2 * 8 * 2

    assert gpu_kv_bytes(model, Sharing(), 4) == 3 * 4 * layer_bytes + 5000
    assert gpu_kv_bytes(model, Sharing(), 100) == (100 + 2 * 10) * layer_bytes + 5000


def test_capacity_is_that_of_the_longest_sequences() -> None:
    model = replace(DENSE, num_window_layers=3, window_tokens=8, max_model_len=800)
    left_bytes, layer_bytes = 0.9e9 - model.weight_bytes, 2 * 2 * 8 * 2

    longest, shorter = (kv_capacity_tokens(model, GPU, 0.1, sequence_tokens=n) for n in (None, 8))
    assert longest == int(left_bytes / (layer_bytes * (1 + 3 * 8 / 800)))
    assert shorter == int(left_bytes / (layer_bytes * 4))


def test_a_model_that_does_not_fit_several_gpus_says_so_of_each() -> None:
    with pytest.raises(
        ConfigError, match=r"deepseek-v3 does not fit 8 card: its weights take 7\d.\d GiB on each"
    ):
        kv_capacity_tokens(load_model("deepseek-v3"), GPU, 0.1, Sharing(8))


@pytest.mark.parametrize(
    ("model", "sharing", "message"),
    [
        (DENSE, {"tensor_parallel": 3}, "tensor_parallel is 3; a divisor of the 8 query heads of dense"),
        (DENSE, {"pipeline_parallel": 5}, "pipeline_parallel is 5; dense has 4 layers"),
        (
            DENSE,
            {"data_parallel": 2},
            "data_parallel is 2, but dense has no experts to share; so many replicas",
        ),
        (DENSE, {"tensor_parallel": 2, "expert_parallel": 2}, "expert_parallel is 2; dense has 0 experts"),
        (EXPERTS, {"tensor_parallel": 8, "expert_parallel": 8}, "expert_parallel is 8; dense has 6 experts"),
        (
            EXPERTS,
            {"tensor_parallel": 4, "expert_parallel": 2},
            r"tensor_parallel \* data_parallel = 4 is needed",
        ),
        (EXPERTS, {"data_parallel": 0}, "data_parallel is 0; a whole number >= 1"),
    ],
)
def test_gpus_that_cannot_share_a_model_are_refused(
    model: ModelSpec, sharing: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Sharing(**sharing).check(model)
