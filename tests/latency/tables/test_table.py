import json
import math
from pathlib import Path

import pytest

from batchsim.errors import TraceError
from batchsim.latency.tables.table import Calibration, read_calibration

RAW = (
    "kind,batch_size,prompt_tokens,output_tokens,context_tokens,trial,wall_s,cuda_s,cpu_s,status,clock_mhz\n"
)
AGGREGATED = "batch_size,max_seq_len,mean_latency_sec,std_latency_sec,num_trials\n"


def write(tmp_path: Path, text: str, provenance: object = None) -> Path:
    path = tmp_path / "grid.csv"
    path.write_text(text, encoding="utf-8")
    if provenance is not None:
        path.with_suffix(".json").write_text(json.dumps(provenance), encoding="utf-8")
    return path


def read(tmp_path: Path, text: str, provenance: object = None) -> Calibration:
    return read_calibration(write(tmp_path, text, provenance))


def test_trials_of_a_point_become_mean_spread_and_number(tmp_path: Path) -> None:
    rows = "batch,2,16,8,,0,1.0,,,ok,900\nbatch,2,16,8,,1,2.0,,,ok,900\nbatch,2,16,8,,2,3.0,,,ok,900\n"

    calibration = read(tmp_path, RAW + rows)

    assert calibration.is_raw
    point = calibration.points.iloc[0]
    assert (point["mean_s"], point["std_s"], point["num_trials"]) == (2.0, 1.0, 3)
    assert (point["batch_size"], point["prompt_tokens"], point["output_tokens"]) == (2, 16, 8)


def test_noise_is_what_the_mean_of_a_points_trials_is_unsure_by(tmp_path: Path) -> None:
    trials = "decode,1,,,16,0,0.5,,,ok,\ndecode,1,,,16,1,1.5,,,ok,\ndecode,2,,,16,0,1,,,ok,\n"

    calibration = read(tmp_path, RAW + trials)

    assert calibration.noise_of("decode") == pytest.approx(0.5)  # of the point with two trials
    assert math.isnan(calibration.noise_of("prefill"))


def test_disturbed_and_failed_trials_are_counted_and_not_used(tmp_path: Path) -> None:
    rows = "prefill,1,16,,,0,1.0,,,ok,\nprefill,1,16,,,1,9.0,,,disturbed,\nprefill,64,16,,,0,,,,oom,\n"

    calibration = read(tmp_path, RAW + rows)

    assert calibration.dropped == {"oom": 1, "disturbed": 1}
    assert calibration.points["mean_s"].tolist() == [1.0]
    assert math.isnan(calibration.points["std_s"].iloc[0])


def test_token_counts_that_a_kind_does_not_have_are_ignored(tmp_path: Path) -> None:
    rows = "decode,2,5,,64,0,1.0,,,ok,\ndecode,2,,0,64,1,3.0,,,ok,\n"

    points = read(tmp_path, RAW + rows).of_kind("decode")

    assert points["mean_s"].tolist() == [2.0]
    assert points["context_tokens"].tolist() == [64]


def test_another_clock_can_be_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, RAW + "prefill,1,16,,,0,1.0,0.5,0.25,ok,\n")

    assert read_calibration(path, clock="cuda_s").points["mean_s"].tolist() == [0.5]
    assert read_calibration(path, clock="cpu_s").points["mean_s"].tolist() == [0.25]
    assert read_calibration(path).clocks == ("wall_s", "cuda_s", "cpu_s")


def test_aggregated_form_keeps_means_spread_and_trials(tmp_path: Path) -> None:
    calibration = read(tmp_path, AGGREGATED + "4,128,0.5,0.01,5\n1,128,0.25,0,5\n")

    assert not calibration.is_raw
    assert calibration.points[
        ["batch_size", "max_seq_len", "mean_s", "std_s", "num_trials"]
    ].to_numpy().tolist() == [
        [1, 128, 0.25, 0, 5],
        [4, 128, 0.5, 0.01, 5],
    ]


def test_means_of_the_same_point_are_pooled_by_their_trials(tmp_path: Path) -> None:
    # Trials 1, 3 and 5, 5, 5, 5: mean 4, squares 9 + 1 + 4 over five degrees of freedom.
    point = read(tmp_path, AGGREGATED + f"1,128,2,{math.sqrt(2)},2\n1,128,5,0,4\n").points.iloc[0]

    assert point["mean_s"] == 4
    assert point["std_s"] == pytest.approx(math.sqrt(14 / 5))
    assert point["num_trials"] == 6


def test_provenance_comes_from_the_file_beside_the_table(tmp_path: Path) -> None:
    calibration = read(tmp_path, AGGREGATED + "1,128,0.5,0.01,5\n", {"kind": "measured", "gpu": "h200"})

    assert (calibration.provenance, calibration.details) == ("measured", {"gpu": "h200"})


def test_table_without_provenance_counts_as_synthetic_and_says_so(tmp_path: Path) -> None:
    calibration = read(tmp_path, AGGREGATED + "1,128,0.5,0.01,5\n")

    assert calibration.provenance == "synthetic"
    assert "it counts as synthetic" in calibration.notices[0]


def test_provenance_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"grid.json: kind is 'real'; known: measured, derived, synthetic"):
        read(tmp_path, AGGREGATED + "1,128,0.5,0.01,5\n", {"kind": "real"})


