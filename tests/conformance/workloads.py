"""Workloads on which engines must agree: plain data, made from seeds, that goes to any driver as JSON.

A case is a dictionary of ``name``; ``engine``, by the names that vLLM's settings have; ``latency``, of which
all times are multiples of a power of two, so that sums are exact; and ``requests`` in order of arrival. Each
of these has ``arrival_s``, ``output_tokens`` and ``prompt``, a list of ``[stream, tokens]``: so many tokens
from the beginning of a stream of tokens. Prompts that begin with the same streams begin with the same tokens;
stream 0 is each request's own. It may have a ``priority``. A turn of a ``session`` answers with what comes
next in the last stream of its prompt; other answers are like nothing else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

Case = dict[str, Any]

#: Seconds of an iteration, and of each token in it.
FIXED_S = 2.0**-7
PER_TOKEN_S = 2.0**-20

#: Who preempts whom may go on for ever in vLLM.
ITERATIONS_PER_TOKEN = 20

ENGINE: Mapping[str, Any] = {
    "num_blocks": 8192,
    "block_size": 16,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 512,
    "long_prefill_token_threshold": 0,
    "policy": "fcfs",
    "enable_prefix_caching": False,
    "async_scheduling": False,
    "scheduler_reserve_full_isl": True,
}

_LONGEST_STREAM = 1 << 20

#: Above every token of a prompt; a request's answer counts on from its own multiple of this.
_ANSWERS = 1 << 40


def prompt_ids(request: dict[str, Any], number: int) -> list[int]:
    """Return the tokens of the prompt of the request that has this number."""
    ids: list[int] = []
    for stream, tokens in request["prompt"]:
        # streams that requests share are even, their own are odd
        first = (2 * stream if stream else 2 * number + 1) * _LONGEST_STREAM
        ids += range(first, first + tokens)
    return ids


def first_answer_id(request: dict[str, Any], number: int) -> int:
    """Return the first token of its answer, from which the others count on."""
    return prompt_ids(request, number)[-1] + 1 if "session" in request else (number + 1) * _ANSWERS


def prompt_tokens(request: dict[str, Any]) -> int:
    """Return the length of its prompt."""
    return sum(tokens for _, tokens in request["prompt"])


def most_tokens(case: Case) -> int:
    """Return the tokens of the longest request, prompt and answer."""
    return max(prompt_tokens(request) + request["output_tokens"] for request in case["requests"])


def most_iterations(case: Case) -> int:
    """Return how many iterations are looked at: more than any case takes that comes to an end."""
    tokens = sum(prompt_tokens(request) + request["output_tokens"] for request in case["requests"])
    return ITERATIONS_PER_TOKEN * tokens


def with_engine(case: Case, **engine: Any) -> Case:
    """Return the case with other settings of the engine."""
    return {**case, "engine": {**case["engine"], **engine}}


def request(arrival_s: float, own: int, output: int, *shared: tuple[int, int], **more: Any) -> dict[str, Any]:
    """Return a request whose prompt begins with ``(stream, tokens)`` and ends with tokens of its own."""
    streams = [*map(list, shared), *([[0, own]] if own else [])]
    return {"arrival_s": arrival_s, "prompt": streams, "output_tokens": output, **more}


def make_case(
    name: str, requests: Sequence[dict[str, Any]], per_token_s: float = PER_TOKEN_S, **engine: Any
) -> Case:
    """Return a case; what it does not say of the engine is as in `ENGINE`."""
    ordered = sorted(requests, key=lambda one: one["arrival_s"])
    latency = {"fixed_s": FIXED_S, "per_token_s": per_token_s}
    return {"name": name, "engine": {**ENGINE, **engine}, "latency": latency, "requests": ordered}


def on_grid(time_s: float, step_s: float = PER_TOKEN_S) -> float:
    """Return the multiple of the step, a power of two, that is nearest."""
    return round(time_s / step_s) * step_s


def arrivals(rng: Random, num: int, rate_per_s: float) -> Iterator[float]:
    """Yield times of a Poisson process."""
    now_s = 0.0
    for _ in range(num):
        yield now_s
        now_s += on_grid(rng.expovariate(rate_per_s))


def length(rng: Random, mean: float, most: int) -> int:
    """Return a length, mostly short and at times long."""
    return min(most, 1 + int(rng.expovariate(1 / mean)))


def plenty(rng: Random) -> Case:
    """Memory for all."""
    return make_case(
        "plenty",
        [request(t, length(rng, 120, 1500), length(rng, 80, 400)) for t in arrivals(rng, 400, 25)],
    )


def long_prompts(rng: Random) -> Case:
    """Prompts of several budgets."""
    return make_case(
        "long-prompts",
        [request(t, length(rng, 900, 6000), length(rng, 50, 200)) for t in arrivals(rng, 250, 8)],
        max_num_batched_tokens=256,
    )


def pressure(rng: Random) -> Case:
    """Too little memory by far."""
    return make_case(
        "pressure",
        [request(t, length(rng, 60, 500), length(rng, 150, 600)) for t in arrivals(rng, 800, 30)],
        num_blocks=160,
    )


def prefixes(rng: Random, name: str = "prefixes", **engine: Any) -> Case:
    """A few beginnings that many prompts share, of lengths that do not care for blocks."""
    streams = [(stream, length(rng, 300, 1200)) for stream in range(1, 13)]

    def one(arrival_s: float) -> dict[str, Any]:
        stream, most = rng.choice(streams)
        shared = most if rng.random() < 0.7 else rng.randint(1, most)
        return request(arrival_s, length(rng, 60, 400), length(rng, 60, 300), (stream, shared))

    requests = [one(t) for t in arrivals(rng, 400, 20)]
    return make_case(name, requests, enable_prefix_caching=True, **engine)


def prefixes_under_pressure(rng: Random) -> Case:
    """Shared beginnings, and too little memory to keep them."""
    return prefixes(rng, "prefixes-pressure", num_blocks=300)


def few_seats(rng: Random) -> Case:
    """Four at a time."""
    return make_case(
        "few-seats",
        [request(t, length(rng, 100, 800), length(rng, 40, 200)) for t in arrivals(rng, 300, 12)],
        max_num_seqs=4,
        num_blocks=128,
    )


def edges(rng: Random) -> Case:
    """One token, exact multiples of a block, and one more or less."""
    lengths = [1, 1, 2, 15, 16, 17, 31, 32, 33, 48, 64, 128]
    return make_case(
        "edges",
        [
            request(
                t, rng.choice([0, *lengths]), rng.choice(lengths), (rng.randint(1, 40), rng.choice(lengths))
            )
            for t in arrivals(rng, 500, 40)
        ],
        num_blocks=120,
        enable_prefix_caching=True,
    )


def repeats(rng: Random) -> Case:
    """The same prompts again and again, many of them exact multiples of a block."""
    prompts = [(stream, rng.choice([16, 32, 48, 64, 100, 160, 256])) for stream in range(1, 31)]
    return make_case(
        "repeats",
        [request(t, 0, length(rng, 30, 120), rng.choice(prompts)) for t in arrivals(rng, 400, 30)],
        num_blocks=150,
        enable_prefix_caching=True,
    )


def bursts(rng: Random) -> Case:
    """Many at one instant, then nobody for a while."""
    requests = []
    for burst in range(12):
        at_s = on_grid(burst * 4 + rng.random())
        requests += [
            request(at_s, length(rng, 100, 700), length(rng, 60, 250)) for _ in range(rng.randint(5, 60))
        ]
    return make_case("bursts", requests, num_blocks=400)


def at_ends(rng: Random) -> Case:
    """Arrivals at the very moments at which iterations end: these all take the same time."""
    return make_case(
        "at-iteration-ends",
        [
            request(on_grid(t, FIXED_S), length(rng, 80, 500), length(rng, 40, 150))
            for t in arrivals(rng, 400, 40)
        ],
        per_token_s=0.0,
        num_blocks=200,
        max_num_seqs=24,
    )


def near_capacity(rng: Random) -> Case:
    """Requests that take most of the memory each."""
    most = 64 * 16

    def one(arrival_s: float) -> dict[str, Any]:
        prompt = rng.randint(most // 3, most) if rng.random() < 0.6 else rng.randint(1, 100)
        return request(arrival_s, prompt, rng.randint(1, min(most - prompt + 1, 200)))

    return make_case("near-capacity", [one(t) for t in arrivals(rng, 200, 6)], num_blocks=64)


def priority(rng: Random, name: str = "priority", **engine: Any) -> Case:
    """Some matter more than others, and memory is short."""
    return make_case(
        name,
        [
            request(t, length(rng, 80, 600), length(rng, 100, 300), priority=rng.randint(0, 3))
            for t in arrivals(rng, 400, 25)
        ],
        policy="priority",
        **{"num_blocks": 200, **engine},
    )


def priority_with_caching(rng: Random) -> Case:
    """The same, and who comes back finds what it left."""
    return priority(rng, "priority-caching", enable_prefix_caching=True, num_blocks=120)


def threshold(rng: Random) -> Case:
    """A limit on each prompt's chunk."""
    return make_case(
        "threshold",
        [request(t, length(rng, 500, 4000), length(rng, 60, 250)) for t in arrivals(rng, 250, 12)],
        long_prefill_token_threshold=96,
    )


