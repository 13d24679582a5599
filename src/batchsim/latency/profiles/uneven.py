"""How much longer attention takes for decodes of uneven contexts than for as many of their mean."""

from __future__ import annotations

import pandas as pd

from batchsim.latency.operators import Lag


def lag_by_seqs(skew: pd.DataFrame) -> Lag:
    """Tell for numbers of decodes how far an uneven pass lags: 0 as with the mean context, 1 as the longest.

    ``skew`` has columns ``n, t_mean_us, t_max_us, t_skew_us``: the times of ``n`` decodes all of the mean
    context, all of the longest, and of the uneven ones themselves. By least squares of relative errors. What
    prompt chunks run beside the decodes was found to matter little.
    """
    worse = skew["t_max_us"] / skew["t_mean_us"] - 1
    lagging = skew["t_skew_us"] / skew["t_mean_us"] - 1
    sums = pd.DataFrame({"n": skew["n"], "both": worse * lagging, "square": worse**2}).groupby("n").sum()
    share = (sums["both"] / sums["square"]).clip(0, 1)
    return Lag(tuple(map(int, share.index)), tuple(share.tolist()))
