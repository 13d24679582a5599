import gzip
import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from batchsim.errors import ConfigError, TraceError
from batchsim.latency.base import IterationShape
from batchsim.latency.profiles.operator_profile import KERNEL_GAP_S, read_operator_profile
from batchsim.latency.profiles.uneven import UnevenContexts
from batchsim.specs import load_model
from tests.shared_data import shared_path

CONFIG = {"num_hidden_layers": 10, "hidden_size": 1000, "vocab_size": 3000}
MOE = {**CONFIG, "num_experts": 4, "num_experts_per_tok": 2}

DENSE = """layer,tokens,time_us
embedding,1,100
embedding,4,400
final_layernorm,1,10
final_layernorm,4,10
layernorm,1,5
layernorm,4,5
qkv_proj,1,20
qkv_proj,4,50
"""
PER_SEQUENCE = """layer,sequences,time_us
lm_head,1,1000
lm_head,4,1300
sampler,1,50
sampler,4,50
"""
ATTENTION = """prefill_chunk,kv_prefill,n_decode,kv_decode,time_us
2,0,0,0,10
2,16,0,0,20
4,0,0,0,30
4,16,0,0,60
0,0,1,16,1
0,0,1,32,2
0,0,4,16,4
0,0,4,32,8
2,0,1,16,100
2,0,1,32,110
2,0,4,16,120
2,0,4,32,130
2,16,1,16,140
2,16,1,32,150
2,16,4,16,160
2,16,4,32,170
4,0,1,16,180
4,0,1,32,190
4,0,4,16,200
4,0,4,32,210
4,16,1,16,220
4,16,1,32,230
4,16,4,16,240
4,16,4,32,250
"""
EXPERTS = """tokens,activated_experts,time_us
1,2,10
4,2,20
4,4,40
"""
SKEW = """regime,n,t_mean_us,t_max_us,t_skew_us
pure,4,10,20,15
"""


def write_profile(folder: Path, **tables: str) -> Path:
    """Write a ``tp<N>`` folder: the tables above, others instead or beside."""
    folder.mkdir(parents=True)
    given = {"dense": DENSE, "per_sequence": PER_SEQUENCE, "attention": ATTENTION, **tables}
    for name, text in given.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    write_profile(tmp_path / "gpu" / "bf16" / "tp1")
    return tmp_path / "gpu"


def test_decode_is_the_sum_over_layers_and_what_runs_once(profile: Path) -> None:
    model = read_operator_profile(profile, CONFIG)

    once_s, layer_s = (100 + 10 + 1000 + 50) * 1e-6, (2 * 5 + 20 + 2) * 1e-6
    gaps_s = (4 + 10 * 4) * KERNEL_GAP_S
    time_s = model.iteration_s(IterationShape(0, 1, 32))
    assert time_s == pytest.approx(once_s + 10 * layer_s + gaps_s, rel=1e-12)


def test_chunk_beside_decodes_takes_the_attention_of_both_together(profile: Path) -> None:
    model = read_operator_profile(profile, CONFIG, kernel_gap_s=0.0)

    time_s = model.iteration_s(IterationShape(2, 2, 2 * 32, 1, 2 * (16 + 1)))

    once_s = (400 + 10 + 1300 + 50) * 1e-6
    layer_s = (2 * 5 + 50 + 150 + (170 - 150) / 3) * 1e-6
    assert time_s == pytest.approx(once_s + 10 * layer_s, rel=1e-12)


def test_between_two_points_products_take_the_time_of_the_next(profile: Path) -> None:
    model = read_operator_profile(profile, CONFIG)

    three, four = (model.iteration_s(IterationShape(0, num, num * 16)) for num in (3, 4))

    attention_s = 10 * 1e-6  # of a sequence, in each layer
    assert four - three == pytest.approx(attention_s, rel=1e-9)


@pytest.mark.parametrize("inside", ["", "bf16", "bf16/tp1"])
def test_any_folder_above_the_profile_will_do(profile: Path, inside: str) -> None:
    model = read_operator_profile(profile / inside, CONFIG)

    assert model == read_operator_profile(profile, CONFIG)


