import json
from pathlib import Path

import pytest

from batchsim.errors import TraceError
from batchsim.latency.fitting.vllm_log import UNTOLD, read_vllm_log

OLD = "(EngineCore pid=7) INFO 11-30 04:02:23 [core.py:359] "
NEW = "(APIServer pid=7) INFO 11-30 04:02:23 [loggers.py:199] Engine 000: "


def line(prompts: int, prompt_tokens: int, decodes: int, milliseconds: float, rest: str = "") -> str:
    return (
        f"Iteration(3): {prompts} context requests, {prompt_tokens} context tokens, {decodes} generation "
        f"requests, {decodes} generation tokens, iteration elapsed time: {milliseconds:.2f} ms{rest}"
    )


def written(folder: Path, *lines: str) -> Path:
    path = folder / "server.log"
    path.write_text("\n".join([*lines, ""]))
    return path


def test_lines_of_either_version_are_read_and_all_others_skipped(tmp_path: Path) -> None:
    lines = [
        "INFO 11-30 04:02:20 [api_server.py:1] starting",
        OLD + line(2, 300, 0, 31.5),
        NEW + line(1, 20, 7, 8.25, ", GPU KV cache usage: 3.1%"),
        NEW + line(0, 0, 7, 5.0, ", GPU KV cache usage: 3.1%"),
    ]

    log = read_vllm_log(written(tmp_path, *lines))

    names = ["prefill_tokens", "decode_seqs", "prefill_seqs", "time_s"]
    assert log.passes[names].to_numpy().tolist() == [
        [300, 0, 2, 0.0315],
        [20, 7, 1, 0.00825],
        [0, 7, 0, 0.005],
    ]
    assert log.untold == UNTOLD
    assert log.passes[[*UNTOLD]].isna().all().all()


def test_iterations_that_measure_something_else_are_left_out_and_counted(tmp_path: Path) -> None:
    speculative = line(0, 0, 2, 5.0).replace("2 generation tokens", "6 generation tokens")
    lines = [
        NEW + line(0, 0, 7, 5.0),
        NEW + line(0, 0, 0, 5.0, " (dummy), GPU KV cache usage: 3.1%"),
        NEW
        + line(1, 9, 0, 5.0, ", GPU KV cache usage: 3.1%, encoder inputs: 1, encoder output embeddings: 5"),
        NEW + speculative,
        NEW + line(0, 0, 1, 0.0),
    ]

    log = read_vllm_log(written(tmp_path, *lines))

    assert len(log.passes) == 1
    assert sum(log.skipped.values()) == 4
    assert len(log.skipped) == 4


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([NEW + "Iteration(3): 5 context req"], r"server\.log, line 1: .* is no whole line of an iteration"),
        (["nothing", ""], "no iterations in it; start vLLM with --enable-logging-iteration-details"),
        ([NEW + line(0, 0, 1, 0.0)], r"no iterations in it but 1 of 0\.00 ms"),
        (['{"start_s": 1}'], "line 1: is no pass of a logging scheduler"),
        (['{"start_s": 1', NEW + line(0, 0, 1, 2.0)], "give one of the two"),
    ],
)
def test_a_log_that_cannot_be_used_is_refused_in_a_sentence(
    tmp_path: Path, lines: list[str], said: str
) -> None:
    with pytest.raises(TraceError, match=said) as refused:
        read_vllm_log(written(tmp_path, *lines))

    assert "\n" not in str(refused.value)


def test_half_a_last_line_of_a_server_that_was_stopped_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text(NEW + line(0, 0, 7, 5.0) + "\n" + NEW + "Iteration(4): 0 cont")

    assert len(read_vllm_log(path).passes) == 1


def test_a_scheduler_that_logs_tells_contexts_and_when_the_engine_went_on(tmp_path: Path) -> None:
    passes = [
        {"start_s": 1.0, "finish_s": 1.4, "shares": [[50, 10, 60], [1, 9, 10]], "num_left": 2},
        {"start_s": 1.5, "finish_s": 1.9, "shares": [[1, 60, 61], [1, 10, 11]], "num_left": 0},
        {"start_s": 2.0, "finish_s": 2.1, "shares": [], "num_left": 0},
        {"start_s": 9.0, "finish_s": 9.5, "shares": [[1, 0, 1]], "num_left": 0},
    ]

    log = read_vllm_log(written(tmp_path, *map(json.dumps, passes)))

    names = ["prefill_tokens", "decode_seqs", "context_tokens", "prefill_seqs", "prefill_pairs"]
    assert log.passes[names].to_numpy().tolist() == [
        [50, 1, 9, 1, 50 * (10 + 25)],
        [0, 2, 70, 0, 0],
        [1, 0, 0, 1, 0.5],
    ]
    assert log.passes["time_s"].tolist() == pytest.approx([0.5, 0.4, 0.5])
    assert log.skipped == {"without tokens": 1}
