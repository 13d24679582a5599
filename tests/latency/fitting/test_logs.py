from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchsim.errors import ConfigError
from batchsim.latency.base import RECORDED_FIELDS, IterationShape
from batchsim.latency.families import as_iteration_latency
from batchsim.latency.fitting.logs import fit_log
from batchsim.latency.fitting.vllm_log import UNTOLD, EngineLog
from batchsim.latency.linear import LinearIterationLatency

BLIND = LinearIterationLatency(5e-3, 5e-5, 0.0, 2e-4, 0.0, 4e-4, if_several_tokens_s=1e-3)
SEEING = LinearIterationLatency(5e-3, 5e-5, 2e-8, 2e-4, 4e-7, 4e-4)


def log_of(engine: LinearIterationLatency, untold: tuple[str, ...] = (), noise: float = 0.0) -> EngineLog:
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(600):
        decodes = int(rng.integers(0, 20))
        prompts = int(rng.integers(0, 3)) or int(not decodes)
        tokens = prompts * int(rng.integers(10, 400))
        shape = IterationShape(
            tokens, decodes, decodes * int(rng.integers(50, 2000)), prompts, tokens * 300.0
        )
        rows.append((*shape[:5], engine.iteration_s(shape) * float(rng.lognormal(0, noise))))
    passes = pd.DataFrame(rows, columns=[*RECORDED_FIELDS, "time_s"]).astype(float)
    passes[[*untold]] = np.nan
    return EngineLog("server.log", passes, untold, {"of 0.00 ms": 2}, "0" * 64)


def test_lines_of_a_server_give_back_a_law_of_what_they_tell() -> None:
    report = fit_log(log_of(BLIND, UNTOLD))

    assert report.coefficients["fixed_s"] == pytest.approx(5e-3)
    assert report.coefficients["per_prefill_token_s"] == pytest.approx(5e-5)
    assert report.coefficients["per_decode_seq_s"] == pytest.approx(2e-4)
    assert report.coefficients["per_prefill_seq_s"] == pytest.approx(4e-4)
    assert report.coefficients["per_context_token_s"] == report.coefficients["per_prefill_pair_s"] == 0


def test_what_lines_do_not_tell_is_said() -> None:
    report = fit_log(log_of(BLIND, UNTOLD))

    details: Any = report.model.info.details
    assert details["not_told"] == ["context_tokens", "prefill_pairs"]
    assert any("does not tell context lengths" in sentence for sentence in report.warnings)
    assert any("left out: 2 iterations of 0.00 ms" in sentence for sentence in report.warnings)
    assert report.model.info.provenance == "measured"


def test_a_scheduler_that_logs_tells_the_cost_of_contexts_too() -> None:
    report = fit_log(log_of(SEEING))

    assert report.coefficients["per_context_token_s"] == pytest.approx(4e-7)
    assert report.coefficients["per_prefill_token_s"] + 300 * report.coefficients[
        "per_prefill_pair_s"
    ] == pytest.approx(5e-5 + 300 * 2e-8)


def test_stretches_of_the_log_that_are_held_out_are_met_within_the_noise() -> None:
    report = fit_log(log_of(BLIND, UNTOLD, noise=0.05))

    details: Any = report.model.info.details
    assert 0.02 < details["held_out_lines"]["mape"] < 0.06
    assert abs(details["held_out_lines"]["total_error"]) < 0.01


def test_each_shape_counts_as_often_as_it_occurs() -> None:
    often = [(0, 1, np.nan, 0, np.nan, 2.0)] * 9 + [(0, 1, np.nan, 0, np.nan, 4.0)]
    others = [
        (100, 0, np.nan, 1, np.nan, 3.0),
        (50, 2, np.nan, 1, np.nan, 3.0),
        (100, 4, np.nan, 2, np.nan, 4.0),
    ]
    passes = pd.DataFrame([*often, *others], columns=[*RECORDED_FIELDS, "time_s"])

    report = fit_log(EngineLog("server.log", passes, UNTOLD, {}, ""))

    decode = as_iteration_latency(report.model).iteration_s(IterationShape(0, 1, 0))
    assert decode == pytest.approx(2.2, rel=0.05)


@pytest.mark.parametrize(("name", "what"), [("prefill_tokens", "prompt tokens"), ("decode_seqs", "decodes")])
def test_a_log_without_prompts_or_without_answers_is_refused(name: str, what: str) -> None:
    log = log_of(BLIND, UNTOLD)
    passes = log.passes[log.passes[name] == 0]

    with pytest.raises(ConfigError, match=f"no iteration has {what}"):
        fit_log(EngineLog("server.log", passes, UNTOLD, {}, ""))
