import re
import sys
from pathlib import Path

import pytest

from batchsim.study.compare import compare
from batchsim.study.plan import plan, read_sweep_file
from tests.study.test_run import workload

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def test_the_policy_of_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(# mine\.py.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    config = {"workload": {"request_rate": 12.0}}

    comparison = compare(config, ["static_fifo", "mine:careful"], workload(800))

    mine = comparison.results["mine:careful"]
    assert set(mine.batches["size_limit"]) == {8, 16}
    assert (mine.requests["status"] == "finished").all()


def test_the_caption_of_the_first_figure_says_what_its_experiment_is() -> None:
    (caption,) = re.findall(
        r"scheduler_comparison\.png\)\n\n\*(.*?)\*\n", README.read_text("utf-8"), re.DOTALL
    )
    runs = plan(read_sweep_file(ROOT / "experiments" / "scheduler_comparison.toml"))

    presets, timers = (
        {run.config.policy.preset for run in runs},
        [run.case for run in runs if "timer" in run.case],
    )
    assert len(presets) == 4
    assert caption.startswith("The four presets")
    assert ("with a timer" in caption) == bool(timers)
    assert {f"on {run.config.cluster.num_gpus} GPUs" in caption for run in runs} == {True}
