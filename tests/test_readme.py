import re
import sys
from pathlib import Path

import pytest

from batchsim.cli.numbers import milliseconds
from batchsim.cli.output import ROWS
from batchsim.config import load_config
from batchsim.latency.fitting.fit import fit
from batchsim.latency.tables.table import read_calibration
from batchsim.study.compare import compare
from batchsim.study.plan import plan, read_sweep_file
from batchsim.study.run import simulate
from batchsim.study.setup.coverage import cut_to_range
from batchsim.workload.load import embedded_trace, load_trace
from tests.study.test_run import workload

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
CALIBRATION = ROOT / "docs" / "calibration.md"


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


@pytest.mark.parametrize("page", [README, CALIBRATION], ids=lambda page: page.name)
def test_output_that_is_shown_has_the_rows_that_commands_print(page: Path) -> None:
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    shown = [
        re.split(r"\s{2,}", line.strip()) for line in "".join(blocks).splitlines() if re.match(r" \S", line)
    ]
    rows = [cells for cells in shown if len(cells) > 2]
    printed = {title: unit for title, *_, unit in ROWS}

    assert len(rows) > 3
    for title, *numbers, unit in rows:
        assert printed[title] == unit
        if unit == "ms":
            assert numbers == [milliseconds(float(number.replace(",", ""))) for number in numbers]


def test_the_shipped_trace_is_cut_to_the_shipped_calibration_as_the_docs_say() -> None:
    points = read_calibration(ROOT / "calibration" / "data" / "tiny_epyc_fp32.csv")

    cut = cut_to_range(load_trace(embedded_trace()), fit(points, "linear").model)

    assert cut.source.notices[-1] in " ".join(CALIBRATION.read_text(encoding="utf-8").split())


CLUSTERS = (ROOT / "docs" / "clusters.md").read_text("utf-8")


@pytest.mark.parametrize("text", re.findall(r"```toml\n(.*?)```", CLUSTERS, re.DOTALL))
def test_run_files_of_the_page_on_clusters_run_as_they_stand(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text, encoding="utf-8")

    result = simulate(load_config(file))

    assert len(result.requests) == result.config.workload.num_requests
    assert (result.requests["status"] == "finished").mean() > 0.5