def threshold_under_pressure(rng: Random) -> Case:
    """The same where memory is short and prefixes are shared."""
    return prefixes(rng, "threshold-pressure", num_blocks=260, long_prefill_token_threshold=64)


def tight_budget(rng: Random) -> Case:
    """A budget that decodes alone can fill."""
    return make_case(
        "tight-budget",
        [request(t, length(rng, 40, 300), length(rng, 90, 300)) for t in arrivals(rng, 300, 25)],
        max_num_batched_tokens=32,
        max_num_seqs=32,
        num_blocks=250,
    )


def small_blocks(rng: Random) -> Case:
    """Blocks of four tokens, caching on."""
    return prefixes(rng, "small-blocks", block_size=4, num_blocks=1000)


def chats(rng: Random, name: str = "chats", **engine: Any) -> Case:
    """Turns that repeat all that was said before, and go on; most come when the one before is answered."""
    requests = []
    for session, start_s in enumerate(arrivals(rng, 120, 5)):
        at_s, tokens = start_s, 0
        for _ in range(rng.randint(1, 6)):
            tokens += length(rng, 60, 300)
            output = length(rng, 60, 250)
            requests.append(request(at_s, 0, output, (1, 40), (session + 2, tokens), session=session))
            tokens += output
            at_s += on_grid(output * 0.012 + rng.expovariate(1.0))
    return make_case(name, requests, enable_prefix_caching=True, **engine)


