"""Decodes of uneven contexts: how much longer than the mean the longest is, and what that costs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from batchsim.errors import ConfigError
from batchsim.latency.operators import OperatorTable, interpolate_all
from batchsim.latency.profile_grid import Floats


def longest_over_mean(prompt_tokens: ArrayLike, output_tokens: ArrayLike, decode_seqs: ArrayLike) -> Floats:
    """Tell the expected longest context of so many decodes, over their mean one, from requests' lengths.

    A request decodes once at each context from its prompt to the end of its answer, so that long answers are
    met more often; the decodes of a pass are taken to be drawn by lot.
    """
    prompt = np.asarray(prompt_tokens, dtype=np.int64).ravel()
    output = np.asarray(output_tokens, dtype=np.int64).ravel()
    if not prompt.size or prompt.shape != output.shape or prompt.min() < 0 or output.min() < 1:
        raise ConfigError(
            f"lengths are of {prompt.size} prompts and {output.size} outputs; as many of both, at least one, "
            "with prompt >= 0 and output >= 1 tokens are needed"
        )
    # Requests that decode at each context: one more from its prompt on, one less from its end on.
    end = prompt + output
    size = int(end.max()) + 1
    number = np.cumsum(np.bincount(prompt, minlength=size) - np.bincount(end, minlength=size))
    context = np.arange(len(number), dtype=np.float64)
    share = np.cumsum(number) / number.sum()
    mean = float((context * number).sum() / number.sum())
    below = share[None, :] ** np.asarray(decode_seqs, dtype=np.float64).reshape(-1, 1)
    longest = context[-1] - below[:, :-1].sum(axis=1)
    return np.asarray(np.maximum(longest / max(mean, 1.0), 1.0), dtype=np.float64)


def lag_by_seqs(skew: pd.DataFrame, seqs: Floats) -> Floats:
    """Tell for numbers of decodes how far an uneven pass lags: 0 as with the mean context, 1 as the longest.

    ``skew`` has columns ``n, t_mean_us, t_max_us, t_skew_us``: the times of ``n`` decodes all of the mean
    context, all of the longest, and of the uneven ones themselves. By least squares of relative errors. What
    prompt chunks run beside the decodes was found to matter little.
    """
    worse = skew["t_max_us"] / skew["t_mean_us"] - 1
    lagging = skew["t_skew_us"] / skew["t_mean_us"] - 1
    sums = pd.DataFrame({"n": skew["n"], "both": worse * lagging, "square": worse**2}).groupby("n").sum()
    lag = (sums["both"] / sums["square"]).clip(0, 1)
    number = np.concatenate([[1.0], lag.index.to_numpy(dtype=np.float64)])
    known = np.concatenate([[0.0], lag.to_numpy(dtype=np.float64)])
    return np.asarray(np.interp(seqs, number, known), dtype=np.float64)


def with_uneven_contexts(table: OperatorTable, lag: Floats, longest: Floats) -> OperatorTable:
    """Return a table, its last axes sequences and mean context, for passes whose longest context is longer.

    ``lag`` and ``longest`` (over the mean) have one value for each number of sequences.
    """
    axes, seconds = table
    points = np.meshgrid(*(np.asarray(axis, dtype=np.float64) for axis in axes), indexing="ij")
    even_s = np.asarray(seconds).reshape(points[0].shape)
    longest_s = interpolate_all(
        table, [one.ravel() for one in (*points[:-1], points[-1] * longest[:, None])]
    ).reshape(even_s.shape)
    uneven_s = even_s + lag[:, None] * np.maximum(longest_s - even_s, 0)
    return OperatorTable(axes, tuple(uneven_s.ravel().tolist()))
