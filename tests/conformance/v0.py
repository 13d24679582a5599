"""What V0, vLLM's engine before V1, is asked: which workloads, and with which limits."""

from tests.conformance.workloads import Case, most_tokens, with_engine

#: Its one way to run a workload here.
MODE = "plain"

#: Not those that are about prefix caching, priorities or chunks.
WORKLOADS = (
    "plenty",
    "long-prompts",
    "pressure",
    "few-seats",
    "edges",
    "bursts",
    "at-iteration-ends",
    "near-capacity",
    "tight-budget",
    "azure",
    "azure-4x",
    "small-worlds",
)


def as_v0(case: Case) -> Case:
    """Return the case without what is not looked at, and with limits at which V0 refuses no request.

    A prompt is computed whole, and with it, after a preemption, what was answered until then: the longest
    request is within the budget, and within the KV blocks but for the hundredth that admissions leave free.
    """
    engine, most = case["engine"], most_tokens(case)
    blocks = -(-most // engine["block_size"])
    return with_engine(
        case,
        num_blocks=max(engine["num_blocks"], blocks + -(-blocks // 99)),
        max_num_batched_tokens=max(engine["max_num_batched_tokens"], most),
        long_prefill_token_threshold=0,
        policy="fcfs",
        enable_prefix_caching=False,
    )
