from functools import cache

import numpy as np
import pandas as pd
import pytest

from batchsim.errors import TraceError
from batchsim.files import read_json
from batchsim.latency.profiles.multiprocessors import multiprocessors
from batchsim.latency.profiles.tables import ProfileTables
from batchsim.latency.profiles.uneven import (
    WAVES,
    Heads,
    UnevenLag,
    held_out,
    pass_errors,
    share_by_sequences,
    share_by_waves,
    uneven_lag,
    uneven_us,
)
from tests.shared_data import shared_path

#: Decodes alone fill it once with 8 sequences, beside chunks with 2.
TINY = Heads(multiprocessors=8, query=4, kv=2)


#: Constants of measurements with so many long contexts.
NB = {1: 0.3, 2: 0.1}


def measured(share: dict[int, float], worse: float = 1.0) -> pd.DataFrame:
    """Tell of times that go such a share of the way from 10 us to what is so much longer."""
    seqs = np.array(list(share))
    lagging = 10 * worse * np.array(list(share.values()))
    return pd.DataFrame(
        {"n": seqs, "t_mean_us": 10.0, "t_max_us": 10 * (1 + worse), "t_skew_us": 10 + lagging}
    )


def by_waves(regime: str, most: float, seqs: tuple[int, ...], heads: Heads = TINY) -> pd.DataFrame:
    share = WAVES[regime].share(np.array(seqs, dtype=np.float64), heads, most)
    return measured(dict(zip(seqs, share.tolist(), strict=True)))


def test_share_by_sequences_is_that_of_least_squares_and_linear_between() -> None:
    skew = pd.DataFrame(
        {
            "n": [4, 4, 16],
            "t_mean_us": [10.0, 10.0, 10.0],
            "t_max_us": [20.0, 30.0, 40.0],
            "t_skew_us": [15.0, 20.0, 13.0],
        }
    )

    curve = share_by_sequences(skew)

    assert curve(np.array([1.0, 4.0, 10.0, 16.0, 99.0])) == pytest.approx([0, 0.5, 0.3, 0.1, 0.1])


def test_decodes_alone_lag_not_where_split_then_most_then_less_by_waves() -> None:
    shares = WAVES["pure"].share(np.array([6.0, 7.0, 8.0, 16.0]), TINY, 0.2)

    assert shares == pytest.approx([0, 0.2 / 0.875**1.3, 0.2, 0.2 / 2**1.3])


def test_beside_chunks_the_longest_decides_one_wave_and_ever_less_of_more() -> None:
    shares = WAVES["mixed"].share(np.array([1.0, 2.0, 4.0, 8.0]), TINY, 0.6)

    assert shares == pytest.approx([1, 0.6, 0.3, 0.15])


@pytest.mark.parametrize("regime", ["pure", "mixed"])
def test_waves_tell_numbers_that_were_left_out(regime: str) -> None:
    skew = by_waves(regime, 0.3, (2, 4, 8, 16, 32, 64))

    lag = uneven_lag(skew, regime, TINY)

    assert lag.form == "waves"
    assert lag.heldout_mape["waves"] == pytest.approx(0, abs=1e-9)
    assert lag.heldout_mape["sequences"] > 0.01
    expected = WAVES[regime].share(np.array([7.0, 100.0]), TINY, 0.3)
    assert lag.share(np.array([7.0, 100.0])) == pytest.approx(expected)
    for end in ("low", "high"):  # nothing was off
        assert lag.share(np.array([7.0, 100.0]), end) == pytest.approx(expected)


def test_multiprocessors_tell_of_another_gpu() -> None:
    larger = TINY._replace(multiprocessors=24)
    here, there = (by_waves("pure", 0.3, (8, 16, 32, 64, 128), heads) for heads in (TINY, larger))
    most = share_by_waves(here, WAVES["pure"], TINY)(np.array([8.0]))[0]

    told = WAVES["pure"].share(there["n"].to_numpy(dtype=np.float64), larger, most)

    assert uneven_us(there, told).tolist() == pytest.approx(there["t_skew_us"].tolist())
    assert told[0] == 0  # contexts are split there


@pytest.mark.parametrize("heads", [None, TINY])
def test_other_kernels_and_unknown_gpus_are_told_by_sequences(heads: Heads | None) -> None:
    # As far from waves as can be: more sequences lag more.
    lag = uneven_lag(measured({2: 0.1, 4: 0.3, 8: 0.5, 16: 0.7, 32: 0.9}), "pure", heads)

    assert lag.form == "sequences"
    assert lag.share(np.array([8.0, 12.0])) == pytest.approx([0.5, 0.6])


def test_where_all_contexts_are_split_the_constant_is_the_usual_one() -> None:
    curve = share_by_waves(measured({2: 0.0, 4: 0.0}), WAVES["pure"], TINY)

    assert curve(np.array([8.0])) == pytest.approx([WAVES["pure"].most])


def test_ends_are_what_left_out_measurements_ask_for() -> None:
    uneven = pd.concat(
        [by_waves("pure", most, (seqs,)).assign(nb=nb) for seqs in (8, 16, 32) for nb, most in NB.items()],
        ignore_index=True,
    )

    lag = uneven_lag(uneven, "pure", TINY)

    low, told, high = (lag.share(np.array([8.0]), end)[0] for end in ("low", "told", "high"))
    assert low == pytest.approx(0.1, rel=0.1)
    assert told == pytest.approx(0.2, rel=0.1)
    assert high == pytest.approx(0.3, rel=0.1)
    assert lag.share(np.array([2.0]), "high") == pytest.approx([0])


