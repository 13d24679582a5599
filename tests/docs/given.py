"""Files that pages speak of and readers would bring: small ones, made up, in the form of published ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from batchsim.cli import main
from batchsim.latency.fitting.fit import fit
from batchsim.latency.store import save_latency
from batchsim.latency.tables.table import read_calibration
from tests.docs.pages import ROOT
from tests.latency.profiles.test_operator_profile import CONFIG, write_profile

_REPLAYS = ROOT / "calibration" / "data" / "replays" / "tiny_epyc_fp32"
_NUM = 40  # requests of a measured result


def _azure() -> Iterator[str]:
    yield "TIMESTAMP,ContextTokens,GeneratedTokens"
    for row in range(600):
        yield f"2023-11-16 18:{row // 60:02}:{row % 60:02}.5,{300 + row % 7},{20 + row % 50}"


def _burstgpt() -> Iterator[str]:
    yield "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    for row in range(600):
        prompt, answer = 100 + row % 9, 30 + row % 80
        yield f"{3 * row},ChatGPT,{prompt},{answer},{prompt + answer},Conversation log"


def _mooncake() -> Iterator[str]:
    for row in range(200):
        ids = [row % 8, 100 + row % 8, 1000 + row]
        yield json.dumps(
            {"timestamp": 400 * row, "input_length": 1500, "output_length": 20 + row % 50, "hash_ids": ids}
        )


def _server_log() -> Iterator[str]:
    for row in range(80):
        prompts, decodes = row % 3, 1 + row * 7 % 20
        milliseconds = 5 + 0.01 * (tokens := 30 * prompts * (1 + row % 5)) + 0.2 * decodes
        yield (
            f"(APIServer pid=7) INFO 11-30 04:02:23 [loggers.py:199] Engine 000: Iteration({row}): {prompts} "
            f"context requests, {tokens} context tokens, {decodes} generation requests, {decodes} generation "
            f"tokens, iteration elapsed time: {milliseconds:.2f} ms, GPU KV cache usage: 3.1%"
        )


def _vllm_result() -> Iterator[str]:
    """Of `vllm bench serve --save-detailed`."""
    result = {
        "backend": "vllm",
        "num_prompts": _NUM,
        "completed": _NUM,
        "duration": _NUM / 2,
        "request_rate": 2.0,
        "input_lens": [100] * _NUM,
        "output_lens": [20] * _NUM,
        "start_times": [row / 2 for row in range(_NUM)],
        "ttfts": [0.1] * _NUM,
        "itls": [[0.02] * 19] * _NUM,
        "errors": [""] * _NUM,
    }
    yield json.dumps(result)


def _aiperf() -> Iterator[str]:
    """A `profile_export.jsonl`."""
    for row in range(_NUM):
        metadata = {
            "request_start_ns": row * 500_000_000,
            "benchmark_phase": "profiling",
            "was_cancelled": False,
        }
        metrics = {
            "input_sequence_length": {"value": 100, "unit": "tokens"},
            "output_sequence_length": {"value": 20, "unit": "tokens"},
            "time_to_first_token": {"value": 100.0, "unit": "ms"},
            "request_latency": {"value": 480.0, "unit": "ms"},
        }
        yield json.dumps({"metadata": metadata, "metrics": metrics, "error": None})


def _lines(write: Callable[[], Iterator[str]]) -> Callable[[Path], object]:
    return lambda path: path.write_text("\n".join([*write(), ""]), encoding="utf-8")


def _latency(path: Path) -> None:
    table = ROOT / "calibration" / "data" / "tiny_epyc_fp32.csv"
    save_latency(fit(read_calibration(table), "linear").model, path)


def _small_sweep(path: Path) -> None:
    file = path.with_name("small.toml")
    file.write_text(
        'name = "small"\n[base]\nworkload.num_requests = 30\n[grid]\nworkload.request_rate = [0.1, 0.2]\n',
        encoding="utf-8",
    )
    main(["sweep", str(file), "-o", str(path.parent), "--jobs", "1"], standalone_mode=False)


#: Name of a file or folder, and what makes it there.
GIVEN: dict[str, Callable[[Path], object]] = {
    "AzureLLMInferenceTrace_conv.csv": _lines(_azure),
    "BurstGPT_1.csv": _lines(_burstgpt),
    "config.json": lambda path: path.write_text(json.dumps(CONFIG), encoding="utf-8"),
    "latency.json": _latency,
    "mooncake_trace.jsonl": _lines(_mooncake),
    "my_aiperf.jsonl": _lines(_aiperf),
    "my_vllm_result.json": _lines(_vllm_result),
    "profiles/RTXPRO6000/Qwen/Qwen3-32B": lambda path: write_profile(path / "tp2"),
    "profiles/RTXPRO6000/meta-llama/Llama-3.1-8B": lambda path: write_profile(path / "tp1"),
    "replays": lambda path: shutil.copytree(_REPLAYS, path),
    "results/small": _small_sweep,
    "server.log": _lines(_server_log),
    "simulated": lambda path: shutil.copytree(_REPLAYS / "vllm_v1-1", path),
}
