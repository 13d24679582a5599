import json
from pathlib import Path
from typing import Any

import pytest

from batchsim.errors import ConfigError
from batchsim.specs import ModelSpec, load_model

Tree = dict[str, Any]

#: The fields that every decoder has.
PLAIN: Tree = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
EXPERTS: Tree = {
    **PLAIN,
    "model_type": "qwen3_moe",
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
}
LATENT: Tree = {
    **EXPERTS,
    "model_type": "deepseek_v3",
    "kv_lora_rank": 64,
    "q_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}


def read(tree: Tree, folder: Path, **beside: Tree) -> ModelSpec:
    for name, content in {"config": tree, **beside}.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return load_model(folder)


def test_folder_of_a_config_is_the_model(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()

    assert read(PLAIN, tmp_path / "mine").name == "mine"


def test_experts_are_those_of_every_layer_unless_it_says_so(tmp_path: Path) -> None:
    everywhere = read(EXPERTS, tmp_path)
    sparse = read({**EXPERTS, "decoder_sparse_step": 2, "mlp_only_layers": [1]}, tmp_path)

    assert (everywhere.num_experts, everywhere.experts_per_token, everywhere.num_moe_layers) == (16, 2, 4)
    assert sparse.num_moe_layers == 1
    assert everywhere.num_expert_parameters == 4 * 16 * 3 * 512 * 256


def test_experts_may_be_called_otherwise(tmp_path: Path) -> None:
    mixtral = {**PLAIN, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}

    model = read(mixtral, tmp_path)

    assert (model.num_experts, model.expert_intermediate_size) == (8, 1024)


def test_shared_experts_are_told_by_their_number_or_their_width(tmp_path: Path) -> None:
    by_width = {**EXPERTS, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 700}

    assert read({**EXPERTS, "n_shared_experts": 2}, tmp_path).shared_intermediate_size == 512
    assert read(by_width, tmp_path).shared_intermediate_size == 700


def test_latent_attention_holds_one_latent_for_all_heads(tmp_path: Path) -> None:
    model = read(LATENT, tmp_path)

    assert model.kv_bytes_per_token == 4 * (64 + 16) * 2
    queries, latents = 512 * 96 + 96 * 8 * 48, 512 * (64 + 16) + 64 * 8 * (32 + 24)
    assert model.num_attention_parameters == 4 * (queries + latents + 8 * 24 * 512)
    assert (model.num_dense_layers, model.shared_intermediate_size) == (1, 512)


def test_layers_of_a_window_hold_no_kv_beyond_it(tmp_path: Path) -> None:
    listed = {
        **PLAIN,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    gemma = {**PLAIN, "model_type": "gemma3_text", "sliding_window": 512, "sliding_window_pattern": 4}

    one, other = read(listed, tmp_path), read(gemma, tmp_path)

    assert (one.num_window_layers, one.window_tokens, one.num_kv_layers) == (2, 128, 2)
    assert (other.num_window_layers, other.window_tokens) == (3, 512)


@pytest.mark.parametrize(
    ("change", "num_layers"),
    [
        ({"use_sliding_window": False}, 0),
        ({"use_sliding_window": True, "max_window_layers": 3}, 1),
        ({"sliding_window": None}, 0),
    ],
)
def test_qwen_slides_above_the_layers_that_it_names(tmp_path: Path, change: Tree, num_layers: int) -> None:
    tree = {**PLAIN, "model_type": "qwen2", "sliding_window": 64, **change}

    assert read(tree, tmp_path).num_window_layers == num_layers


def test_linear_attention_holds_a_state_instead_of_kv(tmp_path: Path) -> None:
    tree = {
        **EXPERTS,
        "model_type": "qwen3_next",
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "mamba_ssm_dtype": "float32",
    }

    model = read(tree, tmp_path)

    keys, values = 2 * 16, 4 * 32
    assert (model.num_linear_layers, model.num_kv_layers) == (3, 1)
    assert model.linear_layer_parameters == 512 * (2 * keys + 2 * values + 2 * 4) + values * 512
    assert model.linear_state_bytes == 3 * (3 * (2 * keys + values) * 2 + 4 * 16 * 32 * 4)
    assert model.query_parameters == 3 * 512 * 8 * 64  # queries, their gate, and the output


def test_language_half_of_a_model_that_sees_is_taken(tmp_path: Path) -> None:
    tree = {
        "model_type": "qwen3_vl_moe",
        "vision_config": {"num_hidden_layers": 27},
        "tie_word_embeddings": True,
        "text_config": {
            **{key: value for key, value in EXPERTS.items() if key != "tie_word_embeddings"},
            "model_type": "qwen3_vl_moe_text",
        },
    }

    model = read(tree, tmp_path)

    assert (model.num_layers, model.num_experts, model.tied_embeddings) == (4, 16, True)


def test_stretched_positions_are_those_of_the_original_times_the_factor(tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}

    model = read({**PLAIN, "max_position_embeddings": 8192, "rope_scaling": scaling}, tmp_path)

    assert model.max_model_len == 32768


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
INT4 = {
    "quant_method": "compressed-tensors",
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|down)_proj.*"],
    "config_groups": {
        "group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}, "input_activations": None}
    },
}
FP8_TENSORS = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {"weights": {"num_bits": 8, "type": "float"}, "input_activations": {"num_bits": 8}}
    },
    "kv_cache_scheme": {"num_bits": 8, "type": "float"},
}
NVFP4 = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4",
    "ignore": ["lm_head", "model.layers.0.self_attn*", "model.layers.2.self_attn*"],
    "kv_cache_scheme": {"num_bits": 8},
}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
GPTQ = {"quant_method": "gptq", "bits": 8, "group_size": -1, "dynamic": {"-:.*self_attn.*": {}}}


