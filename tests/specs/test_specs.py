import json
import re
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path

import pytest

from batchsim.errors import ConfigError
from batchsim.specs import GPUSpec, ModelSpec, in_fp8, kv_capacity_tokens, load_gpu, load_model, load_spec

#: By the published number of weights.
MODELS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-32b": 32_762_123_264,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.3-70b": 70_553_706_496,
    "llama-3.3-70b-fp8": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-v3": 671_000_000_000,
    "deepseek-r1": 671_000_000_000,
    "kimi-k2": 1_026_000_000_000,
    "kimi-k2.5": 1_026_000_000_000,
    "minimax-m2.5": 228_700_000_000,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-30b-a3b-fp8": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-235b-a22b-fp8": 235_093_634_560,
    "gpt-oss-20b": 20_910_000_000,
    "gpt-oss-120b": 116_830_000_000,
}
GPUS = (
    "a100-40g",
    "a100-80g",
    "b200",
    "b300",
    "gb200",
    "gh200-96g",
    "h100",
    "h200",
    "l4",
    "l40s",
    "mi250",
    "mi300x",
    "rtx4080-laptop",
    "rtx4090",
)

TINY = ModelSpec("tiny", 2, 8, 2, 1, 4, 16, 100, tied_embeddings=False)
CARD = GPUSpec("card", 10**10, 1e13, 1e11)

HUGGING_FACE = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "rope_theta": 500000.0,
}


def write(path: Path, tree: object) -> Path:
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "published"), MODELS.items())
def test_parameters_agree_with_the_published_count_to_a_thousandth(name: str, published: int) -> None:
    assert load_model(name).num_parameters == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("mixtral-8x7b", 12.9e9),
        ("deepseek-v3", 37e9),
        ("kimi-k2", 32e9),
        ("qwen3-30b-a3b", 3.3e9),
        ("qwen3-235b-a22b", 22e9),
        ("gpt-oss-120b", 5.1e9),
        ("gpt-oss-20b", 3.6e9),
    ],
)
def test_weights_that_a_token_meets_agree_with_the_published_count(name: str, published: int) -> None:
    model = load_model(name)
    embedding = 0 if name.startswith("gpt") else model.num_head_parameters  # which OpenAI leaves out

    assert model.num_multiplied_parameters + embedding == pytest.approx(published, rel=0.03)


def test_qwen3_has_the_worked_weights_and_kv() -> None:
    model = load_model("qwen3-1.7b")

    assert model.num_parameters == pytest.approx(1.7206e9, rel=5e-5)
    assert model.weight_bytes == pytest.approx(3.44e9, rel=2e-3)
    assert model.kv_bytes_per_token == 114_688


def test_llama_8b_holds_131072_bytes_of_kv_per_token() -> None:
    assert load_model("llama-3.1-8b").kv_bytes_per_token == 131_072


def test_parameters_of_a_tiny_model_are_those_counted_by_hand() -> None:
    # A layer: queries 8*8, keys and values 8*4 each, output 8*8, three 8*16 matrices, two norms of 8.
    layer = 64 + 32 + 32 + 64 + 3 * 128

    assert TINY.num_multiplied_parameters == 2 * layer + 800
    assert TINY.num_parameters == 2 * (layer + 16) + 8 + 2 * 800


def test_input_embedding_is_multiplied_only_where_it_is_also_the_head() -> None:
    model = load_model("llama-3.1-8b")

    assert model.num_parameters - model.num_multiplied_parameters == 128256 * 4096 + 65 * 4096


def test_every_shipped_spec_is_among_those_tested_here() -> None:
    shipped = files("batchsim.specs")

    for folder, names in (("models", MODELS), ("gpus", GPUS)):
        assert sorted(one.name for one in (shipped / folder).iterdir()) == sorted(f"{n}.json" for n in names)


@pytest.mark.parametrize("name", MODELS)
def test_shipped_model_bears_its_file_name_and_says_where_its_numbers_come_from(name: str) -> None:
    model = load_model(name)

    assert model.name == name
    assert model.source.startswith("config.json of ")


@pytest.mark.parametrize("name", GPUS)
def test_shipped_gpu_bears_its_file_name_and_says_where_its_numbers_come_from(name: str) -> None:
    gpu = load_gpu(name)

    assert gpu.name == name
    assert "data sheet" in gpu.source or "architecture paper" in gpu.source


