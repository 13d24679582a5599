"""A measured run made by hand: iterations take 0.6 ms with a prompt chunk and 0.3 ms without."""

import json
from pathlib import Path
from typing import Any

DENSE = """layer,tokens,time_us
layernorm,1,10
layernorm,64,10
qkv_proj,1,80
qkv_proj,64,80
"""
PER_SEQUENCE = """layer,sequences,time_us
lm_head,1,97.5
lm_head,8,97.5
"""
ATTENTION = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n" + "".join(
    f"{chunk},{before},{seqs},{context},{400 if chunk else 100}\n"
    for chunk in (0, 16, 64)
    for before in ((0, 64) if chunk else (0,))
    for seqs in (0, 1, 8)
    for context in ((16, 64) if seqs else (0,))
    if chunk or seqs
)

#: One layer: 0.1 ms for norms and projection, 0.1 ms for the head and the time between five kernels, 0.1 or
#: 0.4 ms for attention.
MODEL: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
}
META: dict[str, Any] = {
    "model": "tiny",
    "vllm_version": "0.19.0",
    "engine_kwargs": {"max_num_seqs": 8, "max_num_batched_tokens": 64, "tensor_parallel_size": 1},
    "config_json": {
        "nodes": [
            {
                "cpu_mem": {"mem_size": 512},
                "instances": [{"hardware": "toy", "npu_mem": {"mem_size": 1, "mem_util": 0.5}}],
            }
        ]
    },
}
WORKLOAD = (
    {"request_id": "a", "arrival_time_ns": 5_000_000, "input_toks": 32, "output_toks": 5},
    {"request_id": "b", "arrival_time_ns": 5_700_000, "input_toks": 32, "output_toks": 3},
)
MEASURED = """request_id,input_toks,output_toks,arrival_s,queued_s,scheduled_s,first_token_s,last_token_s
b,32,3,0.0007,0.0008,0.001,0.002,0.004
a,32,5,-0.0001,0.0,0.0,0.001,0.003
"""
PEER = """request_id,instance,input_toks,output_toks,arrival_s,first_token_s,last_token_s
a,0,32,5,0.0,0.0011,0.0033
b,0,32,3,0.0007,0.002,0.004
"""


def write_world(root: Path, *, meta: dict[str, Any] | None = None, measured: str | None = MEASURED) -> Path:
    """Write ``runs/toy/one``, ``profiles/toy/tiny/bf16/tp1``, ``models`` and ``workloads`` into a folder."""
    run, profile = root / "runs" / "toy" / "one", root / "profiles" / "toy" / "tiny" / "bf16" / "tp1"
    for folder in (run, profile, root / "models", root / "workloads"):
        folder.mkdir(parents=True)
    tree = {**(META if meta is None else meta), "note": "workload: sent"}
    (run / "meta.json").write_text(json.dumps(tree), encoding="utf-8")
    if measured is not None:
        (run / "measured_requests.csv").write_text(measured, encoding="utf-8")
        (run / "peer_toysim.csv").write_text(PEER, encoding="utf-8")
        (run / "peer_summary.csv").write_text("Metric,vLLM,Sim\nTTFT Mean,1,2\n", encoding="utf-8")
    for name, text in (("dense", DENSE), ("per_sequence", PER_SEQUENCE), ("attention", ATTENTION)):
        (profile / f"{name}.csv").write_text(text, encoding="utf-8")
    (root / "models" / "tiny.json").write_text(json.dumps(MODEL), encoding="utf-8")
    lines = "".join(json.dumps(request) + "\n" for request in WORKLOAD)
    (root / "workloads" / "sent.jsonl").write_text(lines, encoding="utf-8")
    return run
