import numpy as np
import pandas as pd
import pytest

from batchsim.config import load_config
from batchsim.errors import ConfigError
from batchsim.metrics.requests import e2e_s
from batchsim.study.recommend import Recommendation, recommend
from batchsim.study.recommend.candidates import Candidate, make_candidates
from batchsim.study.recommend.draws import Draw, Draws
from batchsim.study.recommend.evidence import Evidence, Outcome, Value, measure
from batchsim.study.recommend.race import Runner
from batchsim.study.recommend.recommendation import Standing, front
from batchsim.study.run import simulate
from batchsim.study.setup.cost import gpu_usd_per_hour
from batchsim.workload.request import Workload
from tests.study.recommend.problem import BASE, ask


def requests(num: int) -> Workload:
    frame = pd.DataFrame({"arrival_s": 0.1 * np.arange(num), "prompt_tokens": 100, "output_tokens": 5})
    frame["output_tokens"] += np.arange(num) // 100  # parts differ
    return Workload.from_frame(frame)


def small(**more: object) -> Recommendation:
    base = {**BASE, "workload": {"num_requests": 100}, "slo": {"e2e_ms": 300.0}, "patience_s": 60.0}
    return recommend({**base, **more}, requests(1000), vary={"num_gpus": [1, 2]}, gpus=["h100"], share=0.5)


def test_the_cheapest_by_long_runs_is_found() -> None:
    """Of 400 replications each, 83 % of the requests are good on two L40S, and 5 % on one."""
    found = ask(1, share=0.6)

    assert found.best is not None
    assert dict(found.best.settings) == {
        "policy": "vllm_v1",
        "gpu": "l40s",
        "num_gpus": 2,
        "max_num_batched_tokens": 512,
    }
    assert not found.undecided


def test_parts_of_a_trace_are_the_same_for_all_and_each_is_drawn_once() -> None:
    base = load_config({"workload": {"num_requests": 100}})
    draws = Draws(base, 50, requests(1050))

    parts = [draws.draw(base, k) for k in range(draws.most)]

    assert draws.most == draws.population == 10
    first = [int(part.workload.request_id[0]) for part in parts if part.workload is not None]
    assert sorted(first) == list(range(0, 1000, 100))
    assert first != sorted(first)  # no morning of it
    assert len({part.config.seed for part in parts}) == 10
    again = Draws(base, 50, requests(1050)).draw(base.model_copy(update={"patience_s": 1.0}), 3)
    assert again.workload is not None
    assert parts[3].workload is not None
    assert (again.workload.request_id == parts[3].workload.request_id).all()
    assert again.config.seed == parts[3].config.seed
    by_part = {int(one.workload.request_id[0]): one.config.seed for one in parts if one.workload is not None}
    assert by_part[0] == base.seed  # that of the part, in whatever order they are taken


def test_blocks_of_a_trace_are_drawn_anew_for_each() -> None:
    base = load_config({"workload": {"num_requests": 100, "resample_s": 5.0}})
    draws = Draws(base, 500, requests(1000))

    arrivals = [simulate(*draws.draw(base, k)).requests["output_tokens"].to_numpy() for k in (0, 1, 0)]

    assert (draws.most, draws.population) == (500, None)
    assert len(arrivals[0]) == 100
    assert (arrivals[0] == arrivals[2]).all()
    assert (arrivals[0] != arrivals[1]).any()


def test_a_policy_that_learns_sees_the_same_start_of_the_trace_before_each_part() -> None:
    base = load_config({"workload": {"num_requests": 100, "training_fraction": 0.1}})
    draws = Draws(base, 50, requests(1000))

    for k in range(draws.most):
        draw = draws.draw(base, k)
        assert draw.workload is not None
        assert list(draw.workload.request_id[:100]) == list(range(100))
        assert draw.config.workload.training_fraction == 0.5


def test_a_trace_is_answered_for_whole() -> None:
    found = small()

    assert found.num_parts == 10
    assert found.best is not None
    assert found.best.settings["num_gpus"] == 1
    assert found.best.num_replications <= 10


def test_the_answer_is_that_of_the_seed() -> None:
    one, again = small(seed=3), small(seed=3)

    pd.testing.assert_frame_equal(one.table(), again.table())


def test_a_statistic_is_a_requirement_as_well() -> None:
    met, missed = small(slo={"ttft_p95_ms": 5000.0}), small(slo={"e2e_mean_ms": 1.0})

    assert met.best is not None
    assert missed.best is None
    assert {one.reason for one in missed.standings} == {"e2e_mean is the tightest limit"}