def test_passes_could_be_off_by_the_attention_in_them() -> None:
    lag = UnevenLag(
        "sequences",
        lambda seqs: np.full(len(seqs), 0.5),
        heldout=np.array([0.5]),
        heldout_mape={"sequences": 0.0},
        scale=(0.0, 1.5),
        shift=(0.0, 0.0),
    )

    errors = pass_errors(measured({8: 0.25}), lag, np.array([85e-6]), num_layers=10)

    # 10 layers of 10 us, and up to 10 us more: 235 us told, 210 measured.
    assert errors["heldout_mape"] == pytest.approx(235 / 210 - 1)
    assert errors["low"] == pytest.approx(185 / 235 - 1)
    assert errors["high"] == pytest.approx(260 / 235 - 1)


@pytest.mark.parametrize(
    ("meta", "number"),
    [
        ({"gpu": "NVIDIA GeForce RTX 4090"}, 128),
        ({"gpu": "NVIDIA GeForce RTX 4090 Laptop GPU"}, None),
        ({"gpu": "NVIDIA RTX PRO 6000 Blackwell Server Edition"}, 188),
        ({"hardware": "RTXPRO6000"}, 188),
        ({"gpu": "NVIDIA H100 PCIe"}, 114),
        ({"gpu": "NVIDIA H100 80GB HBM3"}, 132),
        ({"gpu": "NVIDIA RTX A6000"}, 84),
        ({"gpu": "NVIDIA RTX A4000"}, None),
        ({"gpu": "NVIDIA L40S"}, 142),
        ({"gpu": "a card", "multiprocessors": 7}, 7),
        ({}, None),
    ],
)
def test_multiprocessors_are_known_by_name_or_said(meta: dict[str, object], number: int | None) -> None:
    assert multiprocessors(meta) == number


def test_no_number_of_multiprocessors_is_refused() -> None:
    with pytest.raises(TraceError, match=r"multiprocessors is 1\.5; a whole number >= 1 is needed"):
        multiprocessors({"multiprocessors": 1.5})


@cache
def profiles() -> list[tuple[str, Heads, pd.DataFrame]]:
    """Tell of all shared profiles with uneven decodes: GPU, heads of one of it, and times."""
    root = shared_path("groundtruth/llmservingsim")
    found = []
    for path in sorted(root.glob("profiles/*/*/*/*/tp*/skew.csv.gz")):
        tables = ProfileTables(path.parent)
        meta, share = tables.meta(), int(path.parent.name.removeprefix("tp"))
        config = read_json(root / "models" / f"{meta['model']}.json", error=TraceError)
        number = multiprocessors(meta)
        assert number is not None
        heads = (config["num_attention_heads"] // share, config["num_key_value_heads"] // share)
        rows = tables.read_raw("skew", "regime", "n", "nb", "t_mean_us", "t_max_us", "t_skew_us")
        found.append((meta["hardware"], Heads(number, *heads), rows[rows["t_max_us"] > rows["t_mean_us"]]))
    return found


@pytest.mark.parametrize(("regime", "at_most"), [("pure", 0.03), ("mixed", 0.065)])
def test_left_out_numbers_of_sequences_are_told_of_every_measured_gpu(regime: str, at_most: float) -> None:
    errors = []
    for _, heads, skew in profiles():
        lag = uneven_lag(skew[skew["regime"] == regime], regime, heads)
        errors.append((lag.heldout_mape["waves"], lag.heldout_mape["sequences"]))

    waves, sequences = np.array(errors).T
    assert np.median(waves) <= at_most
    assert waves.max() <= 1.5 * at_most
    assert waves.mean() <= 0.75 * sequences.mean()


@pytest.mark.parametrize(("regime", "at_most"), [("pure", 0.05), ("mixed", 0.075)])
def test_each_measured_gpu_tells_of_the_other(regime: str, at_most: float) -> None:
    rule = WAVES[regime]
    found = [(gpu, heads, skew[skew["regime"] == regime]) for gpu, heads, skew in profiles()]
    one_wave = {
        gpu: np.median(
            [
                rule_most(regime, heads, skew)
                for name, heads, skew in found
                if name == gpu and rule.waves(np.array([256.0]), heads)[0] > 2
            ]
        )
        for gpu in {gpu for gpu, _, _ in found}
    }
    assert len(one_wave) > 1
    for gpu, heads, skew in found:
        for other in set(one_wave) - {gpu}:
            told = rule.share(skew["n"].to_numpy(dtype=np.float64), heads, one_wave[other])
            assert np.abs(uneven_us(skew, told) / skew["t_skew_us"] - 1).mean() <= at_most


def rule_most(regime: str, heads: Heads, skew: pd.DataFrame) -> float:
    """Return the constant that a profile gives."""
    rule = WAVES[regime]
    seqs = np.array([10_000.0])
    told = share_by_waves(skew, rule, heads)(seqs)
    return float(told[0] * rule.waves(seqs, heads)[0] ** rule.exponent)


def test_held_out_rows_are_told_by_the_others() -> None:
    skew = measured({2: 0.2, 4: 0.9, 8: 0.6})

    assert held_out(skew, share_by_sequences).tolist() == pytest.approx([0.3, 0.3333, 0.9], abs=1e-3)
