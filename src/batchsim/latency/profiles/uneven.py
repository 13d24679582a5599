"""How much longer attention takes for decodes of uneven contexts than for as many of their mean.

Attention runs in blocks, one for each sequence and head, which the multiprocessors of a GPU take in waves.
What a long context costs is the tail that its last block leaves behind: much where all blocks run at once,
less the more waves there are, and nothing where the kernel splits contexts into blocks of their own. So the
lag follows the number of waves, with one constant for each profile. Where GPU or model do not say how many
there are, or other kernels ran, it is told by the number of sequences, linear between those measured: of both
forms, that is taken which errs less on numbers of sequences that are left out of its fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.latency.base import Floats
from batchsim.latency.operators import Lag

#: How far uneven decodes are taken to lag: not at all, as told, or by the least or most that measurements
#: left out of the fit ask for.
UnevenContexts = Literal["alike", "low", "told", "high"]

_ENDS: tuple[UnevenContexts, ...] = ("low", "told", "high")

#: Waves tell of numbers that nobody measured: they are left only where they err by so much more.
WORSE = 1.1

#: From numbers of sequences to the share of the way from the time of their mean context to the longest's.
Curve = Callable[[Floats], Floats]

#: Of the groups of measurements (as many sequences, as many of them long; each weighs as much as it tells of
#: the share), what may ask for less than the low end, and for more than the high one.
TAIL = 0.1


class Heads(NamedTuple):
    """A GPU's multiprocessors, and the heads of a layer that one GPU has."""

    multiprocessors: int
    query: int
    kv: int


class WaveRule(NamedTuple):
    """How a kernel's waves tell its lag: ``most / waves ** exponent``, no more than 1.

    Attributes
    ----------
    packs_heads
        Whether one block does all query heads of a KV head.
    blocks
        That run at once on a multiprocessor.
    first_waves, first_share
        The share where there are fewer waves: 0 where contexts are split, 1 where the longest block decides.
    most
        Where a profile does not tell: about that of those it was found on.
    """

    packs_heads: bool
    blocks: int
    first_waves: float
    first_share: float
    exponent: float
    most: float

    def waves(self, seqs: Floats, heads: Heads) -> Floats:
        """Waves of the blocks of so many sequences."""
        per_sequence = heads.kv if self.packs_heads else heads.query
        return seqs * per_sequence / (self.blocks * heads.multiprocessors)

    def share(self, seqs: Floats, heads: Heads, most: float) -> Floats:
        """Return the share for numbers of sequences."""
        waves = self.waves(seqs, heads)
        return np.where(
            waves < self.first_waves, self.first_share, np.minimum(1, most / waves**self.exponent)
        )


#: FlashAttention 2 splits contexts where their blocks would take less than 0.8 of the places for them; beside
#: prompt chunks it splits none. Exponents and ``most`` are those of an RTX 4090 and an RTX PRO 6000.
WAVES: Mapping[str, WaveRule] = {
    "pure": WaveRule(True, 2, 0.8, 0.0, 1.3, 0.13),
    "mixed": WaveRule(False, 1, 1.0, 1.0, 1.0, 0.55),
}


@dataclass(frozen=True, slots=True)
class UnevenLag:
    """How far uneven decodes lag, and by how much that could be off.

    Attributes
    ----------
    form
        ``waves`` or ``sequences``.
    heldout
        Share told for each measurement, its number of sequences left out of the fit.
    heldout_mape
        By form: mean absolute error of the time of uneven attention so told.
    scale, shift
        Low and high end: factors of a share between 0 and 1, and what is added to one of 0 or 1.
    """

    form: str
    told: Curve
    heldout: Floats
    heldout_mape: Mapping[str, float]
    scale: tuple[float, float]
    shift: tuple[float, float]

    def share(self, seqs: Floats, end: UnevenContexts = "told") -> Floats:
        """Return the share for numbers of sequences, as told or at an end."""
        told = self.told(seqs)
        if end == "told":
            return told
        which = 0 if end == "low" else 1
        moved = np.where(_is_between(told), told * self.scale[which], told + self.shift[which])
        return np.clip(moved, 0, 1)

    def told_by(self) -> dict[str, object]:
        """How it was told, for a latency file."""
        return {"form": self.form, "heldout_mape": dict(self.heldout_mape), "share_factors": list(self.scale)}

    def lag(self, last: int, end: UnevenContexts = "told") -> Lag:
        """List the shares up to so many sequences."""
        seqs = np.arange(2, last + 1)
        return Lag(tuple(seqs.tolist()), tuple(self.share(seqs.astype(np.float64), end).tolist()))