def test_compressed_tables_give_the_same(profile: Path) -> None:
    plain = read_operator_profile(profile, CONFIG)
    for path in list(profile.rglob("*.csv")):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()

    packed = read_operator_profile(profile, CONFIG)

    assert packed.by_tokens == plain.by_tokens
    assert packed.mixed == plain.mixed


def test_origin_is_noted(profile: Path) -> None:
    meta = {"gpu": "NVIDIA X", "hardware": "X", "model": "m/n", "vllm_version": "0.19.0"}
    (profile / "bf16" / "meta.json").write_text(json.dumps(meta), encoding="utf-8")

    info = read_operator_profile(profile, CONFIG).info

    assert (info.name, info.provenance) == ("m/n on X, tp1, operators", "derived")
    assert (info.details["gpu"], info.details["engine"]) == ("NVIDIA X", "vLLM 0.19.0")
    sha256 = info.details["sha256"]
    assert isinstance(sha256, dict)
    assert sorted(sha256) == ["tp1/attention.csv", "tp1/dense.csv", "tp1/per_sequence.csv"]


def test_layers_and_width_may_come_from_a_model_of_ours(profile: Path) -> None:
    spec = load_model("qwen2.5-1.5b")

    model = read_operator_profile(profile, spec)

    assert model.info.details["num_layers"] == spec.num_layers


def test_two_gpus_add_up_activations_and_gather_logits(tmp_path: Path) -> None:
    write_profile(tmp_path / "tp2")

    def time_s(**link: Any) -> float:
        model = read_operator_profile(tmp_path, CONFIG, tensor_parallel=2, **link)
        return model.iteration_s(IterationShape(0, 4, 64))

    # 4 tokens of 1000 bf16 numbers, half of twice 8000 bytes sent: after the embedding, and twice in each of
    # 10 layers. Then half of 4 times 3000 logits.
    added_s = time_s(link_bytes_per_s=1e6, link_latency_s=0.001) - time_s(link_bytes_per_s=1e18)
    assert added_s == pytest.approx(21 * (0.001 + 0.008) + (0.001 + 0.012), rel=1e-12)


def test_experts_are_read_as_if_chosen_by_lot(tmp_path: Path) -> None:
    write_profile(tmp_path / "tp1", moe=EXPERTS)

    dense, moe = (read_operator_profile(tmp_path, one, kernel_gap_s=0.0) for one in (CONFIG, MOE))

    # Four tokens reach 4 (1 - 2^-4) = 3.75 experts; one reaches 2.
    four, one = IterationShape(0, 4, 64), IterationShape(0, 1, 16)
    assert moe.iteration_s(four) - dense.iteration_s(four) == pytest.approx(10 * 37.5e-6, rel=1e-9)
    assert moe.iteration_s(one) - dense.iteration_s(one) == pytest.approx(10 * 10e-6, rel=1e-9)


def test_gpus_that_share_out_experts_read_fewer_each(tmp_path: Path) -> None:
    write_profile(tmp_path / "tp1", moe=EXPERTS)

    def time_s(config: dict[str, int], **ranks: Any) -> float:
        model = read_operator_profile(tmp_path, config, link_bytes_per_s=1e18, kernel_gap_s=0.0, **ranks)
        return model.iteration_s(IterationShape(0, 4, 64))

    # Two replicas bring 8 tokens, of which each GPU's 2 experts take 4 tokens' worth.
    added_s = time_s(MOE, expert_parallel=2) - time_s(CONFIG)
    assert added_s == pytest.approx(10 * 20e-6, rel=1e-9)


def test_replicas_that_share_out_no_experts_hold_slices_of_each(tmp_path: Path) -> None:
    write_profile(tmp_path / "tp1", moe=EXPERTS)

    def time_s(config: dict[str, int], **ranks: Any) -> float:
        model = read_operator_profile(tmp_path, config, link_bytes_per_s=1e18, kernel_gap_s=0.0, **ranks)
        return model.iteration_s(IterationShape(0, 4, 64))

    # Eight tokens reach all 4 experts but 4 / 2^8 of them; 2 of them would take 20 + 4 (20 - 10) / 3 us.
    added_s = time_s(MOE, data_parallel=2) - time_s(CONFIG)
    assert added_s == pytest.approx(10 * (40 - (40 - 100 / 3) / 2 * 4 / 2**8) * 1e-6 / 2, rel=1e-9)


