"""A small sweep, its page, and a browser to read it with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from batchsim.study.sweep import run_sweep
from tests.report.browser import CHROMIUM, Browser

SWEEP = """
name = "bins"
title = "Bins & <b>loads</b> </script>"
cases = [
    {label = "<img src=x onerror=alert(1)>", policy.preset = "multi_bin"},
    {label = "dynamic", policy.preset = "multi_bin_dynamic"},
]

[base]
workload.num_requests = 400
workload.generator.kind = "poisson"
workload.generator.rate_per_s = 1.0
workload.generator.prompt = {kind = "fixed", tokens = 200}
workload.generator.output = {kind = "lognormal", mean = 100.0, sigma = 1.0}
workload.training_fraction = 0.1
cluster.num_gpus = 2
slo.e2e_ms = 20000
slo.tpot_ms = 15

[grid]
workload.request_rate_per_gpu = [0.2, 0.5, 3.0]
policy.num_bins = [1, 4]
seed = [1, 2]
"""

ENGINE = """
name = "one"
title = "An engine"
save = "tables"

[base]
policy.preset = "vllm_v1"
workload.num_requests = 200
workload.request_rate = 1.0
"""


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of 24 runs over load, bins and seed; beside it is one of an engine."""
    folder = tmp_path_factory.mktemp("report")
    file = folder / "bins.toml"
    file.write_text(SWEEP, encoding="utf-8")
    run_sweep(file, folder / "results")
    file.with_name("one.toml").write_text(ENGINE, encoding="utf-8")
    run_sweep(file.with_name("one.toml"), folder / "results")
    return folder / "results" / "bins"


@pytest.fixture(scope="session")
def page(swept: Path) -> Path:
    """The page of both sweeps."""
    pytest.importorskip("plotly", reason="plotly is not installed (extra [report])")
    from batchsim.report import write_page

    file = swept.parent / "report.html"
    write_page(swept.parent, file, closeups=2)
    return file


@pytest.fixture(scope="session")
def _started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(_started: Browser) -> Browser:
    """A browser of one that has complained of nothing yet, prefers light, and has a desk."""
    _started.forget()
    _started.prefer("light")
    _started.resize(1400)
    return _started


@pytest.fixture
def opened(page: Path, _started: Browser) -> Browser:
    """A browser that shows the page as it is at first; to draw it anew is faster than to load it again."""
    _started.prefer("light")
    _started.resize(1400)
    if _started.run("location.href.split('#')[0]") == page.resolve().as_uri():
        _started.complaints.clear()
        _started.choose("#sweep", "0")
    else:
        _started.open(page)
    return _started