def uneven_lag(skew: pd.DataFrame, regime: str, heads: Heads | None = None) -> UnevenLag:
    """Tell how far an uneven pass lags, with chunks beside its decodes (``mixed``) or without (``pure``).

    Parameters
    ----------
    skew
        Columns ``n, t_mean_us, t_max_us, t_skew_us``: times of ``n`` decodes all of the mean context, all of
        the longest, and of the uneven ones themselves; ``nb``, if there, counts those as long as the longest.
    heads
        ``None``: not known, and so nothing of waves.
    """
    forms: dict[str, Callable[[pd.DataFrame], Curve]] = {"sequences": share_by_sequences}
    if heads is not None and regime in WAVES:
        forms["waves"] = partial(share_by_waves, rule=WAVES[regime], heads=heads)
    heldout = {form: held_out(skew, fit) for form, fit in forms.items()}
    errors = {
        form: float(np.abs(uneven_us(skew, share) / skew["t_skew_us"] - 1).mean())
        for form, share in heldout.items()
    }
    by_waves = errors.get("waves", math.inf) <= WORSE * errors["sequences"]
    form = "waves" if by_waves else "sequences"
    scale, shift = _ends(skew, heldout[form])
    return UnevenLag(form, forms[form](skew), heldout[form], errors, scale, shift)


def share_by_waves(skew: pd.DataFrame, rule: WaveRule, heads: Heads) -> Curve:
    """Fit the constant of a form that follows waves, by least squares of relative errors."""
    seqs = skew["n"].to_numpy(dtype=np.float64)
    follows = rule.waves(seqs, heads) >= rule.first_waves
    per_most = uneven_us(skew, rule.waves(seqs, heads) ** -rule.exponent) - skew["t_mean_us"]
    lagging = skew["t_skew_us"] - skew["t_mean_us"]
    of_share, of_time = (values[follows] / skew["t_skew_us"][follows] for values in (per_most, lagging))
    square = float((of_share**2).sum())
    most = max(0.0, float((of_share * of_time).sum()) / square) if square else rule.most
    return partial(rule.share, heads=heads, most=most)


def share_by_sequences(skew: pd.DataFrame) -> Curve:
    """Fit the share at every number of sequences, by least squares of relative errors; linear between."""
    share = _needed(skew, ["n"])["share"].clip(0, 1)
    seqs, shares = [1, *share.index], [0.0, *share]
    return lambda wanted: np.interp(wanted, seqs, shares)


def held_out(skew: pd.DataFrame, fit: Callable[[pd.DataFrame], Curve]) -> Floats:
    """Tell the share of every measurement from those with other numbers of sequences."""
    seqs = skew["n"].to_numpy(dtype=np.float64)
    told = np.zeros(len(skew))
    for left_out in np.unique(seqs):
        told[seqs == left_out] = fit(skew[seqs != left_out])(np.array([left_out]))
    return told


def uneven_us(skew: pd.DataFrame, share: Floats) -> pd.Series[float]:
    """Microseconds of uneven attention where it goes this share of the way to the longest."""
    return skew["t_mean_us"] + share * (skew["t_max_us"] - skew["t_mean_us"])


def pass_errors(skew: pd.DataFrame, uneven: UnevenLag, beside_s: Floats, num_layers: int) -> dict[str, float]:
    """Return by how much the lag could make a decode pass shorter or longer, as shares of the pass.

    Over the passes that it was told from; ``beside_s`` is what else is in each. ``heldout_mape`` is the mean
    absolute error with numbers of sequences left out, ``low`` (<= 0) and ``high`` (>= 0) the way from what is
    told to the ends of its range; all but `TAIL` of the passes go less far.
    """
    seqs = skew["n"].to_numpy(dtype=np.float64)

    def pass_s(attention_us: pd.Series[float]) -> Floats:
        return beside_s + num_layers * 1e-6 * attention_us.to_numpy()

    measured_s, heldout_s = pass_s(skew["t_skew_us"]), pass_s(uneven_us(skew, uneven.heldout))
    low_s, told_s, high_s = (pass_s(uneven_us(skew, uneven.share(seqs, end))) for end in _ENDS)
    return {
        "heldout_mape": float(np.abs(heldout_s / measured_s - 1).mean()),
        "low": float(np.quantile(low_s / told_s - 1, TAIL)),
        "high": float(np.quantile(high_s / told_s - 1, 1 - TAIL)),
    }


def _is_between(share: Floats) -> NDArray[np.bool_]:
    return np.asarray((share > 0) & (share < 1))


def _needed(skew: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the share that each group of measurements asks for, and how much it tells of it."""
    worse = skew["t_max_us"] / skew["t_mean_us"] - 1
    lagging = skew["t_skew_us"] / skew["t_mean_us"] - 1
    sums = skew[by].assign(both=worse * lagging, weight=worse**2).groupby(by).sum()
    return sums.assign(share=sums["both"] / sums["weight"])


def _ends(skew: pd.DataFrame, heldout: Floats) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return low and high of what measurements ask for, beside what the others told: factors, and shifts."""
    groups = [column for column in ("n", "nb") if column in skew]
    needed = _needed(skew.assign(told=heldout), [*groups, "told"]).reset_index()
    told, share, weight = (needed[name].to_numpy() for name in ("told", "share", "weight"))
    between = _is_between(told)
    scale = _range(share[between] / told[between], weight[between], 1.0)
    return scale, _range(share[~between] - told[~between], weight[~between], 0.0)


def _range(values: Floats, weights: Floats, middle: float) -> tuple[float, float]:
    """Leave out `TAIL` of the weight at each side; the middle is always inside."""
    if not len(values):
        return middle, middle
    order = np.argsort(values)
    upto = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    low, high = np.interp((TAIL, 1 - TAIL), upto, values[order])
    return min(middle, float(low)), max(middle, float(high))