def test_replicas_gather_all_tokens_and_scatter_their_sums(tmp_path: Path) -> None:
    write_profile(tmp_path / "tp1", moe=EXPERTS)

    def time_s(**link: Any) -> float:
        model = read_operator_profile(tmp_path, MOE, expert_parallel=2, **link)
        return model.iteration_s(IterationShape(0, 4, 64))

    # Half of 8 tokens of 1000 numbers, twice in each of 10 layers.
    added_s = time_s(link_bytes_per_s=1e6, link_latency_s=0.001) - time_s(link_bytes_per_s=1e18)
    assert added_s == pytest.approx(10 * 2 * (0.001 + 0.008), rel=1e-12)


def test_slices_of_experts_are_told_from_whole_ones_and_said_so(tmp_path: Path) -> None:
    write_profile(tmp_path / "tp1", moe=EXPERTS)
    write_profile(tmp_path / "tp2", skew=SKEW)

    model, dense = (
        read_operator_profile(tmp_path, one, tensor_parallel=2, link_bytes_per_s=1e18, kernel_gap_s=0.0)
        for one in (MOE, CONFIG)
    )

    shape = IterationShape(0, 4, 64)
    assert model.iteration_s(shape) - dense.iteration_s(shape) == pytest.approx(10 * 37.5e-6 / 2, rel=1e-9)
    assert model.info.details["notices"] == [
        "slices of experts were not profiled: 1/2 of the time of whole ones is taken"
    ]


def test_uneven_decodes_lag_as_the_profile_says(tmp_path: Path) -> None:
    write_profile(tmp_path / "tp1", skew=SKEW)

    model = read_operator_profile(tmp_path, CONFIG)

    even_s, uneven_s = (
        model.iteration_s(IterationShape(0, 4, 4 * 16, longest_tokens=longest)) for longest in (16, 32)
    )
    assert uneven_s - even_s == pytest.approx(10 * 0.5 * 4e-6, rel=1e-9)


