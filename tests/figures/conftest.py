"""Results of two tiny sweeps that ran, shared by all tests of figures that only read them."""

import shutil
from pathlib import Path

import pytest

from batchsim.study.sweep import run_sweep

TWO_RATES = """
name = "{name}"
title = "<b>x</b> & $a_b"
figure = {figure}
save = "tables"
base.workload.num_requests = 40
base.workload.training_fraction = 0.1
grid.workload.request_rate_per_gpu = [0.5, 2.0]
grid.policy.preset = ["dynamic_no_bins", "static_fifo"]

[base.workload.generator]
kind = "poisson"
rate_per_s = 2.0
prompt = {{kind = "fixed", tokens = 20}}
output = {{kind = "fixed", tokens = 20}}
"""


@pytest.fixture(scope="session")
def two_sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``courses``, whose figure needs the tables of the runs, and ``loads``, whose does not."""
    folder = tmp_path_factory.mktemp("swept")
    over_time = '{kind = "over_time", y = ["waiting", "allowed"]}'
    for name, figure in (("courses", over_time), ("loads", '"latency_throughput"')):
        file = folder / f"{name}.toml"
        file.write_text(TWO_RATES.format(name=name, figure=figure), encoding="utf-8")
        run_sweep(file, folder / "results")
    return folder / "results"


@pytest.fixture
def swept(two_sweeps: Path, tmp_path: Path) -> Path:
    """A copy of them, to damage."""
    return Path(shutil.copytree(two_sweeps, tmp_path / "results"))
