"""The figures by name, each with a caption in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from batchsim.config import SweepConfig
from batchsim.errors import ConfigError, nearest
from batchsim.figures import clusters, engines, mechanisms, needs, own, schedulers
from batchsim.figures.needs import Need, measured, readable, several, varied
from batchsim.figures.results import SweepResults
from batchsim.figures.schedulers import ATTAINMENT, RATE
from batchsim.study.plan import PlannedRun


class Plot(NamedTuple):
    """How a figure is drawn, how to read it, and what it needs of a sweep."""

    draw: Callable[[SweepResults], tuple[Figure, pd.DataFrame]]
    caption: str
    needs: Sequence[Need] = ()


def _over(x: str, lines: str = "policy") -> Sequence[Need]:
    return varied(x), readable(lines, x)


FIGURES: Mapping[str, Plot] = {
    "scheduler_comparison": Plot(
        schedulers.scheduler_comparison,
        "Each policy as the load grows, all on the same GPUs and the same requests. Latency, "
        "throughput and the share of requests within the limit belong together: a policy is "
        "better at a load only if no panel pays for another. At low load the policies that start "
        "whatever waits meet, since hardly anyone waits; multi_bin waits for full batches, as in its "
        "paper, and is slow where little comes: with a timer, it is not. The title compares the "
        "rates up to which 90 % of the requests stay within the limit, read between the points, as far "
        "as runs are long enough to tell.",
        _over(RATE, "case"),
    ),
    "scaling": Plot(
        schedulers.scaling,
        "All policies on the same number of GPUs, with the request rate growing in step. A flat "
        "line of output tokens per GPU means that the cluster scales; a larger one also smooths bursts, "
        "so attainment may rise with it. The number of requests grows with the GPUs too, so that all "
        "runs last equally long; more of the trace is then replayed, whose answers are not equally long "
        "everywhere: so tokens are counted, not requests.",
        _over(schedulers.GPUS),
    ),
    "bin_sensitivity": Plot(
        schedulers.bin_sensitivity,
        "More bins put more similar answers together, so that less of a batch is padding; but "
        "each bin fills more slowly. One bin is the same policy without binning.",
        _over(mechanisms.BINS),
    ),
    "latency_throughput": Plot(
        schedulers.latency_throughput,
        "Each point is one request rate, which grows along the line. A policy's line turns up "
        "where it nears the most it can serve; further down and to the right is better. Hollow "
        "points belong to runs whose queue keeps growing: their latency depends on how long the "
        "trace is.",
        _over(RATE),
    ),
    "slo_pareto": Plot(
        schedulers.slo_pareto,
        "Each faint point is one setting of a policy at one request rate; the line joins those "
        "that no other setting of that policy beats in both respects. Further up and to the right "
        "is better.",
        (varied(RATE), measured(ATTAINMENT), readable("policy", "case", RATE)),
    ),
    "seed_variance": Plot(
        schedulers.seed_variance,
        "Each point is one seed of the workload generator, each bar the mean with its interval. "
        "Policies met the same requests, seed by seed; overlapping bars therefore do not yet mean "
        "that two policies are equal. Ten traces do not span all: the one that is shipped is another "
        "part of a longer one, and may lie outside of them.",
        (several("replication", "seed"), readable("policy")),
    ),
    "multi_bin_theorem": Plot(
        mechanisms.multi_bin_theorem,
        "A check of the simulator, not a finding: with service times that are uniform between 1 "
        "and 20 seconds and all requests there at the start, the throughput of multi-bin batching "
        "has a closed form, B / (m + A / k), on which points must lie: B is the batch size, k the "
        "number of bins, m the mean service time, and A (B + 1) / (B - 1) half of its range.",
        (varied(mechanisms.BATCH_SIZE, mechanisms.BINS), needs.uniform_answers),
    ),
    "prediction_error": Plot(
        mechanisms.prediction_error,
        "Multi-bin batching with output lengths from better and worse predictors; the dotted line "
        "is the oracle. The first panel says how often a request goes to the right bin; one bin, in "
        "grey, needs no prediction.",
        (needs.cases_are_named, readable("case", "predictor")),
    ),
    "controller_trajectory": Plot(
        mechanisms.controller_trajectory,
        "Above, the batch size that the latency controller allows after each batch; below, the "
        "time per token that it measured, and the target it steers to. Where measured times stay "
        "below the target, the allowance rises to its limit and something else bounds the "
        "batches: memory, or too few requests waiting. Of replications, the first is shown.",
        (needs.keeps_tables, needs.runs_to_completion, needs.has_controller),
    ),
    "continuous_vs_static": Plot(
        engines.continuous_vs_static,
        "Two ways to serve, on the same GPUs and the same requests. Dashed: padded batches that run "
        "to completion, where nobody joins and everybody waits for the longest answer; static_fifo "
        "takes at most eight. Solid: engines that let requests join and leave at every iteration. "
        "Padded batches are simulated by another rule than iterations, so small differences between "
        "a dashed and a solid line mean nothing.",
        _over(RATE),
    ),
    "chunk_size": Plot(
        engines.chunk_size,
        "The most tokens that an iteration may process, prompt chunks and decodes together. A small "
        "budget cuts prompts into many chunks: the first token waits, but iterations stay short, and "
        "so do the gaps between tokens. A large budget lets whole prompts stall those who decode, as "
        "they always do in vllm_v0, which does not chunk. Memory is plentiful here, so that sarathi "
        "and vllm_v1 do the same: one's line lies inside the other's.",
        _over(engines.CHUNK),
    ),
    "memory_controller": Plot(
        engines.memory_controller,
        "All requests are there at the start. A fixed limit on running sequences wastes the GPU "
        "where it is low, and where it is too high more is admitted than memory can hold to the end: "
        "sequences are preempted and computed again. The memory-aware limit may go as high as the "
        "fixed one, and stops where memory would not last if every answer were complete. Most are "
        "under way, so it stays on the safe side: nobody is preempted, at the price of some "
        "throughput where recomputing is cheap, as here.",
        _over(engines.LIMIT, "case"),
    ),
    "tbt_controller": Plot(
        engines.tbt_controller,
        "As the load grows, a high fixed limit lets the time between tokens grow past the target "
        "(dotted), and a low one lets requests queue although the target would allow more of them. "
        "The controller finds the limit that meets the target; a fixed limit of about that size, 64 "
        "here, comes close without one. It is the mean that is steered: beyond that load most requests "
        "are a little above the target.",
        _over(engines.TOTAL_RATE, "case"),
    ),
    "preemption_cliff": Plot(
        engines.preemption_cliff,
        "The same load with fewer and fewer KV blocks. Engines that admit by the prompt alone preempt "
        "when answers outgrow memory, and compute again, or copy, what they had; orca reserves memory "
        "for the longest answer instead, preempts nobody and runs fewer at once. vllm_v1 admits a "
        "prompt only where all of it fits, as vLLM does since 0.19; by the first chunk alone, long prompts "
        "push each other out before they are complete. What was pushed out is computed "
        "again from the start; an engine with prefix caching may still find part of it.",
        _over(engines.BLOCKS, "case"),
    ),
    "routing": Plot(
        engines.routing,
        "Conversations over several replicas, each with a prefix cache of its own. Where a replica is "
        "chosen by load alone, the next turn of a conversation seldom meets the replica that has its "
        "earlier turns in the cache. cache aware and LMetric see what each cache holds, and weigh it "
        "against what the replica has to do; session and prefix affinity go by where they sent what.",
        _over(RATE, "case"),
    ),
    "prefix_caching": Plot(
        engines.prefix_caching,
        "Conversations whose prompts repeat all earlier turns. With prefix caching only what is new "
        "is prefilled, as long as the blocks of earlier turns have not been evicted.",
        _over(RATE, "case"),
    ),
    "disaggregation": Plot(
        clusters.disaggregation,
        "xPyD: x replicas compute prompts and hand them over to y that decode, beside replicas that do both, "
        "on equally many GPUs. Apart, no prompt stalls those who decode; but each kind has its share of the "
        "GPUs only, and where that is too small a limit breaks early: that of the first token where few "
        "compute prompts, that of the others where few decode. Small chunks of prompts, on GPUs that do "
        "both, get a good part of the way, and need no split that fits the traffic.",
        _over(RATE, "case"),
    ),
    "router_views": Plot(
        clusters.router_views,
        "Conversations over several replicas, each with a prefix cache of its own, and a router whose view "
        "of loads and caches is so old. cache aware (longest prefix in the real cache, weighed against load) "
        "and LMetric (new prompt tokens x requests there) see what each cache holds; session affinity "
        "looks at loads for first turns alone. Until what was sent to a replica is seen, it goes on looking "
        "best, and gets more than its share, the longer the more.",
        _over(clusters.VIEW_AGE, "case"),
    ),
    "kv_tiers": Plot(
        clusters.kv_tiers,
        "Conversations whose turns come so far apart that the KV of one is evicted from the GPU before the "
        "next. What goes down to host memory can come up again, over a link that all copies share: it takes "
        "time, which is part of the TTFT, but not the GPU's. Over a slow link as much is found, and waited "
        "for. Dotted: no host memory.",
        (varied(clusters.TIER), readable("case", clusters.TIER)),
    ),
    "autoscaling": Plot(
        clusters.autoscaling,
        "What a day costs and what it attains: fixed fleets of so many replicas all day (numbers), and "
        "replicas that come and go by a rule and take so long to start (seconds). Further down and to the "
        "left is better. A replica is paid for from when it is asked for, through its start.",
        (varied(clusters.NUM_GPUS, clusters.COLD_START), measured(ATTAINMENT), readable("case")),
    ),
    "failures": Plot(
        clusters.failures,
        "Requests whose replica fails go on elsewhere after the tokens they have, whose KV is computed again "
        "(resume); begin anew (retry); or have failed (lose). Those that only waited go elsewhere.",
        _over(clusters.TIME_BETWEEN, "case"),
    ),
    "fairness": Plot(
        clusters.fairness,
        "What the tenant that sends most gets, and the others on average, of an engine that all share. First "
        "come, first served lets one who floods the queue hold up everybody. FairShare serves next whoever "
        "has been served least: who asks for less than a fair share hardly waits, and who asks for "
        "more waits for what is left.",
        (*_over(clusters.TOTAL_RATE), needs.keeps_tables),
    ),
}


def check_figure(sweep: SweepConfig, runs: Sequence[PlannedRun], where: str | Path) -> None:
    """Tell before the first run whether a sweep's figure can be drawn; ``where`` begins the sentence.

    Raises
    ------
    ConfigError
        For a figure that there is not, or whose needs the planned runs do not meet.
    """
    figure = sweep.figure
    if figure is None:
        return
    name = figure if isinstance(figure, str) else f"of kind {figure.kind}"
    required = _shipped(figure, where).needs if isinstance(figure, str) else own.needs_of(figure)
    plan = needs.plan_of(sweep, runs)
    for missing in required:
        if said := missing(plan):
            raise ConfigError(f"{where}: figure {name}: {said}")


def find_plot(results: SweepResults) -> Plot | None:
    """Look up the figure that a sweep names, or make the one it describes; None where it wants no picture."""
    figure = results.sweep.figure
    if figure is None:
        return None
    if isinstance(figure, str):
        return _shipped(figure, results.file)
    return Plot(partial(own.draw_own, figure), own.caption_of(figure))


def _shipped(name: str, where: str | Path) -> Plot:
    if name not in FIGURES:
        raise ConfigError(f"{where}: figure {name!r} is unknown; {nearest(name, FIGURES)}")
    return FIGURES[name]
