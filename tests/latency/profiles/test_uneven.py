import pandas as pd
import pytest

from batchsim.latency.profiles.uneven import lag_by_seqs


def test_lag_is_found_where_uneven_times_stand_between_both() -> None:
    skew = pd.DataFrame(
        {
            "n": [4, 4, 16],
            "t_mean_us": [10.0, 10.0, 10.0],
            "t_max_us": [20.0, 30.0, 40.0],
            "t_skew_us": [15.0, 20.0, 13.0],
        }
    )

    lag = lag_by_seqs(skew)

    assert lag.seqs == (4, 16)
    assert lag.share == pytest.approx((0.5, 0.1))
