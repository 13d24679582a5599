"""A trace beside the range of a latency model: which requests lie outside, and the part that does not."""

from __future__ import annotations

from dataclasses import replace
from shlex import quote

import numpy as np
from numpy.typing import NDArray

from batchsim.config import ReplicaConfig, RunConfig
from batchsim.errors import ConfigError
from batchsim.latency.base import Domain, IterationLatency, IterationShape
from batchsim.study.setup.hardware import AnyLatency, given_latency
from batchsim.workload.load import EMBEDDED_TRACE
from batchsim.workload.request import Workload

Mask = NDArray[np.bool_]

#: Longest prompts that are tried where prompts and answers share a range.
_NUM_TRIED = 200


def cut_to_range(workload: Workload, latency: AnyLatency) -> Workload:
    """Keep requests of which any padded batch has lengths that the model holds for, and say so in a notice.

    A padded batch has the longest prompt and the longest answer of its members. Where the range is one of
    their sum, prompts are kept up to the length, and answers up to the rest, that keep most requests.

    Raises
    ------
    ConfigError
        If none is inside.
    """
    inside = _any_batch(workload, latency)
    source, num_kept = workload.source, int(inside.sum())
    if not num_kept:
        raise ConfigError(
            f"no request of {source.name} lies in the range of latency model {latency.info.name}"
        )
    cut = workload.take(inside)
    sizes = _domain(latency).batch_size
    notice = (
        f"kept {num_kept:,} of {len(workload):,} requests ({num_kept / len(workload):.1%}), with prompts of "
        f"{cut.prompt_tokens.min()} to {cut.prompt_tokens.max()} and answers of {cut.output_tokens.min()} to "
        f"{cut.output_tokens.max()} tokens: any batch of them has lengths that latency model "
        f"{latency.info.name} holds for"
        + (f", if it is one of at most {sizes[1]} requests (--batch-size {sizes[1]})" if sizes else "")
    )
    return cut.with_source(replace(source, notices=(*source.notices, notice)))


def outside_advice(config: RunConfig, workload: Workload, latency: AnyLatency | None = None) -> str:
    """Say how many requests lie outside by themselves, and how to cut the trace; empty if all fit.

    Parameters
    ----------
    latency
        Used instead of the file that the configuration names.
    """
    latency = latency or given_latency(config.latency, config.cluster.sharing(ReplicaConfig()))
    if latency is None:
        return ""  # replicas with models of their own: each has another range
    inside = _any_batch(workload, latency)
    if inside.all():
        return ""
    num_outside = int((~_alone(workload, latency)).sum())
    share = (
        f"; {num_outside:,} of the {len(workload):,} requests ({num_outside / len(workload):.1%}) lie outside"
    )
    if config.workload.generator is not None:
        return f"{share} by themselves"
    is_embedded = workload.source.name == EMBEDDED_TRACE.name
    trace = config.workload.trace or (EMBEDDED_TRACE.as_posix() if is_embedded else "TRACE")
    return (
        f"{share} by themselves: batchsim trace convert {quote(trace)} CUT.csv --fit-latency "
        f"{quote(config.latency.file or 'LATENCY.json')} keeps those of which any batch has lengths inside "
        f"({inside.mean():.1%})"
    )


def _alone(workload: Workload, latency: AnyLatency) -> Mask:
    """Requests whose batch of one, prefill and decodes lie inside."""
    prompts, outputs = workload.prompt_tokens, workload.output_tokens
    inside: Mask = _domain(latency).contains_all(np.ones_like(prompts), prompts, outputs)
    if getattr(latency, "is_bounded", False):
        lengths, where = np.unique(np.stack([prompts, outputs]), axis=1, return_inverse=True)
        covered = [_iterates_inside(latency, *pair) for pair in lengths.T.tolist()]  # type: ignore[arg-type]
        inside &= np.array(covered)[where.ravel()]
    return inside


def _iterates_inside(latency: IterationLatency, prompt_tokens: int, output_tokens: int) -> bool:
    passes = [IterationShape(prompt_tokens, 0, 0, 1, prompt_tokens**2 / 2)]
    if output_tokens > 1:
        last = prompt_tokens + output_tokens - 2
        passes += [IterationShape(0, 1, context, longest_tokens=context) for context in (prompt_tokens, last)]
    return all(map(latency.covers, passes))


def _any_batch(workload: Workload, latency: AnyLatency) -> Mask:
    """Requests of which any padded batch has lengths inside."""
    inside, length = _alone(workload, latency), _domain(latency).length
    if length is None or not inside.any():
        return inside
    prompts, outputs, most = workload.prompt_tokens, workload.output_tokens, length[1]

    def fits(longest: int) -> Mask:
        return (prompts <= longest) & (outputs <= most - longest)

    shares = np.linspace(0, 1, _NUM_TRIED)
    tried = np.unique(np.quantile(prompts[inside], shares, method="higher"))
    return inside & fits(max(tried, key=lambda longest: np.count_nonzero(inside & fits(longest))))


def _domain(latency: AnyLatency) -> Domain:
    domain: Domain = getattr(latency, "domain", Domain())
    return domain
