"""Every figure, and the page of them, from the dataset of a sweep alone."""

import shutil
from pathlib import Path

from batchsim.figures import draw_figures, write_report
from batchsim.results.dataset import DATASET
from batchsim.study.sweep import run_sweep

TENANTS = """
name = "{name}"
save = "tables"
figure = {figure}
grid.workload.request_rate = [1.0, 20.0]

[base]
policy.preset = "vllm_v1"
slo.ttft_ms = 500
workload.num_requests = 60
workload.generator.kind = "poisson"
workload.generator.rate_per_s = 1.0
workload.generator.prompt = {{kind = "uniform", low = 1, high = 900}}
workload.generator.output = {{kind = "uniform", low = 1, high = 90}}
workload.tenants = [{{name = "greedy", share = 3}}, {{name = "modest"}}]

[[cases]]
label = "FIFO"
policy.queueing.kind = "Fifo"

[[cases]]
label = "FairShare"
policy.queueing.kind = "FairShare"
"""
CONTROLLED = """
name = "controlled"
save = "tables"
figure = "controller_trajectory"
base.slo.tpot_ms = 15
base.workload.num_requests = 60
grid.policy.preset = ["dynamic_no_bins"]
"""
OVER_TIME = '{kind = "over_time", y = ["waiting", "running"], hue = "case"}'
CDF = '{kind = "cdf", x = ["e2e_s"], hue = "case"}'


def test_every_figure_is_drawn_from_the_dataset_alone(tmp_path: Path) -> None:
    figures = {"fair": '"fairness"', "courses": OVER_TIME, "times": CDF}
    texts = {name: TENANTS.format(name=name, figure=figure) for name, figure in figures.items()}
    for name, text in {**texts, "controlled": CONTROLLED}.items():
        file = tmp_path / f"{name}.toml"
        file.write_text(text, encoding="utf-8")
        run_sweep(file, tmp_path / "results")
    files = [*draw_figures(tmp_path / "results"), write_report(tmp_path / "results")]
    before = {file: file.read_bytes() for file in files}
    for one in (tmp_path / "results").glob("*/*"):
        if one.name != DATASET:
            shutil.rmtree(one) if one.is_dir() else one.unlink()

    again = [*draw_figures(tmp_path / "results"), write_report(tmp_path / "results")]

    assert {file: file.read_bytes() for file in again} == before
    assert len(before) == 4 * 4 + 1
