"""One replica as a run of the simulator, and logs worked out by hand, which are tables in a test."""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from batchsim.config import PolicyConfig
from batchsim.latency.linear import LINEAR_COEFFICIENTS, LinearIterationLatency
from batchsim.policies import presets
from batchsim.records import Records
from batchsim.sim.engine import Engine
from batchsim.sim.simulation import run_replicas
from batchsim.specs import load_model
from batchsim.study.run import simulate
from batchsim.workload.request import Workload
from tests.iteration.reference import Coefficients, Log, Row
from tests.sim.worlds import workload

#: KV blocks that no test outgrows.
PLENTY = 10**6

Trace = Sequence[tuple[float, int, int]]  # arrival, prompt tokens, output tokens


def run(requests: Workload, latency: Coefficients, policy: Mapping[str, Any], **engine: Any) -> Records:
    """Simulate one replica as a user does, without prefix caching unless told otherwise."""
    config = {
        "policy": policy,
        "workload": {"training_fraction": 0.0},
        "engine": {
            "num_kv_blocks": PLENTY,
            "prefix_caching": False,
            "launch_s": latency.launch_s,
            **engine,
        },
        "metrics": {"warmup": 0.0},
    }
    return simulate(config, requests, latency=linear(latency)).records


def run_plainly(
    requests: Workload,
    latency: Coefficients,
    policy: Mapping[str, Any],
    num_blocks: int = PLENTY,
    **engine: Any,
) -> Records:
    """Simulate one replica without a summary, which takes most of a short run; predictions are true."""
    replica = Engine(linear(latency), num_blocks, launch_s=latency.launch_s, **engine)
    return run_replicas(requests, requests.output_tokens, [presets.build(PolicyConfig(**policy))], [replica])


def linear(latency: Coefficients) -> LinearIterationLatency:
    return LinearIterationLatency(**{name: getattr(latency, name) for name in LINEAR_COEFFICIENTS})


def requests_of(trace: Trace) -> Workload:
    arrival_s, prompt_tokens, output_tokens = zip(*trace, strict=True)
    return workload(arrival_s, output_tokens, prompt_tokens)


def swap_rate(swap_s_per_block: float, block_size: int) -> float:
    """The bytes per second at which a block's way to the host and back takes so long."""
    kv_bytes_per_token = load_model("qwen2.5-1.5b").kv_bytes_per_token
    return 2 * block_size * kv_bytes_per_token / swap_s_per_block


def worked_out(table: str) -> list[Row]:
    """Read ``number | start | finish | A4 B2 | A C | blocks | B``: chunks, decodes, and who was preempted."""
    rows = []
    for line in table.strip().splitlines()[1:]:
        _, start_s, finish_s, chunks, decodes, blocks, preempted = (cell.strip() for cell in line.split("|"))
        rows.append(
            Row(
                float(start_s),
                float(finish_s),
                {_id(chunk[0]): int(chunk[1:]) for chunk in chunks.split()},
                [_id(name) for name in decodes.split()],
                int(blocks),
                [_id(name) for name in preempted.split()],
            )
        )
    return rows


def _id(name: str) -> int:
    return ascii_uppercase.index(name)


def times(by_name: Mapping[str, float]) -> dict[int, float]:
    return {_id(name): time_s for name, time_s in by_name.items()}


def assert_iterations(records: Records, rows: Sequence[Row]) -> None:
    """The engine ran these rows one by one: their times, sizes, memory and preemptions."""
    measured = records.iterations[
        ["start_s", "finish_s", "prefill_tokens", "prefill_seqs", "decode_seqs", "kv_blocks", "num_preempted"]
    ]
    assert list(measured.itertuples(index=False, name=None)) == [
        (
            row.start_s,
            row.finish_s,
            sum(row.chunks.values()),
            len(row.chunks),
            len(row.decodes),
            row.blocks,
            len(row.preempted),
        )
        for row in rows
    ]
    preemptions = records.preemptions
    assert list(zip(preemptions["time_s"], preemptions["request_id"], strict=True)) == [
        (row.start_s, id_) for row in rows for id_ in row.preempted
    ]


def assert_times(records: Records, log: Log, relative: float = 0.0) -> None:
    """First tokens, finishes, refusals and preemptions of each request are those of the log."""
    requests = records.requests
    ids = requests["request_id"].tolist()
    refused = requests["status"] == "refused"
    assert requests.loc[refused, "request_id"].tolist() == sorted(log.refused)
    for name, expected in (("first_token_s", log.first_token_s), ("finish_s", log.finish_s)):
        served = requests.loc[~refused, name].to_numpy()
        assert served == approx([expected[id_] for id_ in ids if id_ in expected], relative), name
    assert requests["num_preemptions"].tolist() == [log.num_preemptions(id_) for id_ in ids]


def approx(expected: ArrayLike, relative: float) -> Any:
    return pytest.approx(np.asarray(expected), rel=relative, abs=0.0)
