"""The tables here are synthetic: made of a known time per point, noise, and a speed per trial."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from batchsim.errors import ConfigError, TraceError
from batchsim_calibration.measuring.agreement import compare
from batchsim_calibration.provenance import REQUIRED

POINTS = pd.DataFrame(
    [("decode", b, None, None, c) for b in (1, 2, 4, 8) for c in (16, 64, 256)]
    + [("prefill", b, n, None, None) for b in (1, 2, 4) for n in (16, 64, 256)],
    columns=["kind", "batch_size", "prompt_tokens", "output_tokens", "context_tokens"],
)


def table(
    path: Path,
    seed: int = 0,
    *,
    noise: float = 0.05,
    speed_noise: float = 0.0,
    slower: dict[str, float] | None = None,
    rows: slice = slice(None),
    details: dict[str, object] | None = None,
) -> Path:
    generator = np.random.default_rng(seed)
    trials = []
    for trial in range(1, 8):
        points = POINTS[rows]
        time_s = points["batch_size"] * points[["prompt_tokens", "context_tokens"]].sum(axis=1) * 1e-4
        time_s *= points["kind"].map(lambda kind: (slower or {}).get(kind, 1.0))
        time_s *= np.exp(generator.normal(0, noise, len(points)) + generator.normal(0, speed_noise))
        trials.append(points.assign(trial=trial, wall_s=time_s, status="ok"))
    pd.concat(trials).astype(dict.fromkeys(POINTS.columns[2:], "Int64")).to_csv(path, index=False)
    known = dict.fromkeys(REQUIRED) | {"kind": "measured"}
    path.with_suffix(".json").write_text(json.dumps(known | (details or {})))
    return path


def test_a_run_agrees_with_itself_exactly(tmp_path: Path) -> None:
    first = table(tmp_path / "first.csv")

    agreement = compare(first, first)

    assert agreement.agrees
    assert (agreement.points["ratio"] == 1).all()
    assert agreement.notices == ()


def test_a_run_disagrees_with_one_that_is_slower_by_a_third(tmp_path: Path) -> None:
    first = table(tmp_path / "first.csv", 0)
    second = table(tmp_path / "second.csv", 1, slower={"decode": 1.3, "prefill": 1.3})

    agreement = compare(first, second)

    assert not agreement.agrees
    assert not agreement.kinds["agrees"].any()
    assert agreement.kinds["ratio"].to_numpy() == pytest.approx(1.3, rel=0.05)


def test_repeated_runs_of_a_noisy_machine_agree(tmp_path: Path) -> None:
    num_agreeing = sum(
        compare(
            table(tmp_path / "first.csv", seed, noise=0.1, speed_noise=0.05),
            table(tmp_path / "second.csv", 100 + seed, noise=0.1, speed_noise=0.05),
        ).agrees
        for seed in range(20)
    )

    assert num_agreeing >= 18


def test_a_slower_kind_is_told_from_one_that_is_not(tmp_path: Path) -> None:
    first = table(tmp_path / "first.csv", 0)
    second = table(tmp_path / "second.csv", 1, slower={"prefill": 1.2})

    kinds = compare(first, second).kinds.set_index("kind")

    assert kinds["agrees"].to_dict() == {"decode": True, "prefill": False}


def test_speed_that_changes_from_trial_to_trial_widens_the_interval_of_a_kind(tmp_path: Path) -> None:
    def width(speed_noise: float) -> float:
        first = table(tmp_path / "first.csv", 0, speed_noise=speed_noise)
        second = table(tmp_path / "second.csv", 1, speed_noise=speed_noise)
        kinds = compare(first, second).kinds
        return float((kinds["high"] - kinds["low"]).max())

    assert width(0.2) > 3 * width(0.0)


def test_extra_trials_and_the_drift_monitor_are_left_out(tmp_path: Path) -> None:
    first = table(tmp_path / "first.csv")
    rows = pd.read_csv(first).assign(purpose="trial")
    others = [rows.assign(purpose=purpose, wall_s=rows["wall_s"] * 9) for purpose in ("extra", "reference")]
    pd.concat([rows, *others]).to_csv(tmp_path / "second.csv", index=False)

    agreement = compare(first, tmp_path / "second.csv")

    assert (agreement.points["ratio"] == 1).all()


def test_points_of_one_run_alone_are_counted(tmp_path: Path) -> None:
    first = table(tmp_path / "first.csv", rows=slice(0, 15))
    second = table(tmp_path / "second.csv", rows=slice(5, 21))

    agreement = compare(first, second)

    assert (len(agreement.points), agreement.num_only_first, agreement.num_only_second) == (10, 5, 6)


def test_a_point_that_lacks_trials_is_compared_by_those_it_has(tmp_path: Path) -> None:
    first = table(tmp_path / "first.csv")
    pd.read_csv(first).iloc[: 6 * len(POINTS) + 1].to_csv(tmp_path / "second.csv", index=False)

    assert compare(first, tmp_path / "second.csv").agrees


def test_runs_without_a_common_point_cannot_be_compared(tmp_path: Path) -> None:
    first = table(tmp_path / "first.csv", rows=slice(0, 10))
    second = table(tmp_path / "second.csv", rows=slice(10, 20))

    with pytest.raises(ConfigError, match="no point in common"):
        compare(first, second)


def test_means_alone_cannot_be_compared(tmp_path: Path) -> None:
    means = tmp_path / "means.csv"
    means.write_text("batch_size,max_seq_len,mean_latency_sec,std_latency_sec,num_trials\n1,64,0.5,0.01,7\n")

    with pytest.raises(ConfigError, match="not raw trials"):
        compare(means, means)


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="absent"):
        compare(tmp_path / "absent.csv", tmp_path / "absent.csv")


def test_runs_of_different_things_are_noticed(tmp_path: Path) -> None:
    first = table(tmp_path / "first.csv", details={"dtype": "fp16"})
    second = table(tmp_path / "second.csv", details={"dtype": "bf16"})

    assert compare(first, second).notices == ("dtype differs: fp16 and bf16",)


def test_a_provenance_that_lacks_something_is_noticed(tmp_path: Path) -> None:
    first = table(tmp_path / "first.csv")
    first.with_suffix(".json").write_text(
        json.dumps({"kind": "measured"} | {name: None for name in REQUIRED if name not in ("kind", "driver")})
    )

    assert compare(first, first).notices[0] == "first.csv: its provenance lacks driver"
