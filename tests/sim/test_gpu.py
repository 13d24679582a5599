from collections.abc import Sequence

import numpy as np
import pytest
import simpy

from batchsim.records import FINISHED, REFUSED, Records
from batchsim.sim.gpu import GPU, Batch, KVMemory
from batchsim.sim.recording.recorder import Recorder
from batchsim.sim.request import Request
from tests.sim.worlds import PLENTY, LinearLatency, workload


class Bench:
    """One GPU without a scheduler; every request has a prompt of 10 tokens."""

    def __init__(
        self, output_tokens: Sequence[int], capacity_tokens: int = PLENTY, layout: str = "padded"
    ) -> None:
        self.env = simpy.Environment()
        self.recorder = Recorder(self.env, len(output_tokens))
        self.gpu = GPU(
            self.env,
            0,
            LinearLatency(fixed_s=0.5, per_request_s=0.25, per_token_s=0.125),
            KVMemory(capacity_tokens, layout),
            output_tokens,
            self.recorder,
        )
        self.env.process(self.gpu.run())
        self.requests = [Request(self.env, index, 0.0, 10, 1) for index in range(len(output_tokens))]
        self._workload = workload(np.zeros(len(output_tokens)), output_tokens, 10)

    def launch(self, requests: list[Request]) -> None:
        self.gpu.work.deliver(Batch(requests, bin=0, size_limit=8, is_flush=False))

    def records(self) -> Records:
        return self.recorder.records(self._workload, self._workload.output_tokens, 1, 100)


def test_gpu_is_busy_for_the_modelled_time_of_the_longest_member() -> None:
    bench = Bench([4, 2])

    bench.launch(bench.requests)
    bench.env.run()

    assert bench.env.now == 0.5 + 2 * 0.25 + 4 * 0.125
    assert [request.value for request in bench.requests] == [FINISHED, FINISHED]


def test_gpu_runs_the_batches_it_is_given_one_after_the_other() -> None:
    bench = Bench([2, 2])

    bench.launch(bench.requests[:1])
    bench.launch(bench.requests[1:])
    bench.env.run()

    assert bench.records().batches["start_s"].tolist() == [0.0, 1.0]
    assert bench.records().batches["finish_s"].tolist() == [1.0, 2.0]


def test_gpu_reports_the_batch_and_then_offers_itself() -> None:
    bench = Bench([2])
    bench.env.run(until=bench.gpu.idle_gpus.get())

    bench.launch(bench.requests)
    bench.env.run()

    assert bench.gpu.idle_gpus.items == [bench.gpu]
    (batch,) = bench.gpu.completed.take_all()
    assert (batch.report.total_s, batch.report.first_token_s, batch.report.total_tokens) == (1.0, 0.5, [12])


def test_batch_that_outgrows_memory_throws_out_its_latest_members_after_its_time() -> None:
    bench = Bench([10, 30, 10], capacity_tokens=80)

    bench.launch(bench.requests)
    bench.env.run()

    # Two fit: 2 * (10 + 30) = 80. The time is that of all three.
    assert bench.env.now == 0.5 + 3 * 0.25 + 30 * 0.125
    assert bench.gpu.inbox.take_all() == bench.requests[2:]
    assert not bench.requests[2].triggered
    batch = bench.records().batches.iloc[0]
    assert (batch["batch_size"], batch["num_evicted"], batch["kv_tokens"]) == (2, 1, 80)


def test_evicted_requests_come_back_last_first_and_expected_to_be_twice_as_long() -> None:
    bench = Bench([10, 10, 10], capacity_tokens=20)

    bench.launch(bench.requests)
    bench.env.run()

    assert bench.gpu.inbox.take_all() == [bench.requests[2], bench.requests[1]]
    assert [request.predicted_output_tokens for request in bench.requests] == [1, 2, 2]
    assert [request.num_evictions for request in bench.requests] == [0, 1, 1]


def test_request_that_outgrows_an_empty_gpu_is_refused_and_the_others_get_another_chance() -> None:
    bench = Bench([91, 5], capacity_tokens=100)

    bench.launch(bench.requests)
    bench.env.run()

    assert bench.requests[0].value == REFUSED
    assert bench.recorder.refusals == {0: "grew to 101 KV tokens; one GPU holds 100"}
    assert bench.gpu.inbox.take_all() == bench.requests[1:]


@pytest.mark.parametrize(
    ("layout", "capacity_tokens", "fitting"),
    [
        ("padded", 135, (3, 135)),
        ("padded", 134, (2, 60)),
        ("padded", 59, (1, 15)),
        ("padded", 14, (0, 0)),
        ("paged", 90, (3, 90)),
        ("paged", 89, (2, 45)),
        ("paged", 44, (1, 15)),
    ],
)
def test_memory_counts_the_first_requests_that_fit(
    layout: str, capacity_tokens: int, fitting: tuple[int, int]
) -> None:
    memory = KVMemory(capacity_tokens, layout)

    counted = memory.count_fitting([10, 10, 20], [5, 20, 25])

    assert counted == fitting