def test_points_between_two_grids_are_filled(tmp_path: Path) -> None:
    lines = ATTENTION.splitlines()
    extra = ["0,0,1,24,1.5"]  # a context at which four decodes were not measured
    write_profile(tmp_path / "tp1", attention="\n".join([*lines, *extra]) + "\n")

    model = read_operator_profile(tmp_path, CONFIG)

    assert model.decode.axes[1] == (16, 24, 32)
    assert model.decode.seconds[4] == pytest.approx(10 * 6e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"tensor_parallel": 2, "link_bytes_per_s": 1e9},
            "folder tp2 .* is needed; there is none, but bf16/tp1",
        ),
        ({"expert_parallel": 2}, "link_bytes_per_s is not given; 2 GPUs"),
        ({"tensor_parallel": 2, "expert_parallel": 3, "link_bytes_per_s": 1.0}, "a multiple of"),
        ({"tensor_parallel": 0}, "tensor_parallel is 0; a whole number >= 1"),
        (
            {"tensor_parallel": 2, "link_bytes_per_s": math.nan},
            "link_bytes_per_s is nan; it is measured in bytes",
        ),
        ({"tensor_parallel": 2, "link_bytes_per_s": 450}, "link_bytes_per_s is 450; it is measured in bytes"),
        ({"link_latency_s": 20}, "link_latency_s is 20; it is measured in seconds"),
        ({"link_latency_s": math.inf}, "link_latency_s is inf; a finite number >= 0"),
        ({"kernel_gap_s": -1.0}, "kernel_gap_s is -1.0; a finite number >= 0"),
    ],
)
def test_what_cannot_be_read_is_refused(profile: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_operator_profile(profile, CONFIG, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**300}, "num_hidden_layers of the model is 10+; a whole number >= 1"),
        ({"hidden_size": True}, "hidden_size of the model is True; a whole number >= 1"),
        ({"num_experts": [4]}, r"num_experts of the model is \[4\]; a whole number >= 1"),
        (
            {"num_experts": 4, "num_experts_per_tok": 5},
            "num_experts_per_tok of the model is 5; no more than its 4",
        ),
    ],
)
def test_config_that_no_model_can_have_is_refused(
    profile: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_operator_profile(profile, {**CONFIG, **change})


def test_experts_at_one_number_of_tokens_are_refused(tmp_path: Path) -> None:
    write_profile(tmp_path / "tp1", moe=EXPERTS.replace("1,2,10\n", ""))

    with pytest.raises(TraceError, match=r"moe.csv: two or more tokens and activated_experts are needed"):
        read_operator_profile(tmp_path, MOE)


def test_two_profiles_in_one_folder_are_refused_by_name(profile: Path) -> None:
    write_profile(profile / "fp8" / "tp1")

    with pytest.raises(ConfigError, match="there are bf16/tp1, fp8/tp1"):
        read_operator_profile(profile, CONFIG)


def test_mixture_of_experts_needs_their_table(profile: Path) -> None:
    with pytest.raises(ConfigError, match=r"no moe.csv or moe.csv.gz"):
        read_operator_profile(profile, MOE)


def test_lag_follows_waves_where_gpu_and_heads_are_known_and_says_by_how_much_it_could_be_off(
    tmp_path: Path,
) -> None:
    # 4 decodes of 2 heads are one wave on 4 multiprocessors, and lag by half; 3 have their contexts split.
    write_profile(tmp_path / "tp1", skew=SKEW)
    meta = {"gpu": "a card", "multiprocessors": 4}
    (tmp_path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    config = {**CONFIG, "num_attention_heads": 4, "num_key_value_heads": 2}

    models = {
        end: read_operator_profile(tmp_path, config, uneven_contexts=end) for end in get_args(UnevenContexts)
    }

    def lag_s(end: str, seqs: int) -> float:
        even_s, uneven_s = (
            models[end].iteration_s(IterationShape(0, seqs, seqs * 16, longest_tokens=longest))
            for longest in (16, 32)
        )
        return uneven_s - even_s

    assert [lag_s(end, 3) for end in models] == pytest.approx([0, 0, 0, 0], abs=1e-12)
    assert lag_s("alike", 4) == 0
    assert lag_s("low", 4) <= lag_s("told", 4) < lag_s("high", 4)
    assert lag_s("told", 4) == pytest.approx(10 * 0.5 * 4e-6, rel=1e-9)
    told = models["told"].info.details["uneven_contexts"]
    assert isinstance(told, dict)
    assert told["multiprocessors"] == 4
    assert told["attention"]["pure"]["form"] == "waves"
    # Left out, all that is known of it is what is usual: 0.13 of the way, not half.
    beside_s = models["told"].iteration_s(IterationShape(0, 4, 64)) - 10 * 4e-6
    left_out_s, measured_s, longest_s = (beside_s + 10 * one for one in (11.3e-6, 15e-6, 20e-6))
    assert told["heldout_mape"] == pytest.approx(1 - left_out_s / measured_s)
    assert told["low"] == 0
    assert told["high"] == pytest.approx(longest_s / measured_s - 1)


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        ("dense", "layer,time_us\na,1\n", "column tokens missing; found layer, time_us"),
        ("dense", DENSE + "act_fn,1,0\n", "line 10: time_us is .*0.*; a finite number > 0"),
        ("attention", ATTENTION.replace("0,0,4,32,8", "0,0,4,-32,8"), "kv_decode is .*-32.*; a whole number"),
        ("attention", ATTENTION[: ATTENTION.index("2,0,1,16")], "no points of mixed attention"),
        ("attention", f"{ATTENTION}2,0,0,1,9\n", "two points of prefill attention at prefill_chunk 2, kv_p"),
        ("attention", ATTENTION.replace("0,0,4,32,8\n", ""), r"no points around \(4, 32\)"),
        ("attention", ATTENTION + "".join(f"{n},{n},{n},{n},1\n" for n in range(5, 90)), "at most 4194304"),
        ("attention", ATTENTION.replace("0,0,1,16,1", "0,0,1,16"), "line 6: 4 fields where the header has 5"),
        ("dense", "layer,tokens,time_us,tokens\na,1,1,1\n", "column 'tokens' stands twice in the header"),
        (
            "attention",
            ATTENTION.replace("\n4,", "\n2,"),
            "prefill attention is a grid of 1 by 2 points; two or",
        ),
        ("dense", "layer,tokens,time_us\n", "no rows in it; at least one is needed"),
        (
            "dense",
            DENSE + "act_fn,1e9,1\n",
            r"line 10: tokens is '1e9'; a whole number >= 0 is needed, up to",
        ),
        ("dense", DENSE + "act_fn,True,1\n", "line 10: tokens is 'True'; a whole number"),
        ("dense", DENSE + "act_fn,1,1e308\n", "line 10: time_us is '1e308'; a finite number > 0"),
        ("dense", DENSE + ",1,1\n", "line 10: layer is blank; one line of text is needed"),
        ("dense", "layer,tokens,time_us\na,0,1\n", "layers over tokens were measured up to 0; at least 2"),
        (
            "dense",
            DENSE.replace(",400\n", ",1e15\n").replace(",50\n", ",1e15\n"),
            "tp1: by_tokens holds a time",
        ),
        ("skew", SKEW.replace(",15", ",slow"), "line 2: t_skew_us is 'slow'; a finite number > 0"),
    ],
)
def test_broken_table_is_refused_by_place(tmp_path: Path, table: str, text: str, message: str) -> None:
    write_profile(tmp_path / "tp1", **{table: text})

    with pytest.raises(TraceError, match=message):
        read_operator_profile(tmp_path, CONFIG)


