from pathlib import Path

import pytest

from batchsim import ConfigError
from batchsim.figures.plots import FIGURES, check_figure, find_plot
from batchsim.figures.results import read_sweep
from batchsim.study.sweep import plan, read_sweep_file, run_sweep

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))

BASE = """
name = "small"
figure = {figure}
save = "tables"
base.workload.num_requests = 6
base.workload.training_fraction = 0.2
[base.workload.generator]
kind = "poisson"
rate_per_s = 2.0
prompt = {{kind = "fixed", tokens = 20}}
output = {{kind = "uniform", low = 5, high = 20}}
"""

BINS = "[grid]\npolicy.preset = ['multi_bin']\npolicy.num_bins = [1, 2]\n"
RATES = "[grid]\nworkload.request_rate_per_gpu = [1, 2]\n"
ENGINES = f"{RATES}policy.preset = ['vllm_v1', 'orca']\n"


def sweep_file(folder: Path, figure: str, more: str, *, save: str = "tables") -> Path:
    path = folder / "small.toml"
    text = BASE.format(figure=figure).replace('"tables"', f'"{save}"') + more
    path.write_text(text, encoding="utf-8")
    return path


def check(path: Path) -> None:
    sweep = read_sweep_file(path)
    check_figure(sweep, plan(sweep, path), path)


def test_the_shipped_experiments_meet_what_their_figures_need() -> None:
    for path in EXPERIMENTS:
        for full in (False, True):
            sweep = read_sweep_file(path, full=full)
            check_figure(sweep, plan(sweep, path), path)

    assert {read_sweep_file(path).figure for path in EXPERIMENTS} == FIGURES.keys()


@pytest.mark.parametrize(
    ("figure", "more", "message"),
    [
        ('"scaling"', RATES, r"setting 'cluster.num_gpus' is not varied; known: policy, case, w"),
        ('"scheduler_comparison"', BINS, "setting 'workload.request_rate_per_gpu' is not varied"),
        ('"bin_sensitivity"', RATES, "setting 'policy.num_bins' is not varied"),
        ('"latency_throughput"', BINS, "setting 'workload.request_rate_per_gpu' is not varied"),
        ('"slo_pareto"', RATES, "metric 'slo_attainment' tells of limits that no run has; set one, e.g. slo"),
        ('"seed_variance"', RATES, "several values of 'replication' or 'seed' are needed"),
        ('"seed_variance"', "[grid]\nseed = [1]\n", "several values of 'replication' or 'seed' are needed"),
        ('"multi_bin_theorem"', BINS, "setting 'policy.batch_size' is not varied"),
        (
            '"multi_bin_theorem"',
            f"{BINS}policy.batch_size = [2]\nworkload.generator.output = [{{kind = 'fixed', tokens = 3}}]\n",
            "output lengths of a generator of kind uniform, the same for all runs, are needed",
        ),
        ('"prediction_error"', RATES, "several `cases`, each with a label of its own, are needed"),
        ('"controller_trajectory"', RATES, "no policy has a controller; one is needed"),
        (
            '"controller_trajectory"',
            "[grid]\npolicy.preset = ['dynamic_no_bins', 'dynamic_batching']\n",
            "policy dynamic_batching has no batches",
        ),
        ('"chunk_size"', ENGINES, "setting 'policy.batching.max_num_batched_tokens' is not varied"),
        ('"memory_controller"', ENGINES, "setting 'policy.batch_size' is not varied"),
        ('"tbt_controller"', ENGINES, "'workload.request_rate' is not varied; did you mean .*rate_per_gpu"),
        ('"preemption_cliff"', ENGINES, "setting 'engine.num_kv_blocks' is not varied"),
        ('{kind = "lines", x = "seed", y = "e2e_mean_s"}', RATES, "setting 'seed' is not varied"),
        (
            '{kind = "lines", x = "policy", hue = "policy", y = "e2e_mean_s"}',
            RATES,
            "setting 'policy' is named twice",
        ),
        (
            '{kind = "lines", x = "workload.request_rate_per_gpu", y = "batch_fill"}',
            ENGINES,
            "metric 'batch_fill' is one of batches that run to completion; a policy that has them is needed",
        ),
        (
            '{kind = "lines", x = "workload.request_rate_per_gpu", y = ["itl_mean_s", "itl_p99_s"]}',
            RATES,
            "metric 'itl_mean_s' is one of iterations",
        ),
        (
            '{kind = "heatmap", x = "policy.num_bins", y = "policy.num_bins", value = "e2e_mean_s"}',
            BINS,
            "setting 'policy.num_bins' is named twice",
        ),
        (
            '{kind = "heatmap", x = "policy", y = "policy.num_bins", value = "slo_attainment_tpot"}',
            BINS,
            "metric 'slo_attainment_tpot' tells of limits that no run has",
        ),
        ('{kind = "over_time", y = ["allowed"]}', RATES, "no policy has a controller"),
        (
            '{kind = "lines", x = "workload.request_rate_per_gpu", y = "e2e_mean_s"}',
            f"{RATES}policy.preset = ['multi_bin']\npolicy.num_bins = {list(range(1, 60))}\n",
            "59 rows of panels, one for each policy.num_bins, are more than the 50 that a page holds",
        ),
        ('{kind = "cdf", x = "e2e_s", hue = "seed"}', f"[grid]\nseed = {list(range(201))}", "201 lines, one"),
    ],
)  # fmt: skip
def test_what_the_grid_cannot_draw_is_refused_when_it_is_planned(
    tmp_path: Path, figure: str, more: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"small.toml: figure .*{message}"):
        check(sweep_file(tmp_path, figure, more))