@pytest.mark.parametrize(
    ("name", "flop_per_byte"),
    [
        ("a100-40g", 201),
        ("a100-80g", 153),
        ("b200", 281),
        ("b300", 281),
        ("gb200", 312.5),
        ("gh200-96g", 247),
        ("h100", 295),
        ("h200", 206),
        ("l4", 403),
        ("mi250", 110.5),
        ("mi300x", 245.5),
        ("rtx4090", 164),
        ("rtx4080-laptop", 157),
    ],
)
def test_gpu_has_the_tabled_ridge(name: str, flop_per_byte: int) -> None:
    gpu = load_gpu(name)

    assert gpu.flop_per_s / gpu.memory_bytes_per_s == pytest.approx(flop_per_byte, abs=0.6)


@pytest.mark.parametrize(
    ("name", "gigabytes_per_s"),
    [
        ("a100-40g", 300),
        ("a100-80g", 300),
        ("h100", 450),
        ("h200", 450),
        ("gh200-96g", 450),
        ("b200", 900),
        ("gb200", 900),
    ],
)
def test_nvlink_counts_in_one_direction(name: str, gigabytes_per_s: int) -> None:
    gpu = load_gpu(name)

    assert gpu.link_bytes_per_s == gigabytes_per_s * 10**9


@pytest.mark.parametrize("name", GPUS)
def test_shipped_gpu_says_what_of_its_link_is_assumed(name: str) -> None:
    gpu = load_gpu(name)

    assert gpu.link_latency_s is not None
    assert "all-reduce" in gpu.source
    assert gpu.source.endswith("assumed, UNVERIFIED")


@pytest.mark.parametrize("name", GPUS)
def test_fp8_where_there_is_any_is_twice_as_fast_as_bf16(name: str) -> None:
    gpu = load_gpu(name)

    if gpu.fp8_flop_per_s is not None:
        assert gpu.fp8_flop_per_s == pytest.approx(2 * gpu.flop_per_s, rel=0.02)


def test_weights_in_fp8_take_a_byte_but_those_of_the_head_two() -> None:
    gpu = replace(CARD, fp8_flop_per_s=3e13)
    head = 8 * 100

    model = in_fp8(TINY, gpu)

    assert model.read_weight_bytes(1) == pytest.approx(TINY.num_multiplied_parameters + head)
    assert model.kv_bytes_per_token == TINY.kv_bytes_per_token
    assert gpu.rate(model.arithmetic) == 3e13


def test_fp8_without_a_known_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match="GPU card must have fp8_flop_per_s"):
        in_fp8(TINY, CARD)


def test_a_source_makes_no_other_model() -> None:
    assert ModelSpec(**{**asdict(TINY), "source": "hearsay"}) == TINY


def test_capacity_is_what_is_left_beside_weights_and_margin() -> None:
    model = ModelSpec("m", 1, 8, 1, 1, 4, 8, 10, tied_embeddings=True)  # 16 bytes of KV per token

    tokens = kv_capacity_tokens(model, CARD, 0.2)

    assert tokens == (8 * 10**9 - model.weight_bytes) // 16


def test_model_that_does_not_fit_is_refused_with_both_sizes() -> None:
    with pytest.raises(
        ConfigError,
        match=r"llama-3.1-70b does not fit h100: its weights take 131.4 GiB.*71.7 GiB.*tensor_parallel",
    ):
        kv_capacity_tokens(load_model("llama-3.1-70b"), load_gpu("h100"), 0.1)


@pytest.mark.parametrize("margin", [-0.1, 1.0, float("nan")])
def test_margin_must_be_a_share(margin: float) -> None:
    with pytest.raises(ConfigError, match="margin"):
        kv_capacity_tokens(TINY, CARD, margin)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown model 'lama-3.1-8b'; a JSON file or .*; did you mean llama-3.1-8b.*\?$"
    ):
        load_model("lama-3.1-8b")
    with pytest.raises(ConfigError, match=r"unknown GPU 'h1000'; a JSON file or .*; did you mean h100.*\?$"):
        load_gpu("h1000")


def test_names_of_publishers_and_drivers_load_their_spec() -> None:
    assert load_model("meta-llama/Llama-3.1-8B-Instruct") == load_model("llama-3.1-8b")
    assert load_gpu("NVIDIA H100 80GB HBM3") == load_gpu("h100")


