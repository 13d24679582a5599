"""What people see: results on stdout in milliseconds, progress and warnings on stderr."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import click

from batchsim.cli.numbers import cell, num_replications, number
from batchsim.errors import ConfigError, printable
from batchsim.files import json_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from batchsim.config import RunConfig

#: A row of the summary table: title, key, factor, digits (None: as `milliseconds` has them), unit.
_Row = tuple[str, str, float, int | None, str]
ROWS: Sequence[_Row] = (
    ("Request throughput", "request_throughput_per_s", 1, 3, "requests/s"),
    ("Output throughput", "output_throughput_tokens_per_s", 1, 1, "tokens/s"),
    ("Total throughput", "total_throughput_tokens_per_s", 1, 1, "tokens/s"),
    ("E2E mean", "e2e_mean_s", 1000, None, "ms"),
    ("E2E mean, 95 %: from", "e2e_mean_ci95_low_s", 1000, None, "ms"),
    ("E2E mean, 95 %: to", "e2e_mean_ci95_high_s", 1000, None, "ms"),
    ("E2E P50", "e2e_p50_s", 1000, None, "ms"),
    ("E2E P90", "e2e_p90_s", 1000, None, "ms"),
    ("E2E P95", "e2e_p95_s", 1000, None, "ms"),
    ("E2E P99", "e2e_p99_s", 1000, None, "ms"),
    ("Queueing mean", "queueing_mean_s", 1000, None, "ms"),
    ("TTFT mean", "ttft_mean_s", 1000, None, "ms"),
    ("TTFT P99", "ttft_p99_s", 1000, None, "ms"),
    ("TTFT, of it queueing", "ttft_queueing_mean_s", 1000, None, "ms"),
    ("TTFT, of it prefill", "ttft_prefill_mean_s", 1000, None, "ms"),
    ("TTFT, of it host", "ttft_host_mean_s", 1000, None, "ms"),
    ("TPOT mean", "tpot_mean_s", 1000, None, "ms"),
    ("TPOT, of it transfer", "tpot_transfer_mean_s", 1000, None, "ms"),
    ("ITL mean", "itl_mean_s", 1000, None, "ms"),
    ("ITL P99", "itl_p99_s", 1000, None, "ms"),
    ("Worst gap P99", "worst_gap_p99_s", 1000, None, "ms"),
    ("SLO attainment", "slo_attainment", 100, 2, "%"),
    ("SLO, worst tenant", "worst_tenant_slo_attainment", 100, 2, "%"),
    ("Goodput", "goodput_requests_per_s", 1, 3, "requests/s"),
    ("Jain's index", "jain_index", 1, 3, ""),
    ("Cost", "usd_per_million_output_tokens", 1, 3, "USD/million output tokens"),
    ("Cost of the run", "usd_total", 1, 2, "USD"),
    ("Energy", "joules_per_output_token", 1, 3, "J/output token"),
    ("Energy, at most", "joules_per_output_token_at_most", 1, 3, "J/output token"),
    ("GPU busy fraction", "busy_fraction", 100, 1, "%"),
    ("Replicas on, mean", "replicas_on_mean", 1, 2, ""),
    ("Batch size mean", "batch_size_mean", 1, 2, "requests"),
    ("Batch fill", "batch_fill", 100, 1, "%"),
    ("Padding waste (output)", "padding_waste_output", 100, 1, "%"),
    ("Running mean", "running_mean", 1, 2, "requests"),
    ("KV use mean", "kv_use_mean", 100, 1, "%"),
    ("Prefix hit rate", "prefix_hit_rate", 100, 1, "%"),
    ("Tokens per step", "tokens_per_step_mean", 1, 2, ""),
    ("Drafts accepted", "draft_acceptance_rate", 100, 1, "%"),
    ("MFU while busy", "mfu", 100, 1, "%"),
    ("MBU while busy", "mbu", 100, 1, "%"),
    ("Bin accuracy", "bin_accuracy", 100, 1, "%"),
    ("Within one bin", "within_one_bin", 100, 1, "%"),
    ("Kendall's tau", "kendall_tau", 1, 3, ""),
)

#: Where no run of a table has a steady window, instead of the rows for it.
_WHOLE_RUN_ROWS = tuple(
    (f"Whole run: {title.lower()}", f"whole_run_{key}", factor, digits, unit)
    for title, key, factor, digits, unit in ROWS
    if key.endswith("_per_s") or key.startswith(("usd_per_", "joules_per_"))
)

#: What stands behind a statistic that an SLO has a limit on.
_VERDICTS: Mapping[object, str] = {True: " (met)", False: " [red](missed)[/]", None: ""}

#: Counts of requests, shown where there are any, and of other things.
_COUNTS = ("finished", "abandoned", "refused", "shed", "stranded", "failed", "flushed", "evicted")
_OTHER_COUNTS = (
    ("Preemptions", "num_preemptions", "times"),
    ("Recomputed", "recomputed_tokens", "tokens"),
    ("Failures of replicas", "num_failures", "times"),
    ("Wasted", "wasted_output_tokens", "output tokens"),
)


class Watched(Protocol):
    """Something whose progress can be read from another thread."""

    num_ended: int
    num_requests: int


@cache
def stderr() -> Console:
    """Where progress and warnings go: one console, so that they do not write over each other."""
    from rich.console import Console

    return Console(stderr=True, emoji=False)


def echo_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object; what is no finite number is null."""
    click.echo(json_text(content), nl=False)


