"""The named combinations: one dict, the only list of names; and how a configuration becomes a policy.

A preset is a value for each of the four questions. `build` copies it with the run's parameters, so that
nothing one run learns reaches another.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from batchsim.errors import ConfigError, nearest
from batchsim.policies import admission, batching, continuous, fair_share, queueing, routing, sizing
from batchsim.policies.base import Admission, LaunchRule, QueueDiscipline, Routing, Sizer
from batchsim.policies.batching import FullBatch, Greedy
from batchsim.policies.continuous import ChunkedPrefill, PrefillFirst, ReserveWhole, StallFree
from batchsim.policies.guards.answers import check_complete, guard
from batchsim.policies.guards.checks import unguarded
from batchsim.policies.parts.engine_versions import NEWEST
from batchsim.policies.parts.importing import import_attribute
from batchsim.policies.parts.parameters import check_names, construct, parameters_of
from batchsim.policies.queueing import Fifo, MultiBin, ShortestFirst
from batchsim.policies.routing import LeastLoaded
from batchsim.policies.sizing import FixedSize, MemoryAware, SloFeedback, Smallest
from batchsim.policies.steps import IterationRule

if TYPE_CHECKING:
    from batchsim.config import PolicyConfig


@dataclass(frozen=True, slots=True)
class Preset:
    """A combination of answers, with where it comes from.

    Attributes
    ----------
    queueing, sizing, batching
        Who is next, how many, what goes in.
    routing
        Which replica; None for one central queue that feeds all GPUs.
    paper
        The publication it follows.
    departs
        Where it does not.
    admission
        Who is let in; None: whoever comes.
    """

    queueing: QueueDiscipline
    sizing: Sizer
    batching: LaunchRule | IterationRule
    routing: Routing | None = None
    paper: str = ""
    departs: str = ""
    admission: Admission | None = None

    @property
    def is_iteration_level(self) -> bool:
        """Whether requests join and leave at every iteration; else batches run to completion."""
        return hasattr(self.batching, "plan")


PRESETS: Mapping[str, Preset] = {
    "static_fifo": Preset(
        Fifo(),
        FixedSize(8),
        Greedy(),
        paper="the usual static baseline: up to B requests as soon as a GPU is idle",
    ),
    "multi_bin": Preset(
        MultiBin(4),
        FixedSize(8),
        FullBatch(),
        paper="Guldogan et al., Multi-Bin Batching, arXiv 2412.04504",
        departs="requests left over at the end are flushed as partial batches; the paper has no end",
    ),
    "dynamic_no_bins": Preset(
        Fifo(),
        Smallest((MemoryAware(), SloFeedback())),
        Greedy(),
        paper="Pang et al., memory-aware and SLA-constrained dynamic batching, arXiv 2503.05248",
        departs="sizes run-to-completion batches; the paper caps concurrency in continuous batching",
    ),
    "multi_bin_dynamic": Preset(
        MultiBin(4),
        Smallest((MemoryAware(per_bin=True), SloFeedback(per_bin=True))),
        Greedy(),
        paper="arXiv 2412.04504 (bins) with arXiv 2503.05248 (sizes, one state per bin)",
        departs="launches when a GPU is idle, from the bin whose oldest request arrived first, not when full",
    ),
    "orca": Preset(
        Fifo(),
        FixedSize(256),
        ReserveWhole(),
        LeastLoaded(),
        paper="Yu et al., Orca, OSDI'22: iteration-level batches, memory reserved for the longest answer",
        departs="one iteration in flight at a time",
    ),
    "vllm_v0": Preset(
        Fifo(),
        FixedSize(256),
        PrefillFirst(),
        LeastLoaded(),
        paper="vLLM's V0 engine (Kwon et al., PagedAttention, SOSP'23): prompts first, preempt by recompute",
        departs="a prompt longer than the token budget runs in an iteration of its own",
    ),
    "vllm_v0_swap": Preset(
        Fifo(),
        FixedSize(256),
        PrefillFirst(preemption="swap"),
        LeastLoaded(),
        paper="vLLM's V0 engine with preemption by swapping to host memory",
        departs="as vllm_v0; vLLM swaps only groups of several sequences unless told",
    ),
    "vllm_v1": Preset(
        Fifo(),
        FixedSize(256),
        ChunkedPrefill(),
        LeastLoaded(),
        paper=f"vLLM's V1 engine, {NEWEST}: one token budget, chunked prefill, running requests first",
        departs="prompts always in chunks; cached ids of several blocks come and go whole; not the fault of "
        "0.19 that passes over one that runs (vLLM issue 49097)",
    ),
    "sarathi": Preset(
        Fifo(),
        FixedSize(128),
        StallFree(),
        LeastLoaded(),
        paper="Agrawal et al., Sarathi-Serve, OSDI'24: chunked prefill without decode stalls",
    ),
    "sjf": Preset(
        ShortestFirst(promote_after_s=30.0),
        FixedSize(256),
        ChunkedPrefill(),
        LeastLoaded(),
        paper="vllm_v1 that admits the shortest predicted answer first, as Fu et al., arXiv 2408.15792",
        departs="orders by predicted length, not by a learnt rank; whoever waited 30 s goes first",
    ),
    "multi_bin_continuous": Preset(
        MultiBin(4),
        FixedSize(256),
        ChunkedPrefill(),
        LeastLoaded(),
        paper="vllm_v1 that admits requests of one bin of arXiv 2412.04504 in turns of eight",
        departs="the paper excludes continuous batching; its bins are carried over here",
    ),
    "dynamic_batching": Preset(
        Fifo(),
        Smallest((MemoryAware(), SloFeedback())),
        PrefillFirst(),
        LeastLoaded(),
        paper="Pang et al., arXiv 2503.05248, as published: concurrency of vLLM capped by Algorithms 1 and 2",
        departs="the paper gives neither parameters nor the vLLM version; prompts come first, as in V0",
    ),
}


def names_of(*, is_iteration_level: bool) -> list[str]:
    """The presets of one world: numbers of the two do not belong side by side unless that is said."""
    return [name for name, preset in PRESETS.items() if preset.is_iteration_level == is_iteration_level]


@dataclass(frozen=True, slots=True)
class Policy:
    """The answers of one run, fresh state and all."""

    name: str
    queueing: QueueDiscipline
    sizing: Sizer
    batching: LaunchRule | IterationRule
    routing: Routing | None
    admission: Admission | None = None

    @property
    def controllers(self) -> tuple[Sizer, ...]:
        """The sizers that learn from iterations."""
        chunk = getattr(self.batching, "chunk", None)
        return tuple(sizer for sizer in (self.sizing, chunk) if sizer is not None and sizer.adapts)

    def describe(self) -> str:
        """The combination in one line, e.g. ``Fifo() x FixedSize(size=8) x Greedy(order='oldest')``."""
        answers: list[object] = [self.queueing, self.sizing, self.batching]
        return " x ".join(describe(one) for one in [*answers, self.routing, self.admission] if one)


def describe(answer: object) -> str:
    """An answer with its parameters, without its state."""
    answer = unguarded(answer)
    if isinstance(answer, tuple):
        return ", ".join(describe(part) for part in answer)
    if not is_dataclass(answer):
        return reprlib.repr(answer)
    shown = ", ".join(f"{name}={describe(getattr(answer, name))}" for name in parameters_of(type(answer)))
    return f"{type(answer).__name__}({shown})"


def build(config: PolicyConfig) -> Policy:
    """Make the policy that a configuration asks for.

    Raises
    ------
    ConfigError
        For an unknown preset, answer or parameter (with the nearest names), or a value the answer refuses.
    """
    preset = find_preset(config.preset)
    policy = Policy(
        name=config.preset,
        queueing=_answer(preset.queueing, queueing, _with_num_bins(config, preset), "policy.queueing"),
        sizing=_answer(preset.sizing, sizing, config.sizing, "policy.sizing"),
        batching=_answer(
            preset.batching,
            continuous if preset.is_iteration_level else batching,
            config.batching,
            "policy.batching",
        ),
        routing=_answer(preset.routing, routing, config.routing, "policy.routing") if config.routing
        else _fresh(preset.routing),
        admission=_answer(preset.admission, admission, config.admission, "policy.admission")
        if config.admission else _fresh(preset.admission),
    )  # fmt: skip
    if config.batch_size is not None:
        policy = replace(policy, sizing=_limited(policy.sizing, config.batch_size))
    policy = _guarded(policy)
    _check_budget(policy)
    return policy


def _guarded(policy: Policy) -> Policy:
    """The policy with a guard before each answer that comes from outside."""
    answers: dict[str, Any] = {}
    for name, protocol in _protocols(policy.batching).items():
        answer = getattr(policy, name)
        if answer is not None:
            check_complete(answer, protocol, f"policy {policy.name}")
            answers[name] = _guard(answer, protocol, policy.name)
    return replace(policy, **answers)


def _guard(answer: Any, protocol: type, name: str) -> Any:
    if isinstance(answer, Smallest):
        for part in answer.of:
            check_complete(part, Sizer, f"policy {name}")
        answer.of = tuple(_guard(part, Sizer, name) for part in answer.of)
    chunk = getattr(answer, "chunk", None)
    if protocol is IterationRule and chunk is not None:
        check_complete(chunk, Sizer, f"policy {name}")
        object.__setattr__(answer, "chunk", _guard(chunk, Sizer, name))  # a fresh copy, frozen from now on
    return guard(answer, protocol, name)


def _protocols(batching: object) -> dict[str, type]:
    """What is asked of each answer."""
    rule = IterationRule if hasattr(batching, "plan") else LaunchRule
    of_cluster = {"routing": Routing, "admission": Admission}
    return {"queueing": QueueDiscipline, "sizing": Sizer, "batching": rule, **of_cluster}


def _check_budget(policy: Policy) -> None:
    """Every decoding sequence needs a token of an iteration's budget, as vLLM demands too."""
    most = policy.sizing.max_batch_size
    if (
        isinstance(policy.batching, ChunkedPrefill | StallFree)
        and policy.batching.max_num_batched_tokens < most
    ):
        raise ConfigError(
            f"policy.batching.max_num_batched_tokens is {policy.batching.max_num_batched_tokens}, but {most} "
            "requests may run, each with a token in every iteration; a larger budget or a smaller batch_size "
            "is needed"
        )