@pytest.mark.parametrize(
    ("quantised", "arithmetic", "attention", "blocks", "experts", "kv"),
    [
        (FP8, "fp8", 1 + 4 / 128**2, 1 + 4 / 128**2, 1 + 4 / 128**2, 2),
        (INT4, "bf16", 2, 2, 0.5 + 2 / 32, 2),
        (FP8_TENSORS, "fp8", 1, 1, 1, 1),
        (NVFP4, "fp4", (2 + 0.5 + 1 / 16) / 2, 0.5 + 1 / 16, 0.5 + 1 / 16, 1),
        (MXFP4, "bf16", 2, 2, 0.5 + 1 / 32, 2),
        (AWQ, "bf16", 0.5 + 2.5 / 128, 0.5 + 2.5 / 128, 0.5 + 2.5 / 128, 2),
        (GPTQ, "bf16", 2, 1, 1, 2),
    ],
)
def test_quantised_weights_have_their_bytes_and_their_scales(
    tmp_path: Path,
    quantised: Tree,
    arithmetic: str,
    attention: float,
    blocks: float,
    experts: float,
    kv: float,
) -> None:
    tree = {**EXPERTS, "model_type": "glm4_moe", "n_shared_experts": 1, "first_k_dense_replace": 1}

    model = read({**tree, "quantization_config": quantised}, tmp_path)

    assert (model.arithmetic, model.kept_bytes, model.bytes_per_kv) == (arithmetic, 2, kv)
    found = (model.attention_bytes, model.bytes_per_weight, model.expert_bytes)
    assert found == pytest.approx((attention, blocks, experts))


def test_layers_left_alone_count_with_their_share(tmp_path: Path) -> None:
    names = [f"model.layers.{layer}.mlp.{part}_proj" for layer in (0, 3) for part in ("gate", "up", "down")]
    quantised = {"quant_method": "fbgemm_fp8", "modules_to_not_convert": [*names, "model.layers.1.self_attn"]}

    model = read({**PLAIN, "quantization_config": quantised}, tmp_path)

    assert (model.bytes_per_weight, model.attention_bytes) == (1.5, 1.25)


def test_rows_of_mxfp4_are_padded(tmp_path: Path) -> None:
    model = read({**EXPERTS, "hidden_size": 320, "quantization_config": MXFP4}, tmp_path)

    assert model.expert_bytes == pytest.approx((0.5 + 1 / 32) * 512 / 320)


def test_modelopt_may_say_it_in_a_file_beside(tmp_path: Path) -> None:
    beside = {"producer": {}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}

    model = read(PLAIN, tmp_path, hf_quant_config=beside)

    assert (model.bytes_per_weight, model.bytes_per_kv, model.arithmetic) == (1, 1, "fp8")


def test_kv_cache_dtype_is_the_type_of_its_numbers(tmp_path: Path) -> None:
    assert read({**PLAIN, "kv_cache_dtype": "fp8_e4m3"}, tmp_path).bytes_per_kv == 1


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({**PLAIN, "model_type": "deepseek_v9"}, "model_type is 'deepseek_v9'; did you mean deepseek_v"),
        ({**PLAIN, "num_local_experts": 8}, "it has 8 experts, and a llama with experts is not known"),
        ({**EXPERTS, "moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        ({**EXPERTS, "num_experts_per_tok": None}, "num_experts_per_tok or experts_per_token is missing"),
        ({**EXPERTS, "num_experts_per_tok": 17}, "experts_per_token is 17; at most num_experts = 16"),
        ({**LATENT, "v_head_dim": None}, "v_head_dim is missing"),
        ({**PLAIN, "vocab_size": "many"}, "vocab_size is 'many'; a whole number"),
        ({**PLAIN, "intermediate_size": None}, "intermediate_size is missing"),
        ({**PLAIN, "layer_types": ["full_attention"]}, "layer_types must hold 4 of full_attention, sliding"),
        ({**PLAIN, "layer_types": ["mamba"] * 4}, "layer_types must hold 4"),
        (
            {**PLAIN, "layer_types": ["sliding_attention"] * 4},
            "sliding_window is missing",
        ),
        ({**PLAIN, "torch_dtype": "float8"}, "dtype is 'float8'; known: bfloat16"),
        ({**PLAIN, "kv_cache_dtype": "int2"}, "kv_cache_dtype is 'int2'; known: auto"),
        (
            {**PLAIN, "quantization_config": {"quant_method": "bitsandbytes"}},
            "quant_method is 'bitsandbytes'; known: fp8, .*gptq",
        ),
        (
            {**PLAIN, "quantization_config": {"quant_method": "awq"}},
            "quantization_config: bits is missing",
        ),
        (
            {**PLAIN, "quantization_config": {"quant_method": "modelopt", "quant_algo": "MIXED"}},
            "quant_algo is 'MIXED'; known: FP8, NVFP4",
        ),
        (
            {**PLAIN, "quantization_config": {"quant_method": "fp8", "modules_to_not_convert": "all"}},
            "modules_to_not_convert is 'all'; a list of names",
        ),
        (
            {**PLAIN, "quantization_config": {**INT4, "ignore": ["re:("]}},
            "is no regular expression",
        ),
        (
            {**PLAIN, "quantization_config": {"quant_method": "compressed-tensors"}},
            "config_groups must hold one group",
        ),
        ({"model_type": "llama", "hidden_size": 8}, "num_hidden_layers is missing"),
    ],
)
def test_config_that_is_not_understood_is_refused(tmp_path: Path, tree: Tree, message: str) -> None:
    with pytest.raises(ConfigError, match=f"config.json: .*{message}"):
        read(tree, tmp_path)
