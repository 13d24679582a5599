"""A load: a request rate as a share of what a baseline serves."""

from typing import Any

import numpy as np
import pytest

import batchsim
from batchsim.errors import ConfigError
from batchsim.study import run
from batchsim.study.sweep import plan, read_sweep_file
from tests.study.test_run import workload
from tests.theory.worlds import AS_LONG_AS_THE_LONGEST, requests_of


def test_a_load_is_a_share_of_what_the_baseline_serves() -> None:
    # Eight requests at a time, each 2 s long, on three GPUs: 12 a second.
    requests = requests_of(np.arange(1200), np.full(1200, 2.0))
    config = {"cluster": {"num_gpus": 3, "kv_capacity_tokens": 10**9}, "workload": {"load": 0.5}}

    result = batchsim.simulate(config, requests, latency=AS_LONG_AS_THE_LONGEST)

    assert result.summary["request_rate_per_s"] == pytest.approx(6.0, rel=1e-6)
    assert result.config.workload.load == 0.5


def test_all_policies_meet_the_same_rate_at_a_load() -> None:
    rates = {
        batchsim.simulate(
            {"policy": {"preset": preset}, "workload": {"load": 0.7, "training_fraction": 0.1}}, workload(200)
        ).summary["request_rate_per_s"]
        for preset in ("static_fifo", "multi_bin", "multi_bin_dynamic", "vllm_v1")
    }

    assert len(rates) == 1


def test_a_load_of_an_engine_is_asked_for_by_name() -> None:
    given: dict[str, Any] = {"policy": {"preset": "orca"}, "workload": {"load": 0.7}}

    of_batches, by_default, of_engine = (
        batchsim.simulate(given, workload(200), overrides=overrides).summary["request_rate_per_s"]
        for overrides in ({"workload.load_of": "static_fifo"}, {}, {"workload.load_of": "vllm_v1"})
    )

    assert of_batches == by_default < of_engine


def test_the_baseline_is_run_once_for_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[float] = []
    measure = run._full_rate_per_s
    monkeypatch.setattr(run, "_full_rates", {})
    monkeypatch.setattr(run, "_full_rate_per_s", lambda *given: served.append(measure(*given)) or served[-1])

    for preset in ("static_fifo", "multi_bin"):
        for load in (0.3, 0.6):
            batchsim.simulate(
                {
                    "policy": {"preset": preset},
                    "workload": {"load": load, "num_requests": 200, "training_fraction": 0.1},
                }
            )

    assert len(served) == 1


def test_a_load_of_what_is_never_served_is_refused() -> None:
    config = {"workload": {"load": 0.5}, "cluster": {"kv_capacity_tokens": 1}}

    with pytest.raises(ConfigError, match="serves none of the 20 requests"):
        batchsim.simulate(config, workload(20))


@pytest.mark.parametrize("given", [{"load": 0.5, "request_rate": 1.0}, {"load_of": "orca"}, {"load": 0.0}])
def test_a_load_stands_alone(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="load"):
        batchsim.simulate({"workload": given}, workload(20))


def test_a_load_is_an_axis_of_sweeps(tmp_path: Any) -> None:
    text = 'name = "s"\nfigure = "scaling"\n[grid]\nworkload.load = [0.2, 0.9]\n'
    (tmp_path / "s.toml").write_text(text, encoding="utf-8")

    runs = plan(read_sweep_file(tmp_path / "s.toml"))

    assert [one.varied for one in runs] == [{"workload.load": 0.2}, {"workload.load": 0.9}]
