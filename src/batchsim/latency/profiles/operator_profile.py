"""Reading a profile of operators, one layer's kernels over their shapes, for a model of many layers.

A profile is a folder of CSV tables (or ``.csv.gz``), ``time_us`` the GPU's microseconds for one call in one
layer on one of ``N`` GPUs that share the model:

- ``tp<N>/dense.csv``: ``layer, tokens``;
- ``tp<N>/per_sequence.csv``: ``layer, sequences``;
- ``tp<N>/attention.csv``: ``prefill_chunk, kv_prefill, n_decode, kv_decode`` (tokens before the chunk and the
  context of each decode; 0 where there is none);
- ``tp<N>/moe.csv`` for mixtures of experts: ``tokens, activated_experts``, in ``tp1`` the whole experts;
- ``tp<N>/skew.csv``, not needed: ``regime, n, t_mean_us, t_max_us, t_skew_us`` and, where there, ``nb``, see
  `profiles.uneven`.

Profiles of the form before it, with a ``layers.csv``, are read too, see `profiles.v0`.

A ``meta.json`` beside the ``tp<N>`` folders names the GPU, the number of its ``multiprocessors`` where its
name does not tell (`profiles.multiprocessors`), and the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchsim.errors import ConfigError, TraceError
from batchsim.latency.analytic import check_number
from batchsim.latency.base import Domain, Floats, LatencyInfo
from batchsim.latency.operators import MOST_LISTED, OperatorTable, OperatorTableLatency, interpolate_all
from batchsim.latency.profiles.grid import fill_gaps, interpolation_errors
from batchsim.latency.profiles.layer_sharing import Group, LayerStack
from batchsim.latency.profiles.multiprocessors import multiprocessors
from batchsim.latency.profiles.tables import ProfileTables, profile_folder
from batchsim.latency.profiles.uneven import Heads, UnevenContexts, UnevenLag, pass_errors, uneven_lag
from batchsim.latency.profiles.v0 import FirstTables
from batchsim.specs import ModelSpec

#: How often a pass runs an operator: once altogether, or so often in each layer; all others once in each.
ONCE_PER_PASS = ("embedding", "final_layernorm")
PER_LAYER = {"layernorm": 2}
#: Seconds from the end of a kernel to the start of the next within a CUDA graph, which times of single
#: kernels leave out: one of 2.9 us takes 3.4 us in a graph of many (NVIDIA, "Getting Started with CUDA
#: Graphs").
KERNEL_GAP_S = 0.5e-6
#: The experts are one operator of a profile but several kernels of vLLM: the gate, the choice, its sorting by
#: expert, two products, the activation between them, and the sum.
EXPERT_KERNELS = 7
#: Points of a grid of attention, its gaps filled.
MAX_POINTS = 2**22


def read_operator_profile(
    directory: str | Path,
    model: ModelSpec | Mapping[str, Any],
    *,
    tensor_parallel: int = 1,
    expert_parallel: int = 1,
    data_parallel: int = 1,
    link_bytes_per_s: float | None = None,
    link_latency_s: float = 0.0,
    kernel_gap_s: float = KERNEL_GAP_S,
    memory_bytes_per_s: float | None = None,
    uneven_contexts: UnevenContexts = "told",
) -> OperatorTableLatency:
    """Sum a profile over the layers of a model, with the exchanges between the GPUs that share it.

    GPUs that share tensors add up activations after the embedding, and in each layer after attention and
    after the feed-forward block: ``link_latency_s`` and ``2 (N - 1) / N`` times the activations over the
    link, overlapped by nothing. Each has the logits of its share of the vocabulary, and all gather them:
    ``(N - 1) / N`` times a number for each token of the vocabulary and each sequence. Tokens choose experts
    as if by lot: ``E (1 - (1 - k / E) ^ tokens)`` of them are read.

    Parameters
    ----------
    directory
        A ``tp<N>`` folder, or any folder above that holds exactly one for ``tensor_parallel``.
    model
        Its layers, hidden and vocabulary size; for a mixture of experts the mapping of a ``config.json``.
    expert_parallel
        GPUs that share out whole experts; 1: every GPU holds a slice of each. More than ``tensor_parallel``
        are shared by so many replicas as it takes.
    data_parallel
        Replicas that share the experts of a mixture; where they share out no whole ones, each GPU holds a
        slice of each. What replicas do not share needs no number.
    link_bytes_per_s
        Rate of the link between the GPUs, one direction.
    link_latency_s
        Seconds of an exchange besides its transfers.
    kernel_gap_s
        Seconds between an operator and the next; each but the experts counts as one kernel.
    memory_bytes_per_s
        Rate of a GPU's memory; only `profiles.v0` asks for it.
    uneven_contexts
        How far uneven decodes are taken to lag: not at all (``alike``), as ``told``, or as at the ``low`` or
        ``high`` end of what that may be off by.

    Raises
    ------
    ConfigError
        If no profile, or more than one, is found, or what is asked for makes no sense.
    TraceError
        If a table lacks a column, or holds what is no time or count, or too few points.
    """
    group = Group(tensor_parallel, expert_parallel, data_parallel, link_bytes_per_s, link_latency_s)
    check_number("kernel_gap_s", kernel_gap_s)
    stack = LayerStack.of(model)
    folder = profile_folder(directory, tensor_parallel)
    tables = ProfileTables(folder)
    if tables.find("layers") is not None:
        tables = FirstTables(folder, memory_bytes_per_s=memory_bytes_per_s)

    def times(name: str) -> int:
        return 1 if name in ONCE_PER_PASS else PER_LAYER.get(name, 1) * stack.num_layers

    dense = tables.read("dense", "layer", "tokens")
    by_tokens = _sum_of_layers(dense, "tokens", times)
    tokens = np.array(by_tokens.axes[0], dtype=np.float64)
    seconds = np.array(by_tokens.seconds)
    seconds += (stack.num_layers + 1) * group.add_up_s(tokens, tensor_parallel, stack.hidden_size)
    together = tokens * group.num_replicas
    if group.num_replicas == 1:
        seconds += stack.num_layers * group.add_up_s(together, group.num_gpus, stack.hidden_size)
    else:  # all gather the tokens of all, and scatter their sums
        seconds += stack.num_layers * 2 * group.gather_s(together, group.num_gpus, stack.hidden_size)
    if stack.num_experts:
        seconds += stack.num_layers * _experts_s(tables, tokens, stack, group)
    per_sequence = tables.read("per_sequence", "layer", "sequences")
    by_sequences = _sum_of_layers(per_sequence, "sequences", lambda _: 1)
    sequences = np.array(by_sequences.axes[0], dtype=np.float64)
    by_sequences_s = np.array(by_sequences.seconds)
    by_sequences_s += group.gather_s(sequences, tensor_parallel, stack.vocab_size)
    num_operators = sum(map(times, dense["layer"].unique())) + per_sequence["layer"].nunique()
    num_operators += stack.num_layers * (1 + (EXPERT_KERNELS if stack.num_experts else 0))
    seconds += kernel_gap_s * num_operators

    errors: dict[str, object] = {}
    attention = _attention(tables, stack.num_layers, errors)
    meta = tables.meta()
    skew = _skew(tables)
    uneven = _uneven(skew, meta, stack, tensor_parallel)
    lag = {}
    if uneven_contexts != "alike":
        last = max(attention["decode"].axes[0][-1], *(int(rows["n"].max()) for rows in skew.values()), 2)
        lag = {regime: one.lag(min(last, MOST_LISTED), uneven_contexts) for regime, one in uneven.items()}
    details = {
        "gpu": meta.get("gpu", meta.get("hardware")),
        "model": meta.get("model"),
        "engine": f"vLLM {meta['vllm_version']}" if "vllm_version" in meta else None,
        "num_layers": stack.num_layers,
        "tensor_parallel": tensor_parallel,
        "expert_parallel": expert_parallel,
        "data_parallel": data_parallel,
        "link_bytes_per_s": link_bytes_per_s,
        "link_latency_s": link_latency_s,
        "operators": sorted(dense["layer"].unique().tolist()),
        "num_operators": num_operators,
        "kernel_gap_s": kernel_gap_s,
        "interpolation": errors,
        "sha256": tables.sha256,
        "notices": tables.notices,
    }
    if "pure" in skew:
        seqs = skew["pure"]["n"]
        beside_s = np.interp(seqs, tokens, seconds) + np.interp(seqs, sequences, by_sequences_s)
        details["uneven_contexts"] = {
            **pass_errors(skew["pure"], uneven["pure"], beside_s, stack.num_layers),
            "multiprocessors": multiprocessors(meta),
            "attention": {regime: one.told_by() for regime, one in uneven.items()},
        }
    try:
        return OperatorTableLatency(
            OperatorTable(by_tokens.axes, tuple(seconds.tolist())),
            OperatorTable(by_sequences.axes, tuple(by_sequences_s.tolist())),
            **attention,
            domain=_domain(by_tokens, attention["decode"]),
            info=LatencyInfo(tables.name(), "derived", details),
            decode_lag=lag.get("pure"),
            mixed_lag=lag.get("mixed"),
        )
    except ConfigError as error:  # such as an axis of one point, or seconds that the layers make too many
        raise TraceError(f"{folder}: {error}") from error


def _sum_of_layers(frame: pd.DataFrame, axis: str, times: Callable[[str], int]) -> OperatorTable:
    """Add up operators at every whole number up to where all were measured.

    Between two points the time is that of the next, as matrix products work by tiles of 16 rows and more. How
    that fares where every number was measured is told in ``docs/operator-profiles.md``.
    """
    curves = {str(name): one for name, one in frame.groupby("layer")}
    last = min((int(one[axis].max()) for one in curves.values()), default=0)
    if last < 2:
        raise TraceError(f"layers over {axis} were measured up to {last}; at least 2 are needed")
    numbers = np.arange(1, last + 1)
    total_s = np.zeros(len(numbers))
    for name, one in curves.items():
        total_s += times(name) * one["seconds"].to_numpy()[np.searchsorted(one[axis], numbers)]
    return OperatorTable((tuple(numbers.tolist()),), tuple(total_s.tolist()))


def _attention(tables: ProfileTables, num_layers: int, errors: dict[str, object]) -> dict[str, OperatorTable]:
    """Return the three attention tables of a pass, and note how well their points tell of each other."""
    columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    frame = tables.read("attention", *columns)
    has_prefill, has_decode = frame["prefill_chunk"] > 0, frame["n_decode"] > 0
    grids = {}
    for name, rows, axes in (
        ("prefill", has_prefill & ~has_decode, columns[:2]),
        ("decode", has_decode & ~has_prefill, columns[2:]),
        ("mixed", has_prefill & has_decode, columns),
    ):
        times = frame[rows].set_index(list(axes))["seconds"]
        if times.empty:
            raise TraceError(
                f"{tables.find('attention')}: no points of {name} attention; a profile needs some"
            )
        if not times.index.is_unique:
            point = dict(zip(axes, times.index[times.index.duplicated()][0], strict=True))
            shown = ", ".join(f"{axis} {value}" for axis, value in point.items())
            raise TraceError(
                f"{tables.find('attention')}: two points of {name} attention at {shown}; where there are no "
                "sequences, their context has to be 0"
            )
        points = [np.unique(times.index.get_level_values(axis)) for axis in axes]
        if min(map(len, points)) < 2 or math.prod(map(len, points)) > MAX_POINTS:
            sizes = " by ".join(str(len(axis)) for axis in points)
            raise TraceError(
                f"{tables.find('attention')}: {name} attention is a grid of {sizes} points; two or more each "
                f"way are needed, at most {MAX_POINTS} altogether"
            )
        known = times.reindex(pd.MultiIndex.from_product(points)).to_numpy(dtype=np.float64)
        known = known.reshape([len(axis) for axis in points])
        errors[name] = interpolation_errors(points, known)
        try:
            seconds = num_layers * fill_gaps(points, known)
        except TraceError as error:
            raise TraceError(f"{tables.find('attention')}: {error}") from error
        grids[name] = OperatorTable(
            tuple(tuple(axis.tolist()) for axis in points), tuple(seconds.ravel().tolist())
        )
    return grids


def _skew(tables: ProfileTables) -> dict[str, pd.DataFrame]:
    """Return the measurements of uneven decodes, alone (``pure``) and beside chunks (``mixed``)."""
    if tables.find("skew") is None:
        tables.notices.append("no skew.csv: decodes of uneven contexts take the time of even ones")
        return {}
    skew = tables.read_raw("skew", "regime", "n", "t_mean_us", "t_max_us", "t_skew_us", optional=("nb",))
    skew = skew[(skew["n"] > 1) & (skew["t_max_us"] > skew["t_mean_us"])]
    return {str(regime): rows for regime, rows in skew.groupby("regime")}


def _uneven(
    skew: Mapping[str, pd.DataFrame], meta: Mapping[str, Any], stack: LayerStack, tensor_parallel: int
) -> dict[str, UnevenLag]:
    number, heads = multiprocessors(meta), None
    if number is not None and stack.num_kv_heads:
        query, kv = (max(1, one // tensor_parallel) for one in (stack.num_query_heads, stack.num_kv_heads))
        heads = Heads(number, query, kv)
    return {regime: uneven_lag(rows, regime, heads) for regime, rows in skew.items()}


def _experts_s(tables: ProfileTables, tokens: Floats, stack: LayerStack, group: Group) -> Floats:
    """Seconds of a layer's experts on one GPU, over the tokens of one replica."""
    whole = tables.folder.parent / "tp1"
    slices = 1
    if group.expert_parallel > 1:
        folder = whole
    elif tables.find("moe") is not None and group.num_replicas == 1:
        folder = tables.folder
    else:
        folder, slices = whole, group.num_gpus
        if slices > 1:
            tables.notices.append(
                f"slices of experts were not profiled: 1/{slices} of the time of whole ones is taken"
            )
    frame = tables.read("moe", "tokens", "activated_experts", folder=folder)
    # A few tokens cannot reach many experts: such points take the time of the next more tokens that can.
    grid = frame.pivot_table(index="tokens", columns="activated_experts", values="seconds").bfill().ffill()
    if min(grid.shape) < 2:
        raise TraceError(f"{tables.find('moe', folder)}: two or more tokens and activated_experts are needed")
    together = tokens * group.num_replicas
    reached = stack.num_experts * (1 - (1 - stack.experts_per_token / stack.num_experts) ** together)
    table = OperatorTable(
        (tuple(map(int, grid.index)), tuple(map(int, grid.columns))), tuple(grid.to_numpy().ravel().tolist())
    )
    return (
        interpolate_all(table, [together / group.expert_parallel, reached / group.expert_parallel]) / slices
    )


def _domain(by_tokens: OperatorTable, decode: OperatorTable) -> Domain:
    (tokens,), (sequences, context) = by_tokens.axes, decode.axes
    return Domain(batch_size=(1, sequences[-1]), prompt_tokens=(1, tokens[-1]), length=(2, context[-1]))
