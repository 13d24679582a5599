"""What each tenant got, reckoned by hand."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsim.config import SloConfig
from batchsim.metrics.cluster.tenants import (
    PLAIN_TARIFF,
    Tariff,
    jain_index,
    max_min_fair,
    tenant_summary,
    tenant_table,
)
from batchsim.metrics.system import Window, is_good, slo_attainment, slo_met
from batchsim.records import ABANDONED, FINISHED, REFUSED, arrays
from batchsim.results.store import load_run
from batchsim.study.run import simulate
from tests.metrics.worlds import request_table
from tests.sim.worlds import LinearLatency


def three_requests(**more: Any) -> pd.DataFrame:
    """``a`` was served 10 + 2 * 20, half of its answer by 5 s; the first of ``b`` 40 + 2 * 10."""
    requests = request_table(
        [0.0, 1.0, 2.0],
        prompt_tokens=[10, 40, 7],
        output_tokens=[20, 10, 5],
        scheduled_s=[0.0, 2.0, np.nan],
        first_token_s=[2.0, 3.0, np.nan],
        finish_s=[8.0, 4.0, np.nan],
        status=[FINISHED, FINISHED, ABANDONED],
    )
    return requests.assign(tenant=["a", "b", "b"], **more)


def rows_of(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_index(["kind", "name"])


def test_service_is_counted_in_the_window_and_compared_with_what_is_fair() -> None:
    table = tenant_table(arrays(three_requests()), SloConfig(ttft_ms=2000), 0, Window(0.0, 5.0), PLAIN_TARIFF)

    rows = rows_of(table)
    assert rows["num_requests"].tolist() == [1, 2]
    assert rows["num_finished"].tolist() == [1, 1]
    assert rows["slo_attainment"].tolist() == [1.0, 0.5]
    assert rows["ttft_mean_s"].tolist() == [2.0, 2.0]
    assert rows["e2e_p99_s"].tolist() == [8.0, 3.0]
    assert rows["tpot_mean_s"].to_list() == [6 / 19, 1 / 9]
    assert rows["queueing_mean_s"].tolist() == [0.0, 1.0]
    assert rows["request_throughput_per_s"].tolist() == [0.0, 1 / 5]
    assert rows["output_throughput_tokens_per_s"].tolist() == [10 / 5, 10 / 5]
    assert rows["service_tokens"].tolist() == [10 + 2 * 10, 40 + 2 * 10]
    assert rows["demand_tokens"].tolist() == [50, 60 + 17]
    assert rows["fair_tokens"].tolist() == [45, 45]
    assert tenant_summary(table) == {
        "num_tenants": 2,
        "jain_index": pytest.approx(90**2 / (2 * (30**2 + 60**2))),
        "worst_tenant_slo_attainment": 0.5,
    }


def test_what_was_served_before_is_asked_for_no_more() -> None:
    """From 5 s on ``a`` still has half of its answer to come, and who gave up asks for nothing."""
    table = tenant_table(arrays(three_requests()), SloConfig(), 0, Window(5.0, 10.0), PLAIN_TARIFF)

    rows = rows_of(table)
    assert rows["service_tokens"].tolist() == [20, 0]
    assert rows["demand_tokens"].tolist() == pytest.approx([20, 0])
    assert rows["slo_attainment"].isna().all()
    assert tenant_summary(table)["jain_index"] == pytest.approx(1.0)
    assert math.isnan(tenant_summary(table)["worst_tenant_slo_attainment"])


def test_weights_and_prices_are_those_of_the_queue() -> None:
    tariff = Tariff(0.5, 1.0, {"a": 2.0})
    rows = rows_of(tenant_table(arrays(three_requests()), SloConfig(), 0, Window(0.0, 5.0), tariff))

    assert rows["service_tokens"].tolist() == [5 + 10, 20 + 10]
    assert rows["fair_tokens"].tolist() == [25, 20]  # a asks for 25, which is less than two thirds of 45


def test_classes_have_rows_and_limits_of_their_own() -> None:
    requests = arrays(three_requests(slo_class=["chat", "", "chat"]))
    slo = SloConfig.model_validate(
        {"ttft_ms": 2500, "classes": {"chat": {"ttft_ms": 1500, "e2e_ms": 9000}, "other": {"e2e_ms": 1}}}
    )

    assert slo_met(requests, slo)["ttft"].tolist() == [False, True, False]
    assert slo_met(requests, slo)["e2e"].tolist() == [True, True, False]
    good = is_good(requests, slo)
    assert good is not None
    assert good.tolist() == [False, True, False]
    rows = rows_of(tenant_table(requests, slo, 0, Window(0.0, 5.0), PLAIN_TARIFF))
    assert rows.loc["class", "slo_attainment"].to_dict() == {"": 1.0, "chat": 0.0}
    assert rows.loc["tenant", "slo_attainment"].to_dict() == {"a": 0.0, "b": 0.5}


def test_limits_of_classes_alone_hold_for_them_alone() -> None:
    slo = SloConfig.model_validate({"classes": {"chat": {"e2e_ms": 5000}}})

    assert slo_attainment(arrays(three_requests(slo_class=["chat", "", "x"])), slo) == 1 / 3
    assert math.isnan(slo_attainment(arrays(three_requests()), slo))  # no classes, no limits


def test_requests_cut_as_warm_up_count_in_no_time_or_attainment() -> None:
    requests = arrays(three_requests())
    rows = rows_of(tenant_table(requests, SloConfig(ttft_ms=2000), 2, Window(0.0, 5.0), PLAIN_TARIFF))

    assert rows["num_requests"].tolist() == [1, 2]
    assert rows["ttft_mean_s"].isna().all()
    assert rows.loc["tenant", "slo_attainment"]["b"] == 0.0


def test_who_is_refused_has_asked_for_nothing() -> None:
    requests = three_requests()
    requests["status"] = [FINISHED, FINISHED, REFUSED]
    rows = rows_of(tenant_table(arrays(requests), SloConfig(), 0, Window(0.0, 5.0), PLAIN_TARIFF))

    assert rows["demand_tokens"].tolist() == [50, 60]


def test_without_tenants_there_is_no_table() -> None:
    requests = request_table([0.0], scheduled_s=[0.0], finish_s=[1.0])

    table = tenant_table(arrays(requests), SloConfig(), 0, Window(0.0, 1.0), PLAIN_TARIFF)

    assert table.empty
    assert tenant_summary(table) == {}


def test_jains_index_is_one_for_all_alike_and_the_share_of_those_who_have_all() -> None:
    assert jain_index(np.array([3.0, 3.0, 3.0])) == 1.0
    assert jain_index(np.array([1.0, 0.0, 0.0, 0.0])) == 0.25
    assert math.isnan(jain_index(np.zeros(3)))


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 10), st.floats(0, 1)), min_size=1, max_size=8))
def test_max_min_fair_shares_add_up_and_nobody_can_have_more_but_from_one_with_less(
    tenants: list[tuple[float, float, float]],
) -> None:
    demand, weights, served = (np.array(column) for column in zip(*tenants, strict=True))
    total = float((demand * served).sum())

    fair = max_min_fair(total, demand, weights)

    assert fair.sum() == pytest.approx(total, abs=1e-9)
    assert (fair <= demand).all()
    wants_more = fair < demand - 1e-6
    if wants_more.any():  # all of these are level, and nobody is above them
        level = (fair / weights)[wants_more]
        assert level.max() == pytest.approx(level.min(), rel=1e-6, abs=1e-9)
        assert (fair / weights).max() <= level.min() * (1 + 1e-6) + 1e-9


def test_a_run_says_what_its_tenants_got_and_keeps_it(tmp_path: Any) -> None:
    lengths = {"prompt": {"kind": "fixed", "tokens": 10}, "output": {"kind": "fixed", "tokens": 20}}
    config = {
        "policy": {"preset": "static_fifo", "batch_size": 2, "queueing": {"kind": "FairShare"}},
        "workload": {
            "num_requests": 60,
            "generator": {"kind": "poisson", "rate_per_s": 1.0, **lengths},
            "tenants": [{"name": "a"}, {"name": "b"}],
        },
        "slo": {"e2e_ms": 500},
    }
    result = simulate(config, latency=LinearLatency(0.1, 0.0, 0.01))

    tenants = result.tenants
    assert tenants["name"].tolist() == ["a", "b"]
    assert tenants["num_requests"].sum() == 60
    assert result.summary["num_tenants"] == 2
    assert result.summary["worst_tenant_slo_attainment"] == tenants["slo_attainment"].min()
    assert result.with_warmup(10).tenants["num_requests"].sum() == 60
    result.save(tmp_path / "run")
    pd.testing.assert_frame_equal(load_run(tmp_path / "run")[2]["tenants"], tenants)