def test_a_file_is_read_though_its_name_is_also_a_drivers(tmp_path: Path) -> None:
    path = write(tmp_path / "nvidia h100", asdict(CARD))

    assert load_gpu(path) == CARD


def test_a_spec_is_loaded_whichever_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    model = write(tmp_path / "mine" / "config.json", HUGGING_FACE)

    assert load_spec("h100") == load_gpu("h100")
    assert load_spec("Qwen/Qwen2.5-7B") == load_model("qwen2.5-7b")
    assert load_spec(write(tmp_path / "gpu.json", asdict(CARD))) == CARD
    assert load_spec(model) == load_model(model)
    with pytest.raises(
        ConfigError, match=r"unknown GPU or model 'lama-3.1-8b'; .* did you mean llama-3.1-8b"
    ):
        load_spec("lama-3.1-8b")
    with pytest.raises(ConfigError, match=r"nowhere.json: cannot be read"):
        load_spec("nowhere.json")


def test_the_files_that_the_docs_show_load(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")

    shown = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]

    gpu, model = (load_spec(write(tmp_path / f"{one['name']}.json", one)) for one in shown)
    assert isinstance(gpu, GPUSpec)
    assert isinstance(model, ModelSpec)
    assert model.num_parameters == pytest.approx(3.2e9, rel=0.02)


def test_missing_file_is_called_missing() -> None:
    with pytest.raises(ConfigError, match=r"nowhere.json: cannot be read \(No such file or directory\)"):
        load_model("nowhere.json")


def test_specs_read_back_from_files_of_the_same_form(tmp_path: Path) -> None:
    model = load_model(write(tmp_path / "model.json", asdict(TINY)))
    gpu = load_gpu(write(tmp_path / "gpu.json", asdict(CARD)))

    assert (model, gpu) == (TINY, CARD)


def test_hugging_face_config_gives_the_same_model_under_its_folder_name(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()

    model = load_model(write(tmp_path / "mine" / "config.json", HUGGING_FACE))

    assert asdict(model) == {
        **asdict(load_model("llama-3.1-8b")),
        "name": "mine",
        "source": "",
        "max_model_len": None,
    }


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        (None, 131072),
        ({"rope_type": "llama3", "factor": 8.0}, 131072),
        ({"type": "yarn", "factor": 4.0}, None),
    ],
)
def test_hugging_face_config_tells_the_longest_sequence_unless_it_is_stretched(
    tmp_path: Path, scaling: object, length: int | None
) -> None:
    tree = {**HUGGING_FACE, "max_position_embeddings": 131072, "rope_scaling": scaling}

    assert load_model(write(tmp_path / "config.json", tree)).max_model_len == length