def plain(text: str) -> str:
    """Return text on one line for rich: none of it is markup."""
    from rich.markup import escape

    return escape(printable(text))


def warn(message: str) -> None:
    """Print a warning, which a person should not miss, on stderr."""
    stderr().print(f"[bold yellow]Warning:[/] {plain(message)}", highlight=False, soft_wrap=True)


def notice(message: str) -> None:
    """Print what is good to know on stderr."""
    click.echo(f"Notice: {printable(message)}", err=True)


def echo_summaries(summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one column per run."""
    from rich.table import Table

    first = next(iter(summaries.values()))
    table = Table(
        title=plain(_headline(first)),
        title_justify="left",
        caption=_caption(summaries),
        caption_justify="left",
    )
    table.add_column("")
    are_replicated = any(num_replications(summary) > 1 for summary in summaries.values())
    for name, summary in summaries.items():
        mark = f" [red](saturated{_in_so_many(summary)})[/]" if summary["saturated"] else ""
        table.add_column(f"{plain(name)}{mark}", justify="right")
    table.add_column("unit")
    worlds = [str(summary["world"]) for summary in summaries.values()]
    if len(set(worlds)) > 1:
        table.add_row("World", *worlds, "")
    has_window = any(summary["window"] == "steady" for summary in summaries.values())
    rows = _rows_with_limits(summaries)
    for title, key, factor, digits, unit in rows if has_window else (*_WHOLE_RUN_ROWS, *rows):
        values = [summary.get(key) for summary in summaries.values()]
        if any(value is not None for value in values) and not (are_replicated and "_ci95_" in key):
            limits = [summary.get(f"slo_met_{key.removesuffix('_s')}") for summary in summaries.values()]
            cells = [cell(summary, key, factor, digits) for summary in summaries.values()]
            table.add_row(
                title, *(cell + _VERDICTS[met] for cell, met in zip(cells, limits, strict=True)), unit
            )
    for count in _COUNTS:
        if count == "finished" or any(summary.get(f"num_{count}") for summary in summaries.values()):
            cells = [cell(summary, f"num_{count}", 1, 0) for summary in summaries.values()]
            table.add_row(count.capitalize(), *cells, "requests")
    for title, key, unit in _OTHER_COUNTS:
        if any(summary.get(key) for summary in summaries.values()):
            table.add_row(title, *(cell(summary, key, 1, 0) for summary in summaries.values()), unit)
    extrapolated = [_extrapolated(summary) for summary in summaries.values()]
    if any(some for some, _, _ in extrapolated):
        table.add_row(
            "Extrapolated", *(f"{some:,.0f} of {of:,.0f} {what}" for some, of, what in extrapolated), ""
        )
    _stdout().print(table)


def echo_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a plain table."""
    from rich.table import Table

    table = Table(title=plain(title), title_justify="left")
    for column in columns:
        table.add_column(plain(column), overflow="fold")
    for row in rows:
        table.add_row(*(plain(str(cell)) for cell in row))
    _stdout().print(table)


def warn_about(name: str, summary: Mapping[str, Any]) -> None:
    """Say on stderr what a reader of the summary must know."""
    if summary["saturated"]:
        warn(
            f"{name} is saturated: {summary['verdict_reason']}; its mean latency depends on the length of "
            "the trace"
        )
    if summary["verdict"] == "transient":
        warn(f"{name} does not tell whether its load can be sustained: {summary['verdict_reason']}")
    if summary["overload_time_share"]:
        warn(
            f"{name} is above capacity for {summary['overload_time_share']:.0%} of the time: requests came "
            "at least a quarter faster than they were taken up"
        )
    if summary["slo_attainment"] == 0 and not summary["saturated"]:
        warn(f"{name}: no request is within the SLO, whose limits are in ms")
    some, of, what = _extrapolated(summary)
    if some:
        warn(f"{name}: {some:.0f} of {of:.0f} {what} lie outside the calibrated range of the latency model")


def _extrapolated(summary: Mapping[str, Any]) -> tuple[float, float, str]:
    if "num_batches" in summary:
        return summary["num_extrapolated_batches"], summary["num_batches"], "batches"
    return summary["num_extrapolated_iterations"], summary["iterations_total"], "iterations"


def _headline(summary: Mapping[str, Any]) -> str:
    num_training = summary["num_training"]
    after = f" after {num_training:,.0f} set aside for training" if num_training else ""
    return (
        f"{summary['num_requests']:,.0f} requests of {summary['workload']} ({summary['workload_kind']})"
        f"{after}, {summary['cluster']}, latency "
        f"{summary['latency_model']} ({summary['latency_provenance']}), predictor {summary['predictor']}"
    )


def _caption(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """What the numbers cover, and how far they could be off, for each run where they differ."""
    told = [
        *by_name({name: _covered(summary) for name, summary in summaries.items()}),
        *by_name({name: str(summary["expected_error"]) for name, summary in summaries.items()}),
    ]
    return "\n".join(map(plain, told))


def by_name(told: Mapping[str, str]) -> list[str]:
    """Sentences on some runs, each once; with the names that it is of where they differ."""
    lines: dict[str, list[str]] = {}
    for name, line in told.items():
        lines.setdefault(line, []).append(name)
    return [line if len(lines) == 1 else f"{', '.join(names)}: {line}" for line, names in lines.items()]


def _covered(summary: Mapping[str, Any]) -> str:
    num = num_replications(summary)
    line = (
        f"latencies over {summary['num_covered']:,.0f} requests "
        f"({summary['num_warmup']:,.0f} cut as warm-up, {summary['num_training']:,.0f} set aside for "
        f"training, {summary['num_dropped']:,.0f} dropped by the reader); {_window(summary)}"
    )
    if num > 1:
        line = f"means over {num} replications, ± is their 95 % interval (Student's t); of each, {line}"
    elif summary["e2e_mean_ci95_low_s"] is None:
        reason = "is saturated" if summary["saturated"] else "has too few independent stretches"
        line += f"; no interval of the mean: the run {reason}"
    else:
        line += "; interval from batch means of the one run"
    if summary["prices"] is not None:
        line += f"; cost with {summary['prices']}"
    return line


def _window(summary: Mapping[str, Any]) -> str:
    start_s, end_s = (number(summary[f"window_{end}_s"], 1, 1) for end in ("start", "end"))
    if summary["window"] is None:
        return "rates and time averages over the steady window, which some replications lack"
    if summary["window"] == "steady":
        return f"rates and time averages over the steady window, {start_s} to {end_s} s"
    service_s = number(summary["service_mean_s"], 1, 3)
    return (
        f"no steady window: rates and time averages are of the whole run, {start_s} to {end_s} s, in which a "
        f"request is in service for {service_s} s on average"
    )


def _rows_with_limits(summaries: Mapping[str, Mapping[str, Any]]) -> list[_Row]:
    """The rows, and one for each other statistic that an SLO has a limit on."""
    shown, place = {key for _, key, *_ in ROWS}, [key for _, key, *_ in ROWS].index("slo_attainment")
    keys = [key for summary in summaries.values() for key in summary if key.startswith("slo_met_")]
    names = [key.removeprefix("slo_met_") for key in dict.fromkeys(keys)]
    limited: list[_Row] = [
        (f"{metric.upper()} {statistic.capitalize()}", f"{metric}_{statistic}_s", 1000, None, "ms")
        for metric, statistic in (name.split("_") for name in names)
        if f"{metric}_{statistic}_s" not in shown
    ]
    return [*ROWS[:place], *limited, *ROWS[place:]]


def _in_so_many(summary: Mapping[str, Any]) -> str:
    num = num_replications(summary)
    return "" if num < 2 else f" in {summary['num_saturated']} of {num}"


def _stdout() -> Console:
    from rich.console import Console

    console = Console(emoji=False)
    # A pipe has no width; tables cut at 80 columns would lose numbers.
    return console if console.is_terminal else Console(width=160, emoji=False)


class ProgressWatch:
    """A progress bar on stderr for runs that take longer than two seconds; shorter ones need not load it."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._bars = threading.Lock()
        self._progress: Progress | None = None

    def follow(self, title: str, watched: Watched) -> None:
        """Show how far something is, from now on."""
        thread = threading.Thread(target=self._poll, args=(title, watched), daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Let the bars go."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._progress is not None:
            self._progress.stop()

    def _poll(self, title: str, watched: Watched) -> None:
        if self._stop.wait(2.0) or watched.num_ended == watched.num_requests:
            return
        with self._bars:
            progress = self._progress = self._progress or _bars()
        task = progress.add_task(plain(title), total=watched.num_requests)
        while not self._stop.wait(0.2) and watched.num_ended < watched.num_requests:
            progress.update(task, completed=watched.num_ended)
        progress.update(task, completed=watched.num_ended)


def sweep_bars() -> Progress:
    """A bar for each sweep on stderr, with the field ``left``; not yet started."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    text, left = TextColumn("{task.description:24}"), TextColumn("{task.fields[left]}")
    return Progress(text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), left, console=stderr())


def _bars() -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    text, elapsed = TextColumn("{task.description}"), TimeElapsedColumn()
    progress = Progress(
        text, BarColumn(), MofNCompleteColumn(), elapsed, TimeRemainingColumn(), console=stderr()
    )
    progress.start()
    return progress


@contextmanager
def hardware_told(config: RunConfig) -> Iterator[None]:
    """Where the block fails, say which hardware was assumed: often that is why."""
    try:
        yield
    except ConfigError:
        from batchsim.study.setup.hardware import hardware_notices

        for sentence in hardware_notices([config]):
            notice(sentence)
        raise


@contextmanager
def progress_watch() -> Iterator[ProgressWatch]:
    """Show progress on stderr while the block runs."""
    watch = ProgressWatch()
    try:
        yield watch
    finally:
        watch.stop()
