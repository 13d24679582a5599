"""Made-up workloads from a config table: an arrival process and two length laws, or the BurstGPT-like one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.errors import ConfigError, nearest
from batchsim.workload.checks import is_number
from batchsim.workload.columns import LAST_ARRIVAL_S, MOST_TOKENS
from batchsim.workload.generators.arrivals import ARRIVALS, Arrivals
from batchsim.workload.generators.burstgpt_like import burstgpt_like
from batchsim.workload.generators.lengths import LENGTHS, Lengths
from batchsim.workload.request import Source, Workload
from batchsim.workload.sessions import Sessions

Made = TypeVar("Made")

GENERATORS = (*ARRIVALS, "sessions", "burstgpt_like", "tenants")


def generate(spec: Mapping[str, Any], num_requests: int, rng: np.random.Generator) -> Workload:
    """Make a workload from a table such as ``{kind="poisson", rate_per_s=2.0, prompt={...}, output={...}}``.

    Parameters
    ----------
    spec
        ``kind`` is one of `GENERATORS`; ``prompt`` and ``output`` are tables with a ``kind`` of `LENGTHS`
        (not for ``burstgpt_like``, which has its own lengths); the rest are the parameters of the kind.
        ``sessions`` has a column ``session_id``; its prompts are what a turn adds. ``tenants`` are several
        generators at once, the tables of ``of``, each with a ``name`` and maybe ``slo_class``, ``priority``,
        and ``start_s``, before which it sends nothing.
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
    if kind == "tenants":
        return _build(partial(_of_tenants, num_requests, rng), parameters, "generator tenants")
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
        source=Source(f"{_told(arrivals)}, prompt {_told(prompt)}, output {_told(output)}", "synthetic"),
    )


def _told(law: Any) -> str:
    """A law as Python shows it, without what was not given."""
    shown = [field.name for field in fields(law) if field.repr and getattr(law, field.name) is not None]
    return f"{type(law).__name__}({', '.join(f'{name}={getattr(law, name)!r}' for name in shown)})"


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


def _of_tenants(num_requests: int, rng: np.random.Generator, of: Any) -> Workload:
    """Merge what each tenant sends; one more of them leaves the requests of the others as they are."""
    if not isinstance(of, list | tuple) or not of or not all(isinstance(one, Mapping) for one in of):
        raise ConfigError("generator tenants: of is no list of tables; each has a name and is a generator")
    parts = [
        _of_tenant(one, num_requests, own_rng) for one, own_rng in zip(of, rng.spawn(len(of)), strict=True)
    ]
    names = [part["tenant"].iloc[0] for part in parts]
    if len(set(names)) < len(names):
        raise ConfigError("generator tenants: two tenants have one name; each needs a name of its own")
    table = pd.concat(parts, ignore_index=True).sort_values("arrival_s", kind="stable", ignore_index=True)
    table = table.iloc[:num_requests]
    for name, neutral in (("slo_class", ""), ("priority", 0)):
        if name in table:
            table = table.assign(**{name: table[name].fillna(neutral).astype(type(neutral))})
    return Workload.from_frame(table, Source(f"tenants {', '.join(names)}", "synthetic"))


def _of_tenant(spec: Mapping[str, Any], num_requests: int, rng: np.random.Generator) -> pd.DataFrame:
    generator = dict(spec)
    own = {name: generator.pop(name) for name in ("name", "slo_class", "priority", "start_s") if name in spec}
    name, start_s, priority = own.get("name"), own.get("start_s", 0.0), own.get("priority", 0)
    where = f"generator tenants, {name if isinstance(name, str) else 'of'}"
    for key, one in (("name", name), ("slo_class", own.get("slo_class", "-"))):
        if not isinstance(one, str) or not one:
            raise ConfigError(f"{where}: {key} is {one!r}; a text is needed")
    if not is_number(start_s) or not 0 <= start_s <= LAST_ARRIVAL_S:
        raise ConfigError(f"{where}: start_s is {start_s!r}; seconds >= 0 are needed")
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise ConfigError(f"{where}: priority is {priority!r}; a whole number is needed")
    if generator.get("kind") == "tenants":
        raise ConfigError(f"{where}: kind is 'tenants'; tenants have none of their own")
    try:
        made = generate(generator, num_requests, rng).to_frame().drop(columns="request_id")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if "session_id" in made:
        made["session_id"] = [f"{name} {session}" for session in made["session_id"]]
    made["arrival_s"] += start_s
    labels = {key: own[key] for key in ("slo_class", "priority") if key in own}
    return made.assign(tenant=name, **labels)


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
