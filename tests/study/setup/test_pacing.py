from pathlib import Path

import pytest
from click.testing import CliRunner

from batchsim.cli import main
from batchsim.config import load_config
from batchsim.errors import ConfigError
from batchsim.latency.linear import LinearIterationLatency
from batchsim.latency.store import save_latency
from batchsim.metrics.system import Window, busy_fraction
from batchsim.study.run import simulate
from batchsim.study.setup.pacing import paced, requests_of
from batchsim.workload.formats import read_trace

ENGINE = LinearIterationLatency(0.01, 1e-5, 0.0, 1e-4, 0.0)
CONFIG = {
    "policy": {"preset": "vllm_v1", "batch_size": 8},
    "engine": {"num_kv_blocks": 1000},
    "workload": {
        "num_requests": 60,
        "generator": {
            "kind": "poisson",
            "rate_per_s": 1.0,
            "prompt": {"kind": "fixed", "tokens": 50},
            "output": {"kind": "fixed", "tokens": 10},
        },
    },
}


@pytest.mark.parametrize("busy", [0.3, 0.9])
def test_a_paced_trace_keeps_the_engine_busy_for_the_share_asked_for(busy: float) -> None:
    config = load_config(CONFIG)

    workload, rate_per_s = paced(config, requests_of(config), ENGINE, busy)

    tree = {**CONFIG, "workload": {"training_fraction": 0.0}}
    result = simulate(tree, workload, latency=ENGINE)
    requests = result.requests
    span = Window(float(requests["arrival_s"].min()), float(requests["finish_s"].max()))
    assert busy_fraction(result.iterations, 1, span) == pytest.approx(busy, abs=0.01)
    assert rate_per_s == pytest.approx((len(workload) - 1) / float(workload.arrival_s[-1]), rel=0.05)


def test_a_share_that_nothing_can_be_is_refused() -> None:
    config = load_config(CONFIG)

    with pytest.raises(ConfigError, match="between 0 and 1"):
        paced(config, requests_of(config), ENGINE, 1.0)


def test_pace_writes_a_trace_for_each_share(tmp_path: Path) -> None:
    save_latency(ENGINE, tmp_path / "latency.json")
    (tmp_path / "run.toml").write_text(
        'policy = {preset = "vllm_v1", batch_size = 8}\nengine.num_kv_blocks = 1000\n'
        "workload.num_requests = 20\n"
    )

    words = ["pace", str(tmp_path / "run.toml"), "--latency", str(tmp_path / "latency.json")]
    result = CliRunner().invoke(main, [*words, "--busy", "0.5", "--busy", "0.7", "-o", str(tmp_path / "out")])

    assert result.exit_code == 0, result.output
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["busy50.csv", "busy70.csv"]
    assert len(read_trace(tmp_path / "out" / "busy70.csv")) == 20