def test_fairness_can_be_drawn_and_needs_no_limits(tmp_path: Path) -> None:
    figure = '{kind = "lines", x = "workload.request_rate_per_gpu", y = "%s"}'
    tenants = "\n[[base.workload.tenants]]\nname = 'a'\nslo_class = 'chat'\n"
    limits = "base.slo.classes.chat.e2e_ms = 500\n"

    check(sweep_file(tmp_path, figure % "jain_index", RATES + tenants))
    with pytest.raises(ConfigError, match="'worst_tenant_slo_attainment' tells of limits that no run has"):
        check(sweep_file(tmp_path, figure % "worst_tenant_slo_attainment", RATES + tenants))
    path = sweep_file(tmp_path, figure % "worst_tenant_slo_attainment", RATES + tenants)
    path.write_text(
        path.read_text().replace("[base.workload.generator]", f"{limits}[base.workload.generator]")
    )
    check(path)


OPEN = """
[[cases]]
policy.preset = "vllm_v1"
policy.routing.kind = "RoundRobin"
[[cases]]
policy.preset = "vllm_v1"
[[cases]]
policy = {preset = "multi_bin", num_bins = 2}
"""
KINDS = "[[cases]]\nlabel = '1'\n[[cases]]\nlabel = 'b'\npolicy.preset = 'vllm_v1'\n"
LIMITS = "[grid.slo]\n'ttft_p99.9_ms' = [1, 2]\n"
SEEDS = f"{KINDS}[grid]\nseed = [1, 2]\n"


@pytest.mark.parametrize(
    ("figure", "more"),
    [
        ('{kind = "lines", x = "policy.routing.kind", y = "e2e_mean_s"}', OPEN),
        ('{kind = "lines", x = "case", hue = "policy.num_bins", y = ["e2e_mean_s", "itl_mean_s"]}', OPEN),
        ('{kind = "lines", x = "case", y = ["e2e_mean_s", "itl_mean_s"]}', KINDS),
        ('{kind = "lines", x = "policy.num_bins", hue = "policy.routing.kind", y = "e2e_p99_s"}', OPEN),
        ('{kind = "heatmap", x = "policy", y = "seed", value = "batch_fill"}', SEEDS),
        ('{kind = "heatmap", x = "policy.num_bins", y = "policy.routing.kind", value = "e2e_mean_s"}', OPEN),
        ('{kind = "cdf", x = ["tpot_s", "ttft_s"], hue = "policy.routing.kind"}', OPEN),
        ('{kind = "lines", x = "slo.ttft_p99.9_ms", y = "ttft_p99.9_s"}', LIMITS),
        ('"scaling"', "[grid]\ncluster.num_gpus = [1, 2]\n[base.slo]\ne2e_ms = '20000'\n"),
    ],
)  # fmt: skip
def test_what_is_not_refused_is_drawn(tmp_path: Path, figure: str, more: str) -> None:
    path = sweep_file(tmp_path, figure, more)
    check(path)
    run_sweep(path, tmp_path)
    results = read_sweep(tmp_path / "small")
    plot = find_plot(results)
    assert plot is not None

    picture, table = plot.draw(results)

    assert all(axes.has_data() for axes in picture.axes)
    assert len(table) >= 1


def test_runs_that_leave_a_setting_open_have_a_place_of_their_own(tmp_path: Path) -> None:
    figure = '{kind = "lines", x = "policy", hue = "policy.routing.kind", y = "e2e_mean_s"}'
    path = sweep_file(tmp_path, figure, OPEN)
    run_sweep(path, tmp_path)
    results = read_sweep(tmp_path / "small")
    plot = find_plot(results)
    assert plot is not None

    _, table = plot.draw(results)

    assert table["policy.routing.kind"].tolist() == ["RoundRobin", "not set", "not set"]
