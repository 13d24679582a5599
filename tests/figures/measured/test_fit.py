import itertools
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from batchsim.figures.measured import fit as fit_figure
from batchsim.figures.measured.fit import fit_table, plot_fit
from batchsim.latency.choices import Family
from batchsim.latency.fitting.fit import fit
from batchsim.latency.tables.table import Calibration, read_calibration
from tests.latency.synthetic import kneed, write_calibration

RAW = "kind,batch_size,prompt_tokens,output_tokens,context_tokens,trial,wall_s,status\n"


def phase_calibration(folder: Path) -> Calibration:
    rows = [
        f"prefill,{size},{prompt},,,0,{0.01 + 1e-4 * size * prompt + 1e-8 * size * prompt**2},ok"
        for size, prompt in itertools.product((1, 2, 4, 8), (64, 128, 512))
    ] + [
        f"decode,{size},,,{context},0,{0.02 + 0.001 * (size > 1) + 1e-4 * size + 1e-7 * size * context},ok"
        for size, context in itertools.product((1, 2, 4, 8), (64, 128, 512))
    ]
    (folder / "phases.csv").write_text(RAW + "\n".join(rows) + "\n", encoding="utf-8")
    return read_calibration(folder / "phases.csv")


def aggregated_calibration(folder: Path) -> Calibration:
    rows = [
        f"{size},{length},{0.1 * length * size + 1},0.1,3" for size in (1, 2, 4) for length in (10, 20, 40)
    ]
    header = "batch_size,max_seq_len,mean_latency_sec,std_latency_sec,num_trials\n"
    (folder / "grid.csv").write_text(header + "\n".join(rows) + "\n", encoding="utf-8")
    return read_calibration(folder / "grid.csv")


def test_table_of_an_exact_phase_fit_repeats_the_measurements(tmp_path: Path) -> None:
    calibration = phase_calibration(tmp_path)

    table = fit_table(calibration, fit(calibration, "phase"))

    assert table["kind"].value_counts().to_dict() == {"prefill": 12, "decode": 12}
    assert table["fitted_s"].tolist() == pytest.approx(table["mean_s"].tolist(), rel=1e-9)
    assert sorted(set(table["length"])) == [64, 128, 512]


@pytest.mark.parametrize("length", ["output", "prompt+output"])
def test_length_of_an_aggregated_point_is_the_one_in_the_file(tmp_path: Path, length: str) -> None:
    calibration = aggregated_calibration(tmp_path)

    table = fit_table(calibration, fit(calibration, "table", length))

    pd.testing.assert_series_equal(table["fitted_s"], table["mean_s"], check_names=False)
    assert sorted(set(table["length"])) == [10, 20, 40]


@pytest.mark.parametrize("family", ["phase", "linear", "iteration_table"])
def test_whole_batches_that_were_not_fitted_are_shown_too(tmp_path: Path, family: Family) -> None:
    calibration = read_calibration(write_calibration(tmp_path / "kneed.csv", kneed))
    report = fit(calibration, family)

    table = fit_table(calibration, report)

    batches = table[table["kind"] == "batch"]
    assert len(batches) == len(calibration.of_kind("batch"))
    assert set(batches["prompt_tokens"]) == {16, 64}
    assert batches["error"].abs().max() == pytest.approx(report.qualities[-1].max_error, rel=1e-9)


def test_picture_is_written_in_both_forms_under_a_dotted_name(tmp_path: Path) -> None:
    calibration = read_calibration(write_calibration(tmp_path / "kneed.csv", kneed))

    picture = plot_fit(calibration, fit(calibration, "linear"), tmp_path / "qwen2.5")

    assert picture == tmp_path / "qwen2.5.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "qwen2.5.pdf").read_bytes().startswith(b"%PDF")


def test_one_legend_beside_the_panels_names_batch_sizes_and_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = read_calibration(write_calibration(tmp_path / "kneed.csv", kneed))
    drawn: list[Figure] = []
    monkeypatch.setattr(fit_figure, "save", lambda figure, stem: drawn.append(figure))

    plot_fit(calibration, fit(calibration, "linear"), tmp_path / "fit")

    (figure,) = drawn
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [name for name in names if "prompt" in name] == [
        "16 prompt tokens",
        "64 prompt tokens",
        "256 prompt tokens",
    ]
    assert {axes.get_legend() for axes in figure.axes} == {None}
    in_batches = {line.get_linestyle() for line in figure.axes[-1].get_lines()}
    assert {"-", "--"} <= in_batches