def chats_under_pressure(rng: Random) -> Case:
    """The same where memory is short."""
    return chats(rng, "chats-pressure", num_blocks=250)


#: By name, what makes a workload from a seed.
WORKLOADS: Mapping[str, Callable[[Random], Case]] = {
    "plenty": plenty,
    "long-prompts": long_prompts,
    "pressure": pressure,
    "prefixes": prefixes,
    "prefixes-pressure": prefixes_under_pressure,
    "few-seats": few_seats,
    "edges": edges,
    "repeats": repeats,
    "bursts": bursts,
    "at-iteration-ends": at_ends,
    "near-capacity": near_capacity,
    "priority": priority,
    "priority-caching": priority_with_caching,
    "threshold": threshold,
    "threshold-pressure": threshold_under_pressure,
    "tight-budget": tight_budget,
    "small-blocks": small_blocks,
    "chats": chats,
    "chats-pressure": chats_under_pressure,
}


def make(name: str, seed: int) -> Case:
    """Make the workload of this name."""
    return WORKLOADS[name](Random(f"{name} {seed}"))


def from_rows(name: str, rows: Sequence[tuple[float, int, int]], speed: float, **engine: Any) -> Case:
    """Make a case of a trace's arrivals, prompts and answers, so many times as fast."""
    requests = [request(on_grid(arrival_s / speed), prompt, output) for arrival_s, prompt, output in rows]
    return make_case(name, requests, **engine)


def small_world(seed: int) -> Case:
    """A world of up to 16 requests in which everything is short, chosen at random."""
    rng = Random(seed)
    block_size = rng.choice([1, 2, 4])
    num_blocks, max_num_seqs = rng.randint(3, 24), rng.randint(1, 6)
    is_priority, most = rng.random() < 0.3, num_blocks * block_size
    requests, now_s = [], 0.0
    for _ in range(rng.randint(2, 16)):
        now_s += rng.choice([0, 0, 0, 1, 1, 2, 3, 7]) * FIXED_S / rng.choice([1, 1, 2])
        output = rng.randint(1, min(12, most))
        prompt = rng.randint(1, min(16, most - output + 1))
        shared = rng.randint(0, prompt)
        streams = [(rng.randint(1, 3), shared)] if shared else []
        requests.append(
            request(now_s, prompt - shared, output, *streams, priority=is_priority * rng.randint(0, 2))
        )
    return make_case(
        f"small-world-{seed}",
        requests,
        per_token_s=rng.choice([0.0, PER_TOKEN_S]),
        block_size=block_size,
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + rng.randint(0, 10),
        long_prefill_token_threshold=rng.choice([0, 0, 1, 3]),
        policy="priority" if is_priority else "fcfs",
        enable_prefix_caching=rng.random() < 0.5,
    )
