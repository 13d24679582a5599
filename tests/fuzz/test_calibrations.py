"""Damaged calibrations: one sentence, or the points of another reading of the file, and fits that hold."""

import csv
import io
import itertools
import json
import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.latency.base import BatchShape
from batchsim.latency.fitting.fit import Family, compare_families, fit
from batchsim.latency.store import load_latency, save_latency
from batchsim.latency.tables.table import TOKENS_OF_KIND, Calibration, read_calibration
from tests.fuzz.mutations import fuzz, mutated_csv, mutated_json, one_sentence

HEADER = "kind,batch_size,prompt_tokens,output_tokens,context_tokens,trial,wall_s,status"


def raw() -> str:
    """Return trials of a linear machine at a small grid of every kind."""
    rows = [HEADER]
    for size, length, trial in itertools.product((1, 2, 4), (16, 64, 128), (0, 1)):
        wobble = 1 + 0.01 * trial
        rows.append(f"prefill,{size},{length},,,{trial},{wobble * (0.01 + 1e-4 * size * length)!r},ok")
        rows.append(f"decode,{size},,,{length},{trial},{wobble * (0.02 + 1e-5 * size * length)!r},ok")
        rows.append(f"batch,{size},{length},8,,{trial},{wobble * (0.2 + 1e-3 * size * length)!r},ok")
    return "\n".join([*rows, "mixed,2,16,,64,0,0.03,ok", "prefill,64,128,,,0,,oom"]) + "\n"


AGGREGATED = "batch_size,max_seq_len,mean_latency_sec,std_latency_sec,num_trials\n" + "".join(
    f"{size},{length},{0.1 + 1e-3 * length * (2 - 1 / size)!r},{0.003 * size!r},5\n"
    for size, length in itertools.product((1, 2, 4, 8), (16, 64, 128))
)


def expected(path: Path) -> dict[tuple[str, int, int | None, int | None, int | None], float]:
    """Return the mean time of each point by another reading: the lists of the csv module, one by one."""
    text = path.read_bytes().decode("utf-8-sig")
    header, *rows = (row for row in csv.reader(io.StringIO(text, newline=""), skipinitialspace=True) if row)
    trials = defaultdict(list)
    for cells in rows:
        row = dict(zip((name.strip() for name in header), (cell.strip() for cell in cells), strict=True))
        if "mean_latency_sec" in row:
            point = ("batch", whole(row["batch_size"]), whole(row["max_seq_len"]), None, None)
            trials[point].append((float(row["mean_latency_sec"]), whole(row["num_trials"])))
        elif row["status"] == "ok":
            needed = TOKENS_OF_KIND[row["kind"]]
            names = ("prompt_tokens", "output_tokens", "context_tokens")
            counts = [whole(row[name]) if name in needed else None for name in names]
            trials[(row["kind"], whole(row["batch_size"]), *counts)].append((float(row["wall_s"]), 1))
    return {
        point: fmean([time_s for time_s, _ in times], weights=[num for _, num in times])
        for point, times in trials.items()
    }


def whole(text: str) -> int:
    assert float(text) == int(float(text))
    return int(float(text))


def found(calibration: Calibration) -> dict[tuple[object, ...], float]:
    points = calibration.points
    lengths = points["max_seq_len"].where(points["max_seq_len"].notna(), points["prompt_tokens"])
    columns = (lengths, points["output_tokens"], points["context_tokens"])
    counts = zip(
        *([None if math.isnan(one) else int(one) for one in column] for column in columns), strict=True
    )
    keys = zip(points["kind"], points["batch_size"], counts, strict=True)
    return {
        (kind, size, *rest): time_s for (kind, size, rest), time_s in zip(keys, points["mean_s"], strict=True)
    }


@given(data=st.data())
@fuzz
@pytest.mark.parametrize("valid", [raw(), AGGREGATED], ids=["raw", "aggregated"])
def test_damaged_table_is_refused_or_read_as_it_stands(
    valid: str, data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "grid.csv"
    path.write_bytes(data.draw(mutated_csv(valid)))

    calibration = one_sentence(lambda: read_calibration(path))

    if calibration is not None:
        assert found(calibration) == pytest.approx(expected(path), rel=1e-12)
        assert (calibration.points["mean_s"] > 0).all()


@given(data=st.data())
@fuzz
@pytest.mark.parametrize("family", ["affine", "phase", "table", "linear", "iteration_table", "auto"])
def test_fit_of_a_damaged_table_is_refused_or_holds(
    family: Family, data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "grid.csv"
    path.write_bytes(data.draw(mutated_csv(AGGREGATED if family in ("affine", "table") else raw())))

    calibration = one_sentence(lambda: read_calibration(path))
    report = calibration and one_sentence(lambda: fit(calibration, family))

    if report:
        save_latency(report.model, tmp_path / "latency.json")
        model = load_latency(tmp_path / "latency.json")
        assert model == report.model
        time = one_sentence(lambda: model.batch_time(BatchShape(2, 30, 5)))
        assert time is None or 0 < time.total_s < math.inf


@given(data=st.data())
@fuzz
def test_damaged_provenance_is_refused_or_taken_as_it_stands(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "grid.csv"
    path.write_text(AGGREGATED, encoding="utf-8")
    beside = path.with_suffix(".json")
    beside.write_bytes(data.draw(mutated_json({"kind": "measured", "gpu": "h100", "runs": [1, {"a": 2.5}]})))

    calibration = one_sentence(lambda: read_calibration(path))

    if calibration is not None:
        tree = json.loads(beside.read_text(encoding="utf-8-sig"))
        assert {"kind": calibration.provenance, **calibration.details} == tree


def test_undamaged_tables_are_read(tmp_path: Path) -> None:
    for text in (raw(), AGGREGATED):
        path = tmp_path / "grid.csv"
        path.write_text(text, encoding="utf-8")
        assert found(read_calibration(path)) == pytest.approx(expected(path))
        assert compare_families(read_calibration(path)).chosen