def test_a_mean_within_its_limit_is_not_told_as_a_share_of_good_requests() -> None:
    found = small(slo={"e2e_mean_ms": 100.0})

    assert found.best is not None
    assert found.best.runner is not None
    config = found.best.runner.candidate.config
    draws, within = Draws(config, 50, requests(1000)), []
    for k in range(found.best.num_replications):
        result = simulate(*draws.draw(config, k))
        within.append((e2e_s(result.requests)[result.summary["num_warmup"] :] <= 0.1).mean())
    assert found.best.attained.mean == pytest.approx(np.mean(within))
    assert 0.5 < found.best.attained.mean < 1
    assert (found.counted, found.share_of_good) == ("within the limit", None)


def test_another_is_held_against_the_best_by_the_same_limit() -> None:
    """The tightest limit of one is the first token's, that of the other the whole answer's."""
    shares = {"best": {"ttft_p95": 0.99, "e2e_p95": 0.96}, "other": {"ttft_p95": 0.80, "e2e_p95": 0.95}}
    standings = {}
    for name, of_one in shares.items():
        runner = Runner(Candidate({"policy": name}, load_config({}), 1.0), Evidence())
        values = {key: Value(share, 0.95, share) for key, share in of_one.items()}
        runner.evidence.outcomes += [Outcome(values, {}, "stable", 1.0, 1.0)] * 3
        standings[name] = Standing(runner.candidate.settings, runner, name, "")
    found = Recommendation(standings["best"], tuple(standings.values()), 0.9, 0.95, 100, None, 10, ())

    difference = found.against_best(standings["other"])

    assert difference is not None
    assert difference.mean == pytest.approx(0.80 - 0.99)
    table = found.table().set_index("verdict")
    assert table.loc["other", "attained_alike"] == pytest.approx(0.80)
    assert table.loc["best", "attained"] == pytest.approx(0.96)


def test_a_trace_too_short_for_parts_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 of the parts of 100 that replications take"):
        recommend({**BASE, "workload": {"num_requests": 100}}, requests(150), vary={}, gpus=["h100"])


def test_replicas_that_come_and_go_have_no_price() -> None:
    with pytest.raises(ConfigError, match="replicas that come and go cost what the run makes of them"):
        small(autoscaler={"kind": "QueueDepth"})


def test_a_replication_is_judged_without_its_warm_up() -> None:
    """The first requests come at once and wait, all others find an idle GPU."""
    arrival_s = np.r_[np.zeros(20), np.arange(1, 81) * 5.0]
    burst = Workload.from_frame(
        pd.DataFrame({"arrival_s": arrival_s, "prompt_tokens": 100, "output_tokens": 20})
    )
    base = {"policy": {"preset": "static_fifo", "batch_size": 1}, "slo": {"e2e_ms": 1000.0}}
    config = load_config({**base, "metrics": {"warmup": 0.2}})

    whole, covered = (
        measure(Draw(load_config(one), burst), 0.9) for one in ({**base, "metrics": {"warmup": 0}}, config)
    )

    assert whole.values["good"].reached < 0.95
    assert covered.values["good"].reached == 1.0
    assert covered.within["all"] == 1.0


def test_a_cluster_of_unequal_replicas_costs_what_all_their_gpus_cost() -> None:
    replicas = [{"count": 3, "tensor_parallel": 2}, {"gpu": "l40s"}]
    base = load_config({**BASE, "cluster": {"model": "llama-3.1-8b", "gpu": "h100", "replicas": replicas}})

    (one,), unfit = make_candidates(base, [], ["vllm_v1"], {})

    each = {gpu: gpu_usd_per_hour(base.cost, gpu) for gpu in ("h100", "l40s")}
    assert not unfit
    assert one.usd_per_hour == pytest.approx(6 * each["h100"] + each["l40s"])


def test_combinations_that_are_no_cluster_are_listed_with_the_reason() -> None:
    vary = {"num_gpus": [1, 2], "tensor_parallel": [1, 2]}

    candidates, unfit = make_candidates(load_config(BASE), ["h100", "l40s"], ["vllm_v1", "sarathi"], vary)

    assert len(candidates) == 12
    assert [one.usd_per_hour for one in candidates] == sorted(one.usd_per_hour for one in candidates)
    assert len(unfit) == 4
    assert "which replicas of 2 GPUs (cluster.tensor_parallel) do not divide" in unfit[0].reason


def test_a_front_is_what_no_other_beats_in_both() -> None:
    low = pd.Series([1.0, 2.0, 2.0, 3.0, np.nan])
    high = pd.Series([5.0, 4.0, 6.0, 4.0, 0.0])

    assert list(front(low, high)) == [True, True, False, False, False]
