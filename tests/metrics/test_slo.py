from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchsim.config import SloConfig
from batchsim.errors import ConfigError
from batchsim.metrics.slo import judged_scores, limited_statistics
from batchsim.records import FINISHED, REFUSED
from tests.metrics.worlds import request_table

TIMES_S = np.arange(1.0, 101.0)


def answered(finish_s: Sequence[float], **columns: Any) -> pd.DataFrame:
    """Requests that came together."""
    return request_table(np.zeros(len(finish_s)), finish_s=finish_s, **columns)


@pytest.mark.parametrize(("limit_ms", "is_met"), [(98_100.0, True), (96_900.0, False)])
def test_any_percentile_with_a_limit_has_its_value_and_verdict(limit_ms: float, is_met: bool) -> None:
    told = limited_statistics(answered(TIMES_S), SloConfig.model_validate({"e2e_p97.5_ms": limit_ms}))

    assert told == {
        "e2e_p97.5_s": np.percentile(TIMES_S, 97.5),
        "slo_met_e2e_p97.5": is_met,
        "slo_met": is_met,
    }


def test_the_slo_is_met_where_every_statistic_is() -> None:
    slo = SloConfig.model_validate({"e2e_mean_ms": 51_000.0, "e2e_p90_ms": 80_000.0})

    told = limited_statistics(answered(TIMES_S), slo)

    assert told["e2e_mean_s"] == 50.5
    assert (told["slo_met_e2e_mean"], told["slo_met_e2e_p90"], told["slo_met"]) == (True, False, False)


def test_requests_that_did_not_finish_are_beyond_a_limit() -> None:
    requests = answered([1.0] * 89 + [np.nan] * 11, status=[FINISHED] * 89 + [REFUSED] * 11)

    told = limited_statistics(requests, SloConfig.model_validate({"e2e_p90_ms": 2000.0}))

    assert (told["e2e_p90_s"], told["slo_met"]) == (1.0, False)


def test_what_cannot_be_told_is_none() -> None:
    by_ttft = SloConfig.model_validate({"ttft_p95_ms": 100.0})

    assert limited_statistics(answered([1.0]), by_ttft)["slo_met"] is None
    assert limited_statistics(answered([]), by_ttft)["slo_met"] is None
    assert limited_statistics(answered([1.0]), SloConfig(e2e_ms=1.0)) == {"slo_met": None}


def test_a_limit_on_a_time_that_nobody_tells_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="a limit on TTFT cannot be judged: the latency model does not tell"
    ):
        judged_scores(answered(TIMES_S), SloConfig(ttft_ms=100.0), 0.9)

    assert judged_scores(answered(TIMES_S), SloConfig(e2e_ms=50_000.0), 0.9)["good"].mean() == pytest.approx(
        -0.4
    )
