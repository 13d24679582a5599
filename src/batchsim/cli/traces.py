"""``batchsim trace``: look at, make, convert and download request traces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchsim.cli.groups import Group
from batchsim.cli.options import INPUT_FILE, OUTPUT_PATH, overrides, parse_spec, reading_options
from batchsim.cli.output import echo_json, echo_table, notice

if TYPE_CHECKING:
    from batchsim.workload.formats import Reading
    from batchsim.workload.request import Workload

_DEFAULT_LENGTHS = {
    "prompt": {"kind": "lognormal", "mean": 600, "sigma": 0.9, "max_tokens": 8000},
    "output": {"kind": "lognormal", "mean": 130, "sigma": 0.9, "max_tokens": 2000},
}


@click.group(cls=Group)
def trace() -> None:
    """Look at, make, convert and download request traces."""


@trace.command()
@click.argument("file", type=INPUT_FILE, required=False)
@reading_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(file: Path | None, as_json: bool, **given: Any) -> None:
    """Describe a trace (by default the embedded one): size, rate, burstiness, lengths."""
    from batchsim.workload.describe import trace_info
    from batchsim.workload.load import embedded_trace, load_trace

    workload = load_trace(file or embedded_trace(), _reading(given))
    if as_json:
        echo_json(trace_info(workload))
    else:
        _describe(workload)


@trace.command()
@click.option(
    "--kind",
    default="burstgpt-like",
    show_default=True,
    metavar="KIND[:KEY=VALUE,...]",
    help="poisson, gamma, on-off, all-at-once or burstgpt-like.",
)
@click.option(
    "--prompt", metavar="KIND[:KEY=VALUE,...]", help="Law of prompt lengths, e.g. fixed:tokens=100."
)
@click.option("--output", metavar="KIND[:KEY=VALUE,...]", help="Law of output lengths.")
@click.option("--num-requests", type=click.IntRange(1), required=True, metavar="N")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "-o", "--output-file", type=OUTPUT_PATH, required=True, help="A .csv, .csv.gz or .parquet file."
)
def synth(
    kind: str, prompt: str | None, output: str | None, num_requests: int, seed: int, output_file: Path
) -> None:
    """Make a synthetic trace, labelled so, in our own format."""
    from batchsim.files import check_file
    from batchsim.streams import stream
    from batchsim.workload.formats import write_trace
    from batchsim.workload.generators.synthetic import generate

    check_file(output_file)
    spec = parse_spec(kind, "kind")
    spec["kind"] = spec["kind"].replace("-", "_")
    if spec["kind"] != "burstgpt_like":
        for name, given in (("prompt", prompt), ("output", output)):
            spec[name] = _DEFAULT_LENGTHS[name] if given is None else parse_spec(given, name)
    workload = generate(spec, num_requests, stream(seed, "workload"))
    write_trace(workload, output_file)
    _describe(workload)
    click.echo(f"written: {output_file}", err=True)


@trace.command()
@click.argument("source", type=INPUT_FILE)
@click.argument("target", type=OUTPUT_PATH)
@reading_options
@click.option(
    "--fit-latency",
    type=INPUT_FILE,
    metavar="FILE",
    help="Keep requests that lie in the range of this latency model, alone and in any batch.",
)
@click.option(
    "--to",
    "form",
    type=click.Choice(["batchsim", "burstgpt", "mooncake", "guidellm"]),
    default="batchsim",
    show_default=True,
    help="Format of TARGET: .csv, .csv.gz or .parquet of ours; .csv of BurstGPT; .jsonl of the others.",
)
def convert(source: Path, target: Path, fit_latency: Path | None, form: str, **given: Any) -> None:
    """Read a trace of any known format and write it in ours, or in one that other tools replay.

    SOURCE may be measured results, as `batchsim validate` reads them: their requests, when they were sent.
    """
    from batchsim.errors import TraceError
    from batchsim.files import check_file
    from batchsim.latency.store import load_latency
    from batchsim.results.measured_tables import measured_trace
    from batchsim.study.setup.coverage import cut_to_range
    from batchsim.workload.formats import write_trace
    from batchsim.workload.load import load_trace
    from batchsim.workload.writers.foreign import write_foreign

    check_file(target, inputs=[source] if fit_latency is None else [source, fit_latency])
    try:
        workload = load_trace(source, _reading(given))
    except TraceError:
        measured = measured_trace(source)
        if measured is None:
            raise
        workload = measured
    if fit_latency is not None:
        workload = cut_to_range(workload, load_latency(fit_latency))
    if form == "batchsim":
        write_trace(workload, target)
    else:
        for sentence in write_foreign(workload, target, form):
            notice(sentence)
    _describe(workload)
    click.echo(f"written: {target}", err=True)


@trace.command()
@click.option("-o", "--output-dir", type=OUTPUT_PATH, default=Path("data"), show_default=True)
@click.option("--accept-unknown", is_flag=True, help="Take a version whose hash is not known.")
def download(output_dir: Path, accept_unknown: bool) -> None:
    """Download the public BurstGPT trace from its authors, resuming, and check it."""
    from batchsim.workload.download import download_burstgpt

    path = download_burstgpt(
        output_dir, notify=lambda text: click.echo(text, err=True), accept_unknown=accept_unknown
    )
    click.echo(str(path))


def _reading(given: dict[str, Any]) -> Reading:
    from batchsim.config import load_config
    from batchsim.workload.load import reading_of

    return reading_of(load_config(None, overrides(given)).workload)


def _describe(workload: Workload) -> None:
    from batchsim.workload.describe import trace_info

    for sentence in workload.source.notices:
        notice(sentence)
    info = {key: value for key, value in trace_info(workload).items() if key != "notices"}
    rows = [row for key, value in info.items() for row in _rows(key, value)]
    echo_table(f"{workload.source.name} ({workload.source.kind})", ("", "value"), rows)


def _rows(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [row for part, inner in value.items() for row in _rows(f"{key} {part}", inner)]
    if value is None:
        return [(key, "-")]
    if isinstance(value, float):
        return [(key, f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}")]
    return [(key, f"{value:,}" if isinstance(value, int) else str(value))]
