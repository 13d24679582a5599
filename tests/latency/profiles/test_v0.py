from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from batchsim.errors import ConfigError, TraceError
from batchsim.latency.base import IterationShape
from batchsim.latency.profiles.operator_profile import read_operator_profile

CONFIG = {"num_hidden_layers": 10, "hidden_size": 64, "vocab_size": 100}
LAYERS_US = {"embedding": 100, "q_proj": 20, "attn": 7777, "input_layernorm": 5, "lm_head": 1000}


def write_profile(folder: Path, decode_ms: float = 0.01) -> Path:
    """Decodes take 10 us a sequence; a chunk 1 us a token and 0.01 us a pair with a token before it."""
    folder.mkdir(parents=True)
    rows = [
        (name, tokens, 0, 1, 1000 * time_us) for name, time_us in LAYERS_US.items() for tokens in (1, 512)
    ]
    layers = pd.DataFrame(rows, columns=["layer_name", "input", "kv_cache", "tp_size", "latency(ns)"])
    layers.to_csv(folder / "layers.csv", index=False)
    chunks = [(1, chunk, before, True) for chunk, before in product((32, 64, 96), (96, 192, 384))]
    decodes = [
        (seqs, 0, context, False)
        for seqs, context in product(
            (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 168, 256), (32, 64, 128, 256, 512, 1024, 1344)
        )
    ]
    names = ["batch_size", "prefill_chunk_size", "kv_cache_size", "is_prefill"]
    frame = pd.DataFrame([*chunks, *decodes], columns=names).assign(n_embd=64, n_q_head=4, n_kv_head=2)
    chunk, before = frame["prefill_chunk_size"], frame["kv_cache_size"]
    is_prefill = frame["is_prefill"]
    frame["time_stats.attn_prefill.median"] = np.where(
        is_prefill, 1e-3 * chunk + 1e-5 * chunk * before, np.nan
    )
    frame["time_stats.attn_decode.median"] = np.where(is_prefill, np.nan, decode_ms * frame["batch_size"])
    frame.to_csv(folder / "attention.csv", index=False)
    return folder


def test_decode_is_the_sum_of_layers_and_attention(tmp_path: Path) -> None:
    write_profile(tmp_path / "tp1")

    model = read_operator_profile(tmp_path, CONFIG, kernel_gap_s=0.0)

    time_s = model.iteration_s(IterationShape(0, 4, 4 * 128))
    assert time_s == pytest.approx((100 + 1000 + 10 * (20 + 5 + 40)) * 1e-6, rel=1e-9)


def test_chunks_from_the_first_token_on_are_told_from_those_behind_others(tmp_path: Path) -> None:
    write_profile(tmp_path / "tp1")

    model = read_operator_profile(tmp_path, CONFIG, kernel_gap_s=0.0)

    alone_s, beside_s = (
        model.iteration_s(IterationShape(256, seqs, seqs * 128, 1, 256 * 128)) for seqs in (0, 4)
    )
    assert alone_s == pytest.approx((100 + 1000 + 10 * (20 + 5 + 256)) * 1e-6, rel=1e-6)
    assert beside_s - alone_s == pytest.approx(10 * 40e-6, rel=1e-6)
    assert "both alone are added up" in str(model.info.details["notices"])


def test_decodes_take_at_least_the_time_to_read_their_keys_and_values(tmp_path: Path) -> None:
    write_profile(tmp_path / "tp1")

    # 2 heads of 16 numbers, twice, of 2 bytes: 128 bytes a token.
    model = read_operator_profile(tmp_path, CONFIG, kernel_gap_s=0.0, memory_bytes_per_s=128e6)

    time_s = model.iteration_s(IterationShape(0, 4, 4 * 128))
    assert time_s == pytest.approx((100 + 1000 + 10 * (20 + 5 + 4 * 128)) * 1e-6, rel=1e-9)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("time_stats.attn_prefill.median", "", "attn_prefill.median is blank; a finite number > 0"),
        ("time_stats.attn_prefill.median", "1e308", "attn_prefill.median is '1e308'; a finite number > 0"),
        ("is_prefill", "maybe", "is_prefill is 'maybe'; True or False is needed"),
        ("kv_cache_size", "-1", "kv_cache_size is '-1'; a whole number >= 0"),
        ("n_q_head", "0", "n_q_head is '0'; a whole number >= 1"),
    ],
)
def test_wrong_value_of_an_attention_is_refused_by_line(
    column: str, value: str, message: str, tmp_path: Path
) -> None:
    folder = write_profile(tmp_path / "tp1")
    frame = pd.read_csv(folder / "attention.csv", dtype=str)
    frame.loc[0, column] = value
    frame.to_csv(folder / "attention.csv", index=False)

    with pytest.raises(TraceError, match=f"attention.csv, line 2: .*{message}"):
        read_operator_profile(tmp_path, CONFIG, memory_bytes_per_s=1e12)


def test_attention_without_a_column_or_prompts_is_refused(tmp_path: Path) -> None:
    folder = write_profile(tmp_path / "tp1")
    frame = pd.read_csv(folder / "attention.csv", dtype=str)

    frame.assign(is_prefill="False").to_csv(folder / "attention.csv", index=False)
    with pytest.raises(TraceError, match=r"attention.csv: no row of it is_prefill"):
        read_operator_profile(tmp_path, CONFIG)
    frame.drop(columns="time_stats.attn_prefill.median").to_csv(folder / "attention.csv", index=False)
    with pytest.raises(TraceError, match=r"column time_stats.attn_prefill.median missing"):
        read_operator_profile(tmp_path, CONFIG)


def test_what_such_a_profile_lacks_is_said(tmp_path: Path) -> None:
    folder = write_profile(tmp_path / "tp1")
    experts = {**CONFIG, "num_experts": 4, "num_experts_per_tok": 2}
    with pytest.raises(ConfigError, match="experts of such a profile are not read"):
        read_operator_profile(tmp_path, experts)

    frame = pd.read_csv(folder / "attention.csv")
    frame[frame["batch_size"] != 48].to_csv(folder / "attention.csv", index=False)
    with pytest.raises(TraceError, match="lacks decodes of a grid"):
        read_operator_profile(tmp_path, CONFIG)
