"""The scheduler of V0, vLLM's engine before V1, on a simulated clock, as `vllm_driver` has V1's.

Runs in an environment that has these parts of vLLM's source alone (`environment.py`): what else they import
is put in their place here, mostly by names that are never asked for anything.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from enum import Enum, auto
from importlib.metadata import version
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.conformance.workloads import first_answer_id, most_iterations, most_tokens, prompt_ids


class Device(Enum):
    """Where a KV block lies."""

    GPU = auto()
    CPU = auto()


class PyObjectCache:
    """Makes an object anew where vLLM takes a used one."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.get_object = make

    def reset(self) -> None:
        """Nothing is kept."""


def chunk_list(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Yield the items, so many at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


class Prompt:
    """Tokens, and nothing else that might be asked for."""

    def __init__(self, prompt_token_ids: list[int]) -> None:
        self.prompt_token_ids = prompt_token_ids

    def __getattr__(self, name: str) -> None:
        return None


def put_in_place(name: str, **members: Any) -> None:
    """Let a module be found that has these members."""
    module = ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


put_in_place("torch", Tensor=object)
put_in_place("vllm.config", CacheConfig=object, LoRAConfig=object, SchedulerConfig=object)
put_in_place("vllm.inputs", SingletonInputs=object, SingletonInputsAdapter=Prompt)
put_in_place("vllm.logger", init_logger=lambda name: logging.Logger(name, logging.ERROR))
put_in_place("vllm.lora.request", LoRARequest=object)
put_in_place("vllm.multimodal", MultiModalDataDict=dict, MultiModalPlaceholderDict=dict)
put_in_place("vllm.platforms", current_platform=SimpleNamespace(is_hpu=lambda: False))
put_in_place("vllm.pooling_params", PoolingParams=object)
put_in_place("vllm.prompt_adapter.request", PromptAdapterRequest=object)
put_in_place("vllm.sampling_params", RequestOutputKind=object, SamplingParams=object)
put_in_place(
    "vllm.utils",
    Device=Device,
    PyObjectCache=PyObjectCache,
    cdiv=lambda dividend, divisor: -(-dividend // divisor),
    chunk_list=chunk_list,
    STR_NOT_IMPL_ENC_DEC_PREFIX_CACHE="",
    STR_NOT_IMPL_ENC_DEC_SWA="",
)

from vllm.core.scheduler import Scheduler  # noqa: E402
from vllm.sequence import Logprob, Sequence, SequenceGroup, SequenceStatus  # noqa: E402


def make_scheduler(case: dict[str, Any]) -> Scheduler:
    """Make a scheduler that computes prompts whole and recomputes whom it preempts."""
    engine = case["engine"]
    scheduler_config = SimpleNamespace(
        max_num_seqs=engine["max_num_seqs"],
        max_num_batched_tokens=engine["max_num_batched_tokens"],
        max_model_len=most_tokens(case),
        runner_type="generate",
        chunked_prefill_enabled=False,
        is_multi_step=False,
        num_scheduler_steps=1,
        num_lookahead_slots=0,
        policy=engine["policy"],
        preemption_mode=None,
        delay_factor=0.0,
        send_delta_data=False,
    )
    cache_config = SimpleNamespace(
        block_size=engine["block_size"],
        num_gpu_blocks=engine["num_blocks"],
        num_cpu_blocks=0,
        sliding_window=None,
        enable_prefix_caching=False,
        is_attention_free=False,
    )
    return Scheduler(scheduler_config, cache_config, lora_config=None)


def make_group(case: dict[str, Any], number: int) -> SequenceGroup:
    """Make the request of this number, one answer of a given length."""
    request = case["requests"][number]
    return SequenceGroup(
        str(number),
        [Sequence(number, prompt_ids(request, number), case["engine"]["block_size"])],
        request["arrival_s"],
        sampling_params=SimpleNamespace(n=1, max_tokens=request["output_tokens"]),
    )


class Clocked:
    """A scheduler and a worker that runs its batches, each as long as the law says."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        self.scheduler = make_scheduler(case)
        self.preempted: list[int] = []
        self._remember_preempted()
        self.now_s = 0.0
        self.rows: list[list[Any]] = []
        self.first_token_s: list[float | None] = [None] * len(case["requests"])
        self.finish_s: list[float | None] = [None] * len(case["requests"])

    def run(self) -> dict[str, Any]:
        """Serve all requests; where that would go on for ever, the log has iterations alone."""
        requests, most_rows, arrived = self.case["requests"], most_iterations(self.case), 0
        while len(self.rows) < most_rows:
            while arrived < len(requests) and requests[arrived]["arrival_s"] <= self.now_s:
                self.scheduler.add_seq_group(make_group(self.case, arrived))
                arrived += 1
            if self.scheduler.has_unfinished_seqs():
                self._iterate()
            elif arrived < len(requests):
                self.now_s = requests[arrived]["arrival_s"]
            else:
                return {"rows": self.rows, "first_token_s": self.first_token_s, "finish_s": self.finish_s}
        return {"rows": self.rows, "first_token_s": [], "finish_s": []}

    def _remember_preempted(self) -> None:
        preempt = self.scheduler._preempt

        def remember(group: SequenceGroup, *args: Any) -> Any:
            self.preempted.append(int(group.request_id))
            return preempt(group, *args)

        self.scheduler._preempt = remember

    def _iterate(self) -> None:
        """Put a batch together and run it; it is empty where all who ran gave way."""
        _, output, _ = self.scheduler.schedule()
        assert not output.ignored_seq_groups, "limits are such that no request is refused"
        tokens = sorted(
            (int(one.seq_group.request_id), one.token_chunk_size) for one in output.scheduled_seq_groups
        )
        if not tokens:
            return
        free_blocks = self.scheduler.block_manager.get_num_free_gpu_blocks()
        self.rows.append([self.now_s, tokens, sorted(self.preempted), free_blocks])
        self.preempted.clear()
        law = self.case["latency"]
        self.now_s += law["fixed_s"] + law["per_token_s"] * sum(num for _, num in tokens)
        for one in output.scheduled_seq_groups:
            self._take_token(one.seq_group, one.token_chunk_size)
        self.scheduler.free_finished_seq_groups()

    def _take_token(self, group: SequenceGroup, computed: int) -> None:
        """Let the scheduler know a request's next token."""
        number, sequence = int(group.request_id), group.first_seq
        group.update_num_computed_tokens(computed)
        token = first_answer_id(self.case["requests"][number], number) + sequence.get_output_len()
        sequence.append_token_id(token, {token: Logprob(0.0)})
        if self.first_token_s[number] is None:
            self.first_token_s[number] = self.now_s
        if sequence.get_output_len() == group.sampling_params.max_tokens:
            self.finish_s[number] = self.now_s
            sequence.status = SequenceStatus.FINISHED_LENGTH_CAPPED
            self.scheduler.free_seq(sequence)


def main() -> None:
    """Answer cases."""
    print(json.dumps(version("vllm")), flush=True)
    for line in sys.stdin:
        print(json.dumps(Clocked(json.loads(line)).run()), flush=True)


if __name__ == "__main__":
    main()
