"""The shipped experiments together: what appears in two figures must be one thing."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from batchsim.config import RunConfig, load_config
from batchsim.policies import presets
from batchsim.study.sweep import plan, read_sweep_file

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.toml"))


def point(config: RunConfig) -> tuple[Any, ...]:
    """Where a reader finds a run in a figure: its policy, load, cluster, seed, and what its caption names."""
    tree = config.model_dump(mode="json")
    return (
        presets.build(config.policy).describe(),
        config.workload.request_rate_per_gpu,
        config.cluster.num_gpus,
        config.seed,
        *(str(tree[section]) for section in ("predictor", "slo", "engine", "latency", "clients")),
        str(tree["workload"]["generator"]),
    )


def settings(config: RunConfig) -> dict[str, Any]:
    return load_config(config, {"policy": {}}).model_dump(mode="json")


def test_a_point_of_two_figures_is_one_configuration() -> None:
    runs: dict[tuple[Any, ...], dict[str, RunConfig]] = defaultdict(dict)
    for path in EXPERIMENTS:
        for run in plan(read_sweep_file(path), path):
            runs[point(run.config)].setdefault(path.stem, run.config)

    shared = {where: found for where, found in runs.items() if len(found) > 1}

    assert len(shared) > 20
    for found in shared.values():
        assert len({str(settings(config)) for config in found.values()}) == 1, f"{', '.join(found)} differ"


def test_experiments_over_the_embedded_trace_share_its_requests() -> None:
    shares = {
        path.stem: (
            run.config.workload.num_requests_per_gpu,
            run.config.workload.training_fraction,
            run.config.workload.rate_scale,
        )
        for path in EXPERIMENTS
        for run in plan(read_sweep_file(path), path)
        if run.config.workload.generator is None
    }

    assert len(shares) >= 8
    assert set(shares.values()) == {(1250, 0.1, None)}


def test_what_is_not_the_shared_trace_is_said_in_the_file() -> None:
    for path in EXPERIMENTS:
        sweep = read_sweep_file(path)
        if any(key.startswith("workload.generator") for key in sweep.base):
            comment = path.read_text(encoding="utf-8").partition("\nname")[0].replace("\n# ", " ")
            words = ("generator", "poisson", "conversations", "all requests are there")
            assert any(word in f"{comment} {sweep.title}".lower() for word in words), path.stem
