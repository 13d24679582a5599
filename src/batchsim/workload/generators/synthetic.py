"""Made-up workloads from a config table: an arrival process and two length laws, or the BurstGPT-like one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from batchsim.errors import ConfigError, nearest
from batchsim.workload.columns import LAST_ARRIVAL_S, MOST_TOKENS
from batchsim.workload.generators.arrivals import ARRIVALS, Arrivals
from batchsim.workload.generators.burstgpt_like import burstgpt_like
from batchsim.workload.generators.lengths import LENGTHS, Lengths
from batchsim.workload.request import Source, Workload
from batchsim.workload.sessions import Sessions

Made = TypeVar("Made")

GENERATORS = (*ARRIVALS, "sessions", "burstgpt_like")


def generate(spec: Mapping[str, Any], num_requests: int, rng: np.random.Generator) -> Workload:
    """Make a workload from a table such as ``{kind="poisson", rate_per_s=2.0, prompt={...}, output={...}}``.

    Parameters
    ----------
    spec
        ``kind`` is one of `GENERATORS`; ``prompt`` and ``output`` are tables with a ``kind`` of `LENGTHS`
        (not for ``burstgpt_like``, which has its own lengths); the rest are the parameters of the kind.
        ``sessions`` has a column ``session_id``; its prompts are what a turn adds.
    num_requests
        How many, exactly.
    rng
        Arrivals, prompts and outputs draw from streams of their own: a change of one leaves the others alone.

    Raises
    ------
    ConfigError
        For an unknown kind or parameter (with the nearest name), a missing one, or a value out of range.
    """
    kind, parameters = _kind_of(spec, GENERATORS, "generator")
    if kind == "burstgpt_like":
        return _build(partial(_burstgpt_like, num_requests, rng), parameters, "generator burstgpt_like")
    arrivals_rng, prompt_rng, output_rng = rng.spawn(3)
    prompt = _lengths(parameters.pop("prompt", None), "generator.prompt")
    output = _lengths(parameters.pop("output", None), "generator.output")
    extra = {}
    arrivals: Arrivals | Sessions
    if kind == "sessions":
        arrivals = _build(Sessions, parameters, "generator sessions")
        arrival_s, extra["session_id"] = arrivals.sample(num_requests, arrivals_rng)
    else:
        arrivals = _build(ARRIVALS[kind], parameters, f"generator {kind}")
        arrival_s = arrivals.sample(num_requests, arrivals_rng)
    if not arrival_s.max(initial=0.0) <= LAST_ARRIVAL_S:  # NaN is not, either
        raise ConfigError(
            f"generator {kind}: the last request arrives at {arrival_s.max():g} s; at most "
            f"{LAST_ARRIVAL_S:g} s is needed"
        )
    return Workload(
        request_id=np.arange(num_requests, dtype=np.int64),
        arrival_s=arrival_s,
        prompt_tokens=_sample(prompt, num_requests, prompt_rng),
        output_tokens=_sample(output, num_requests, output_rng),
        extra=extra,
        source=Source(f"{arrivals}, prompt {prompt}, output {output}", "synthetic"),
    )


def _sample(lengths: Lengths, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
    with np.errstate(all="ignore"):  # what overflows is no length, and told below
        tokens = lengths.sample(num, rng)
    if num and not 1 <= tokens.min() <= tokens.max() <= MOST_TOKENS:
        raise ConfigError(f"{lengths}: gives lengths beyond {MOST_TOKENS:,} tokens; set max_tokens")
    return tokens


def _burstgpt_like(num_requests: int, rng: np.random.Generator, num_days: float | None = None) -> Workload:
    frame = burstgpt_like(num_requests, rng, num_days=num_days, failed_share=0.0)
    names = {
        "Timestamp": "arrival_s",
        "Request tokens": "prompt_tokens",
        "Response tokens": "output_tokens",
        "Model": "model",
        "Log Type": "log_type",
    }
    frame = frame.drop(columns="Total tokens").rename(columns=names)
    frame["arrival_s"] -= frame["arrival_s"].iloc[0]
    return Workload.from_frame(frame, Source("burstgpt_like generator", "synthetic"))


def _lengths(law: object, where: str) -> Lengths:
    if not isinstance(law, Mapping):
        raise ConfigError(f'{where} is {law!r}; a table such as {{kind = "fixed", tokens = 100}} is needed')
    kind, parameters = _kind_of(law, LENGTHS, where)
    return _build(LENGTHS[kind], parameters, f"{where} {kind}")


def _kind_of(spec: Mapping[str, Any], known: Iterable[str], where: str) -> tuple[str, dict[str, Any]]:
    parameters = dict(spec)
    kind = parameters.pop("kind", None)
    if kind not in list(known):
        raise ConfigError(f"{where}: kind is {kind!r}; {nearest(str(kind), known)}")
    return str(kind), parameters


def _build(make: Callable[..., Made], parameters: Mapping[str, Any], where: str) -> Made:
    known = inspect.signature(make).parameters
    for name in parameters:
        if name not in known:
            raise ConfigError(f"{where}: parameter {name!r} is unknown; {nearest(name, known)}")
    missing = [name for name, one in known.items() if one.default is one.empty and name not in parameters]
    if missing:
        raise ConfigError(f"{where}: parameter {missing[0]} is missing")
    return make(**parameters)