def test_spread_that_is_one_share_of_every_mean_is_noticed(tmp_path: Path) -> None:
    rows = [f"{size},128,{0.1 * size},{0.1 * size * 0.05},3\n" for size in (1, 2, 4, 8, 16)]
    honest = [*rows[:-1], "16,128,1.6,0.09,3\n"]

    noticed = read(tmp_path, AGGREGATED + "".join(rows), {"kind": "measured"})
    passed = read(tmp_path, AGGREGATED + "".join(honest), {"kind": "measured"})

    assert noticed.notices == (
        "grid.csv: the spread is 5.0% of the mean at every point; measured spreads differ",
    )
    assert passed.notices == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,128,0,0.01,5", "line 3: mean_latency_sec is '0'; a finite number > 0 is needed"),
        ("1,128,-0.5,0.01,5", "line 3: mean_latency_sec is '-0.5'"),
        ("1,128,nan,0.01,5", "line 3: mean_latency_sec is 'nan'"),
        ("1,128,,0.01,5", "line 3: mean_latency_sec is blank"),
        ("1,128,inf,0.01,5", "line 3: mean_latency_sec is 'inf'"),
        ("1,128,fast,0.01,5", "line 3: mean_latency_sec is 'fast'"),
        ("0,128,0.5,0.01,5", "line 3: batch_size is '0'; a whole number >= 1 is needed"),
        ("1.5,128,0.5,0.01,5", "line 3: batch_size is '1.5'"),
        ("1,0,0.5,0.01,5", "line 3: max_seq_len is '0'"),
        ("1,128,0.5,-1,5", "line 3: std_latency_sec is '-1'; a finite number >= 0 is needed"),
        ("1,128,0.5,0.01,0", "line 3: num_trials is '0'"),
    ],
)
def test_wrong_value_in_the_aggregated_form_is_refused_by_line(
    tmp_path: Path, row: str, message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        read(tmp_path, AGGREGATED + "2,128,0.5,0.01,5\n" + row + "\n")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("batch,2,16,8,,0,0,,,ok,", "line 3: wall_s is '0'"),
        ("batch,2,16,,,0,1,,,ok,", "line 3: output_tokens is blank"),
        ("decode,2,16,,,0,1,,,ok,", "line 3: context_tokens is blank"),
        ("train,2,16,8,,0,1,,,ok,", "line 3: kind is 'train'; known: batch, prefill, decode, mixed"),
        ("batch,2,16,8,,0,1,,,fine,", "line 3: status is 'fine'; known: ok, oom, disturbed"),
    ],
)
def test_wrong_value_in_a_raw_trial_is_refused_by_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read(tmp_path, RAW + "prefill,1,16,,,0,1.0,,,disturbed,\n" + row + "\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a CSV table"),
        (AGGREGATED, "no rows in it"),
        (AGGREGATED + "1,128,0.5,0.01,5,7\n", "line 2: 6 fields where the header has 5"),
        (
            "batch_size,max_seq_len,mean_latency_sec\n1,128,1\n",
            "column std_latency_sec, num_trials missing; found batch_",
        ),
        (
            "batch_size,trial\n1,1\n",
            "column kind, prompt_tokens, output_tokens, context_tokens, wall_s, status missing",
        ),
        (RAW + "prefill,64,16,,,0,,,,oom,\n", "no row has status ok"),
    ],
)
def test_table_without_points_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read(tmp_path, text)


def test_absent_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none.csv: cannot be read"):
        read_calibration(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("batch,1e7,16,8,,0,1,,,ok,", "line 2: batch_size is '1e7'; a whole number >= 1 is needed, up to 1e"),
        (
            "batch,2,1e9,8,,0,1,,,ok,",
            "line 2: prompt_tokens is '1e9'; a whole number >= 1 is needed, up to 1e",
        ),
        (
            "batch,2,16,8,,0,1e308,,,ok,",
            "line 2: wall_s is '1e308'; a finite number > 0 is needed, from 1e-12",
        ),
        ("batch,2,16,8,,0,1e-320,,,ok,", "line 2: wall_s is '1e-320'; a finite number > 0 is needed"),
        ("batch,2,16,8,,0,True,,,ok,", "line 2: wall_s is 'True'; a finite number > 0 is needed"),
        ("batch,2,16,8,,0,1,,,ok", "line 2: 10 fields where the header has 11"),
    ],
)
def test_trial_that_no_machine_can_have_is_refused(row: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=message):
        read(tmp_path, RAW + row + "\n")


def test_table_of_more_points_than_fits_can_hold_out_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchsim.latency.tables.table.MAX_POINTS", 1)
    trial = "prefill,1,16,,,0,1.0,,,ok,\n"

    assert len(read(tmp_path, RAW + trial + trial).points) == 1
    with pytest.raises(TraceError, match="holds 2 points; at most 1 are needed"):
        read(tmp_path, RAW + trial + trial.replace("16", "17"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not valid JSON"),
        ('{"kind": "measured", "kind": "derived"}', "key 'kind' stands twice"),
        ('{"kind": ["measured"]}', r"kind is \['measured'\]; known: measured, derived, synthetic"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_provenance_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, AGGREGATED + "1,128,0.5,0.01,5\n")
    path.with_suffix(".json").write_text(text, encoding="utf-8")

    with pytest.raises(TraceError, match=f"grid.json: {message}"):
        read_calibration(path)
