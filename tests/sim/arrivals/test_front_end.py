import math
from typing import Any

import numpy as np
import pytest

from batchsim.latency.linear import LinearIterationLatency
from batchsim.study.run import simulate
from batchsim.workload.request import Source, Workload

#: A pass takes an eighth of a second, whatever is in it.
FLAT = LinearIterationLatency(0.125, 0.0, 0.0, 0.0, 0.0)


def workload(*prompt_tokens: int, gap_s: float = 100.0) -> Workload:
    num = len(prompt_tokens)
    return Workload(
        request_id=np.arange(num),
        arrival_s=np.arange(num) * gap_s,
        prompt_tokens=np.array(prompt_tokens),
        output_tokens=np.full(num, 3),
        source=Source("made up", "synthetic"),
    )


def requests(given: Workload, engine: dict[str, Any], **more: Any) -> Any:
    config = {
        "policy": {"preset": "vllm_v1"},
        "engine": {"num_kv_blocks": 1000, **engine},
        "workload": {"training_fraction": 0.0},
        "metrics": {"warmup": 0.0},
        **more,
    }
    return simulate(config, given, latency=FLAT).requests


def test_first_token_waits_for_the_front_end() -> None:
    rows = requests(workload(16, 64), {"frontend_s": 0.25, "frontend_token_s": 0.0625})

    assert (rows.first_token_s - rows.arrival_s).tolist() == [0.25 + 1.0 + 0.125, 0.25 + 4.0 + 0.125]
    assert (rows.finish_s - rows.first_token_s).tolist() == [0.25, 0.25]


def test_requests_do_not_wait_for_each_other_there() -> None:
    rows = requests(workload(16, 16, gap_s=0.0), {"frontend_s": 0.25})

    assert (rows.first_token_s - rows.arrival_s).tolist() == [0.375, 0.375]


def test_longer_prompt_may_be_overtaken() -> None:
    rows = requests(workload(64, 16, gap_s=0.5), {"frontend_token_s": 0.0625})

    assert rows.first_token_s.tolist() == [4.125, 1.625]


def test_clients_of_a_closed_loop_meet_it_each_time() -> None:
    clients = {"kind": "closed_loop", "concurrency": 1}

    rows = requests(workload(16, 16), {"frontend_s": 0.25}, clients=clients)

    assert rows.arrival_s.tolist() == [0.0, 0.25 + 3 * 0.125]
    assert rows.finish_s.tolist() == [0.625, 1.25]


def test_who_gave_up_meanwhile_is_not_served() -> None:
    rows = requests(workload(16, 64), {"frontend_token_s": 0.0625}, patience_s=2.0)

    assert rows.status.tolist() == ["finished", "abandoned"]
    assert math.isnan(rows.first_token_s[1])


def test_it_stands_before_the_router() -> None:
    rows = requests(workload(16, 16, gap_s=0.0), {"frontend_s": 0.25}, cluster={"num_gpus": 2})

    assert (rows.first_token_s - rows.arrival_s).tolist() == [0.375, 0.375]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("gap_s", "first_token_s"), [(0.1875, 0.625), (0.25, 0.625), (0.3125, 0.75)])
def test_spans_end_where_a_request_comes_out_of_it(gap_s: float, first_token_s: float, exact: bool) -> None:
    engine = {"frontend_s": 0.25, "exact_iterations": exact}

    rows = requests(workload(16, 16, gap_s=gap_s), engine)

    assert rows.first_token_s.tolist() == [0.375, first_token_s]


@pytest.mark.parametrize("is_async", [False, True])
def test_passes_with_prompts_take_a_time_besides(is_async: bool) -> None:
    engine = {"prefill_launch_s": 0.25, "prefill_token_s": 0.0625, "async_scheduling": is_async}

    rows = requests(workload(16, 64), engine)

    assert (rows.first_token_s - rows.arrival_s).tolist() == [0.125 + 0.25 + 1.0, 0.125 + 0.25 + 4.0]
    assert (rows.finish_s - rows.first_token_s).tolist() == [0.25, 0.25]
