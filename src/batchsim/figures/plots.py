"""The figures by name, each with a caption in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from batchsim.figures import engines, mechanisms, own, schedulers
from batchsim.figures.results import SweepResults
from batchsim.study.plan import check_figure


class Plot(NamedTuple):
    """How a figure is drawn, and how to read it."""

    draw: Callable[[SweepResults], tuple[Figure, pd.DataFrame]]
    caption: str


FIGURES: Mapping[str, Plot] = {
    "scheduler_comparison": Plot(
        schedulers.scheduler_comparison,
        "Each policy as the load grows, all on the same GPUs and the same requests. Latency, "
        "throughput and the share of requests within the limit belong together: a policy is "
        "better at a load only if no panel pays for another. At low load the policies that start "
        "whatever waits meet, since hardly anyone waits; multi_bin waits for full batches, as in its "
        "paper, and is slow where little comes: with a timer, it is not. The title compares the "
        "rates up to which 90 % of the requests stay within the limit, read between the points.",
    ),
    "scaling": Plot(
        schedulers.scaling,
        "All policies on the same number of GPUs, with the request rate growing in step. A flat "
        "throughput line per GPU means that the cluster scales; a larger one also smooths bursts, "
        "so attainment may rise with it. The number of requests grows with the GPUs too, so that all "
        "runs last equally long; more of the trace is then replayed, and its hours differ.",
    ),
    "bin_sensitivity": Plot(
        schedulers.bin_sensitivity,
        "More bins put more similar answers together, so that less of a batch is padding; but "
        "each bin fills more slowly. One bin is the same policy without binning.",
    ),
    "latency_throughput": Plot(
        schedulers.latency_throughput,
        "Each point is one request rate, which grows along the line. A policy's line turns up "
        "where it nears the most it can serve; further down and to the right is better. Hollow "
        "points belong to runs whose queue keeps growing: their latency depends on how long the "
        "trace is.",
    ),
    "slo_pareto": Plot(
        schedulers.slo_pareto,
        "Each faint point is one setting of a policy at one request rate; the line joins those "
        "that no other setting of that policy beats in both respects. Further up and to the right "
        "is better.",
    ),
    "seed_variance": Plot(
        schedulers.seed_variance,
        "Each point is one seed of the workload generator, each bar the mean with its interval. "
        "Policies met the same requests, seed by seed; overlapping bars therefore do not yet mean "
        "that two policies are equal.",
    ),
    "multi_bin_theorem": Plot(
        mechanisms.multi_bin_theorem,
        "A check of the simulator, not a finding: with service times that are uniform between 1 "
        "and 20 seconds and all requests there at the start, the throughput of multi-bin batching "
        "has a closed form. Points must lie on the line.",
    ),
    "prediction_error": Plot(
        mechanisms.prediction_error,
        "Multi-bin batching with output lengths from better and worse predictors; the dotted line "
        "is the oracle. The first column says how often a request goes to the right bin. Hatched "
        "bars are saturated runs.",
    ),
    "controller_trajectory": Plot(
        mechanisms.controller_trajectory,
        "Above, the batch size that the latency controller allows after each batch; below, the "
        "time per token that it measured, and the target it steers to. Where measured times stay "
        "below the target, the allowance rises to its limit and something else bounds the "
        "batches: memory, or too few requests waiting.",
    ),
    "continuous_vs_static": Plot(
        engines.continuous_vs_static,
        "Two ways to serve, on the same GPUs and the same requests. Dashed: padded batches that run "
        "to completion, where nobody joins and everybody waits for the longest answer; static_fifo "
        "takes at most eight. Solid: engines that let requests join and leave at every iteration. "
        "Padded batches are simulated by another rule than iterations, so small differences between "
        "a dashed and a solid line mean nothing.",
    ),
    "chunk_size": Plot(
        engines.chunk_size,
        "The most tokens that an iteration may process, prompt chunks and decodes together. A small "
        "budget cuts prompts into many chunks: the first token waits, but iterations stay short, and "
        "so do the gaps between tokens. A large budget lets whole prompts stall those who decode, as "
        "they always do in vllm_v0, which does not chunk. Memory is plentiful here, so that sarathi "
        "and vllm_v1 do the same: one's line lies inside the other's.",
    ),
    "memory_controller": Plot(
        engines.memory_controller,
        "All requests are there at the start. A fixed limit on running sequences wastes the GPU "
        "where it is low, and where it is too high more is admitted than memory can hold to the end: "
        "sequences are preempted and computed again. The memory-aware limit may go as high as the "
        "fixed one, and stops where memory would not last if every answer were complete. Most are "
        "under way, so it stays on the safe side: nobody is preempted, at the price of some "
        "throughput where recomputing is cheap, as here.",
    ),
    "tbt_controller": Plot(
        engines.tbt_controller,
        "As the load grows, a high fixed limit lets the time between tokens grow past the target "
        "(dotted), and a low one lets requests queue although the target would allow more of them. "
        "The controller finds the limit that meets the target; a fixed limit of about that size, 64 "
        "here, comes close without one. It is the mean that is steered: beyond that load most requests "
        "are a little above the target.",
    ),
    "preemption_cliff": Plot(
        engines.preemption_cliff,
        "The same load with fewer and fewer KV blocks. Engines that admit by the prompt alone preempt "
        "when answers outgrow memory, and compute again, or copy, what they had; orca reserves memory "
        "for the longest answer instead, preempts nobody and runs fewer at once. vllm_v1 admits by "
        "the first chunk of a prompt, so that long prompts push each other out before they are "
        "complete; taking the blocks of the whole prompt avoids that. What was pushed out is computed "
        "again from the start; an engine with prefix caching may still find part of it.",
    ),
    "routing": Plot(
        engines.routing,
        "Conversations over several replicas, each with a prefix cache of its own. Where a replica is "
        "chosen by load alone, the next turn of a conversation seldom meets the replica that has its "
        "earlier turns in the cache.",
    ),
    "prefix_caching": Plot(
        engines.prefix_caching,
        "Conversations whose prompts repeat all earlier turns. With prefix caching only what is new "
        "is prefilled, as long as the blocks of earlier turns have not been evicted.",
    ),
}


def find_plot(results: SweepResults) -> Plot | None:
    """Look up the figure that a sweep names, or make the one it describes; None where it wants no picture."""
    figure = results.sweep.figure
    if figure is None:
        return None
    if not isinstance(figure, str):
        return Plot(partial(own.draw_own, figure), own.caption_of(figure))
    check_figure(results.sweep, FIGURES, results.folder / "sweep.json")
    return FIGURES[figure]