def find_preset(name: str) -> Preset:
    """Look a preset up in `PRESETS`, or import it where the name has the form ``module:attribute``."""
    if name in PRESETS:
        return PRESETS[name]
    if ":" not in name:
        raise ConfigError(f"policy {name!r} is unknown; {nearest(name, PRESETS)}")
    preset = import_attribute(name, f"policy {name!r}")
    if not isinstance(preset, Preset):
        raise ConfigError(
            f"policy {name!r} is a {type(preset).__name__}; a batchsim.policies.presets.Preset is needed"
        )
    return preset


def _with_num_bins(config: PolicyConfig, preset: Preset) -> Mapping[str, Any]:
    """The queue's parameters, with ``policy.num_bins`` among them: boundaries are checked against it."""
    if config.num_bins is None:
        return config.queueing
    kind = config.queueing.get("kind", type(preset.queueing).__name__)
    if kind != MultiBin.__name__:
        raise ConfigError(
            f"policy.num_bins is {config.num_bins}, but {config.preset} queues by {kind}; "
            "only MultiBin has bins"
        )
    return {**config.queueing, "num_bins": config.num_bins}


def _fresh(answer: Any) -> Any:
    """A copy with the same parameters and no state."""
    try:
        return deepcopy(answer)
    except Exception as error:
        raise ConfigError(
            f"{type(answer).__name__}, an answer of a policy, cannot be copied for a run of its own ({error})"
        ) from error