PROFILES = [
    ("RTXPRO6000", "meta-llama/Llama-3.1-8B", 1),
    ("RTXPRO6000", "Qwen/Qwen3-32B", 2),
    ("RTXPRO6000", "Qwen/Qwen3-30B-A3B-Instruct-2507", 1),
    ("RTX4090", "meta-llama/Llama-3.1-8B", 1),
]


@pytest.mark.parametrize(("gpu", "name", "tensor_parallel"), PROFILES)
def test_measured_profiles_give_times_that_grow_with_the_work(
    gpu: str, name: str, tensor_parallel: int
) -> None:
    folder = shared_path(f"groundtruth/llmservingsim/profiles/{gpu}/{name}")
    config = json.loads(shared_path(f"groundtruth/llmservingsim/models/{name}.json").read_text("utf-8"))

    model = read_operator_profile(
        folder, config, tensor_parallel=tensor_parallel, link_bytes_per_s=16e9, link_latency_s=20e-6
    )

    sizes = [64, 128, 256, 512, 1024, 2048]
    prefill_s = model.iterations_s([IterationShape(size, 0, 0, 1, size * size / 2) for size in sizes])
    decode_s = model.iterations_s([IterationShape(0, 64, 64 * size) for size in sizes])
    mixed_s = model.iterations_s([IterationShape(size, 64, 64 * 512, 1, size**2 / 2) for size in sizes])
    for times_s in (prefill_s, decode_s, mixed_s):
        assert np.isfinite(times_s).all()
        assert (times_s > 0.001).all()
        assert (times_s < 2).all()
        assert (np.diff(times_s) > -0.02 * times_s[:-1]).all()  # noise of a measurement
    assert decode_s[-1] > decode_s[0]
    errors = model.info.details["interpolation"]
    assert isinstance(errors, dict)
    # Points left out, so at twice the profile's spacing.
    assert errors["mixed"]["mape"] < 0.04
    assert errors["decode"]["mape"] < 0.04
    assert errors["prefill"]["mape"] < 0.06


def test_measured_profile_gives_lines_equal_to_its_iterations() -> None:
    name = "meta-llama/Llama-3.1-8B"
    folder = shared_path(f"groundtruth/llmservingsim/profiles/RTXPRO6000/{name}")
    config = json.loads(shared_path(f"groundtruth/llmservingsim/models/{name}.json").read_text("utf-8"))
    model = read_operator_profile(folder, config)

    for num, context in [(1, 7), (37, 37 * 250), (128, 128 * 1000), (200, 200 * 3000)]:
        longest = 3 * context // num
        first_s, growth_s, num_linear = model.decode_line(num, context, longest)
        steps = np.unique(np.linspace(0, num_linear - 1, 5).astype(int))
        shapes = [
            IterationShape(0, num, context + step * num, longest_tokens=longest + step)
            for step in steps.tolist()
        ]
        assert first_s + growth_s * steps == pytest.approx(model.iterations_s(shapes), rel=1e-9)
