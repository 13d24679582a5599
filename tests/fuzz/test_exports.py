"""Damaged run directories, exported and imported: one sentence, or a file that its readers take or refuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.results.exchange.export import FORMS, export_run
from batchsim.results.exchange.imported import measured_summary, read_results, save_measured
from batchsim.results.measured_tables import read_measured
from batchsim.study.run import simulate
from tests.fuzz.mutations import fuzz, mutated_json, one_sentence

LENGTHS = {"kind": "uniform", "low": 1, "high": 9}
WORKLOAD = {
    "num_requests": 8,
    "generator": {"kind": "poisson", "rate_per_s": 4.0, "prompt": LENGTHS, "output": LENGTHS},
}
TIMES = ("arrival_s", "first_token_s", "finish_s", "decode_start_s", "scheduled_s")
ODD = st.sampled_from([np.nan, -1.0, 0.0, 1e-300, 1e300, 1e12, 3.5])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for preset in ("vllm_v1", "static_fifo"):
        simulate({"policy": {"preset": preset}, "workload": WORKLOAD, "slo": {"e2e_ms": 500}}).save(
            folder / preset
        )
    file = folder / "measured.json"
    export_run(folder / "vllm_v1", file, "vllm-bench")
    (run,) = read_measured(file)
    save_measured(run, file, folder / "measured")
    return folder


def export_all(directory: Path) -> None:
    for form in FORMS:
        file = directory.parent / form
        if one_sentence(lambda form=form, file=file: export_run(directory, file, form)) is not None:  # type: ignore[misc]
            json.loads(file.read_text(encoding="utf-8").splitlines()[0])
            one_sentence(lambda file=file: read_measured(file))  # type: ignore[misc]


@given(data=st.data())
@fuzz
@pytest.mark.parametrize("name", ["vllm_v1", "static_fifo", "measured"])
@pytest.mark.parametrize("file", ["manifest.json", "summary.json"])
def test_what_a_damaged_run_says_of_itself_is_refused_or_left_out(
    name: str, file: str, data: st.DataObject, saved: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(saved / name, directory)
    content = json.loads((directory / file).read_text(encoding="utf-8"))
    (directory / file).write_bytes(data.draw(mutated_json(content)))

    export_all(directory)
    one_sentence(lambda: read_results(directory))


@given(data=st.data())
@fuzz
@pytest.mark.parametrize("name", ["vllm_v1", "static_fifo", "measured"])
def test_odd_times_are_refused_or_exported(
    name: str, data: st.DataObject, saved: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("odd") / "run"
    shutil.copytree(saved / name, directory)
    path = directory / "requests.parquet"
    table = pd.read_parquet(path)
    for column in data.draw(st.sets(st.sampled_from([one for one in TIMES if one in table]), min_size=1)):
        table.loc[data.draw(st.integers(0, len(table) - 1)), column] = data.draw(ODD)
    table.to_parquet(path)

    export_all(directory)
    runs = one_sentence(lambda: read_results(directory))
    if runs is not None:
        one_sentence(lambda: measured_summary(runs[0], simulate({"workload": WORKLOAD}).config.slo, "odd"))