def _answer(template: Any, module: ModuleType, given: Mapping[str, Any], where: str) -> Any:
    """A fresh copy of the template, or of another answer of its module, with the given parameters."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} is {reprlib.repr(given)}; a table of its parameters is needed")
    parameters = dict(given)
    if isinstance(parameters.get("chunk"), Mapping):  # the sizer of a token budget
        parameters["chunk"] = _answer(None, sizing, parameters["chunk"], f"{where}.chunk")
    kind = parameters.pop("kind", None)
    if kind is not None:
        return _make(kind, module, parameters, where)
    if template is None:
        raise ConfigError(f"{where} needs a kind; {nearest('', _kinds(module))}")
    if isinstance(template, Smallest):
        return _smallest(template, module, parameters, where)
    check_names(type(template), parameters, where)
    own = _fresh(template)
    if not parameters:
        return own
    return construct(partial(replace, own), type(own), parameters, where)


def _smallest(template: Smallest, module: ModuleType, parameters: dict[str, Any], where: str) -> Smallest:
    """Parts of `Smallest` are addressed by their class name."""
    parts = {type(part).__name__: part for part in template.of}
    for key in parameters:
        if key not in parts:
            raise ConfigError(f"{where}.{key} is unknown; {nearest(str(key), parts)}")
    return Smallest(
        tuple(
            _answer(part, module, parameters.get(name, {}), f"{where}.{name}") for name, part in parts.items()
        )
    )


def _make(kind: str, module: ModuleType, parameters: dict[str, Any], where: str) -> Any:
    kinds = _kinds(module)
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{where}.kind is {reprlib.repr(kind)}; {nearest(str(kind), kinds)}")
    check_names(kinds[kind], parameters, where)
    if kinds[kind] is Smallest:
        parts = parameters.get("of", ())
        if not isinstance(parts, list | tuple) or not parts:
            raise ConfigError(f"{where}.of is {reprlib.repr(parts)}; a list of sizers is needed")
        return Smallest(
            tuple(
                _answer(None, module, part, f"{where}.of[{index}]")
                for index, part in enumerate(parts)
            )
        )  # fmt: skip
    return construct(kinds[kind], kinds[kind], parameters, where)


#: Modules of answers that are too long to stand beside the others to the same question.
_MORE: Mapping[ModuleType, ModuleType] = {queueing: fair_share}


def _kinds(module: ModuleType) -> dict[str, type]:
    """The answers a module defines: its public dataclasses."""
    found = {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type)
        and is_dataclass(kind)
        and kind.__module__ == module.__name__
        and name[0] != "_"
    }
    return found | _kinds(_MORE[module]) if module in _MORE else found


def _limited(sizer: Any, batch_size: int) -> Any:
    """The sizer with this upper limit."""
    if isinstance(sizer, Smallest):
        return Smallest(tuple(_limited(part, batch_size) for part in sizer.of))
    name = "size" if isinstance(sizer, FixedSize) else "max_batch_size"
    kind = type(sizer)
    if name not in parameters_of(kind):
        raise ConfigError(
            f"policy.batch_size is {batch_size}, but {kind.__name__} has no parameter {name} to set by it"
        )
    return construct(partial(replace, sizer), kind, {name: batch_size}, "policy.batch_size, as")