def test_every_shipped_model_knows_its_longest_sequence() -> None:
    assert {name for name in MODELS if load_model(name).max_model_len is None} == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"bits": 4}}, "quant_method is None"),
        ({"torch_dtype": "float8"}, "dtype is 'float8'"),
        ({"torch_dtype": ["bfloat16"]}, r"dtype is \['bfloat16'\]"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings is missing"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
    ],
)
def test_hugging_face_config_with_a_wrong_value_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = write(tmp_path / "config.json", {**HUGGING_FACE, **change})

    with pytest.raises(ConfigError, match=message):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_bytes": 0}, "memory_bytes is 0; a whole number >= 1"),
        ({"memory_bytes": 1.5}, "memory_bytes is 1.5"),
        ({"flop_per_s": float("nan")}, "flop_per_s is nan; a finite number"),
        ({"flop_per_s": 5e-324}, "flop_per_s is 5e-324; a finite number > 0"),
        ({"flop_per_s": 1e308}, "flop_per_s is 1e.308; a finite number > 0"),
        ({"memory_bytes": 10**300}, "memory_bytes is 1000.*; a whole number >= 1"),
        ({"memory_bytes": True}, "memory_bytes is True; a number"),
        ({"name": "a\nb"}, r"name is 'a\\nb'; one line of text"),
        ({"flop_per_s": "fast"}, "flop_per_s is 'fast'; a number"),
        ({"link_bytes_per_s": 0}, "link_bytes_per_s is 0; a finite number > 0"),
        ({"flop_per_s": None}, "flop_per_s is None; a number"),
        ({"flops": 1}, "unknown field 'flops'; did you mean flop_per_s"),
    ],
)
def test_gpu_file_with_a_wrong_value_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = write(tmp_path / "gpu.json", {**asdict(CARD), **change})

    with pytest.raises(ConfigError, match=message):
        load_gpu(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"memory_bytes": 80},
            "memory_bytes is 80; it is measured in bytes: from 1e.08 to 1e.14 is plausible",
        ),
        ({"memory_bytes": 81_920}, "memory_bytes is 81920; it is measured in bytes"),
        ({"memory_bytes_per_s": 768}, "memory_bytes_per_s is 768; it is measured in bytes per second"),
        ({"memory_bytes_per_s": 3.35}, "memory_bytes_per_s is 3.35; it is measured in bytes per second"),
        ({"power_watts": 0.7}, "power_watts is 0.7; it is measured in watts"),
        ({"flop_per_s": 154.8}, "flop_per_s is 154.8; it is measured in FLOP per second"),
        ({"flop_per_s": 154_800}, "flop_per_s is 154800; it is measured in FLOP per second"),
        ({"fp8_flop_per_s": 1978.9}, "fp8_flop_per_s is 1978.9; it is measured in FLOP per second"),
        ({"link_bytes_per_s": 450}, "link_bytes_per_s is 450; it is measured in bytes per second"),
        ({"link_latency_s": 10}, "link_latency_s is 10; it is measured in seconds"),
    ],
)
def test_a_data_sheet_in_other_units_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = write(tmp_path / "gpu.json", {**asdict(CARD), **change})

    with pytest.raises(ConfigError, match=f"gpu.json: {message}"):
        load_gpu(path)


@pytest.mark.parametrize("name", ["bytes_per_weight", "bytes_per_kv", "bytes_per_expert_weight"])
def test_a_model_whose_bytes_are_bits_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "model.json", {**asdict(TINY), name: 16})

    with pytest.raises(ConfigError, match=f"model.json: {name} is 16; it is measured in bytes"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads is 3; a divisor of the 2 query heads"),
        ({"num_experts": 4}, "num_experts is 4, but experts_per_token is not given"),
        (
            {"num_experts": 4, "experts_per_token": 5, "expert_intermediate_size": 8},
            "experts_per_token is 5; at most num_experts = 4",
        ),
        ({"num_dense_layers": 3}, "num_dense_layers is 3; there are 2 layers"),
        ({"num_window_layers": 2}, "num_window_layers is 2, but window_tokens is not given"),
        (
            {"num_window_layers": 2, "window_tokens": 8, "num_linear_layers": 1},
            "num_window_layers and num_linear_layers are 2 and 1; there are 2 layers",
        ),
        ({"kv_lora_rank": 4, "num_kv_heads": 2}, "num_kv_heads is 2; with kv_lora_rank it is 1"),
        ({"kv_lora_rank": 4}, "v_head_dim and qk_rope_head_dim, below head_dim = 4, are needed"),
        ({"arithmetic": "int3"}, "arithmetic is 'int3'; bf16, fp8 or fp4 is needed"),
        ({"num_experts": -1}, "num_experts is -1; a whole number >= 0"),
        ({"gated_attention": 1}, "gated_attention is 1; true or false"),
    ],
)
def test_a_model_whose_parts_do_not_fit_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = write(tmp_path / "model.json", {**asdict(TINY), **change})

    with pytest.raises(ConfigError, match=f"model.json: .*{message}"):
        load_model(path)


def test_arithmetic_that_a_gpu_does_not_have_is_done_in_a_wider_one() -> None:
    assert [load_gpu("b200").rate(kind) for kind in ("bf16", "fp8", "fp4")] == [2.25e15, 4.5e15, 9e15]
    assert load_gpu("h100").rate("fp4") == load_gpu("h100").fp8_flop_per_s
    assert load_gpu("a100-80g").rate("fp4") == load_gpu("a100-80g").flop_per_s


def test_name_that_no_file_can_have_is_an_unknown_one() -> None:
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(ConfigError, match="unknown model"):
            load_model(name)


@pytest.mark.parametrize("content", ["{", "[1]", '{"name": "a", "name": "b"}', "[" * 100_000])
def test_file_that_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(content, encoding="utf-8")

    with pytest.raises(ConfigError, match=r"gpu.json: "):
        load_gpu(path)
