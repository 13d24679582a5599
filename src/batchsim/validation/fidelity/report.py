"""``docs/fidelity.md``: how far off the predictions of all measured runs in a folder are, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from batchsim.errors import ConfigError
from batchsim.files import write_whole
from batchsim.latency.profiles.uneven import UnevenContexts
from batchsim.validation.fidelity.end_times import TimelineEnd, timeline_ends
from batchsim.validation.fidelity.engine_run import EngineSettings, MeasuredRun, read_measured_run
from batchsim.validation.fidelity.errors import AGGREGATES, BASES, compare_with_measured
from batchsim.validation.fidelity.kv_memory import read_model_config
from batchsim.validation.fidelity.predict import Prediction, predict, read_workload
from batchsim.workload.request import Workload

Plot = Callable[[MeasuredRun, Prediction, Path], Path]

#: What each part of the engine, and each setting, is worth: the settings without it.
ABLATIONS: Mapping[str, Callable[[EngineSettings], EngineSettings]] = {
    "no prefix cache": lambda one: replace(one, prefix_caching=False),
    "no asynchronous scheduling": lambda one: replace(one, async_scheduling=False),
    "admission chunk by chunk, not for whole prompts": lambda one: replace(one, allocate="chunk"),
    "KV blocks without end: no preemption": lambda one: replace(one, num_kv_blocks=10**9),
    "contexts all alike": lambda one: replace(one, uneven_contexts="alike"),
    "nothing between kernels": lambda one: replace(one, kernel_gap_s=0.0),
    "1 ms more per iteration": lambda one: replace(one, extra_s=0.001),
    "twice the `max_num_seqs`": lambda one: replace(one, max_num_seqs=2 * one.max_num_seqs),
    "four times the token budget": lambda one: replace(
        one, max_num_batched_tokens=4 * one.max_num_batched_tokens
    ),
    "link latency at each of the 2 (N - 1) steps of a ring": lambda one: replace(
        one, link_latency_s=2 * (one.tensor_parallel - 1) * one.link_latency_s
    ),
}


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A measured run with all that a prediction needs."""

    run: MeasuredRun
    directory: Path
    profile: Path
    model: Mapping[str, Any]
    workload: Workload
    names: list[str]


def find_cases(data_dir: str | Path) -> list[Case]:
    """Find the runs of a folder with ``runs/GPU/NAME``, ``profiles``, ``models`` and ``workloads``.

    Raises
    ------
    ConfigError
        If there are no runs, or what a run needs is not there.
    """
    data_dir = Path(data_dir)
    directories = sorted(path.parent for path in data_dir.glob("runs/*/*/meta.json"))
    if not directories:
        raise ConfigError(
            f"{data_dir}: holds no runs/GPU/NAME/meta.json; at least one measured run is needed"
        )
    return [_case(data_dir, directory) for directory in directories]


def write_fidelity_report(
    data_dir: str | Path, output_dir: str | Path, plot: Plot, timelines_dir: str | Path | None = None
) -> list[Path]:
    """Predict every run of a folder and write ``fidelity.md`` with a picture of each.

    ``timelines_dir`` holds runs of which only the tokens of each second are known.

    Returns
    -------
    list of Path
        All that was written.
    """
    output_dir, parts, written = Path(output_dir), [_HEAD], []
    for case in find_cases(data_dir):
        table, linear = (_predict(case, case.run.settings, family) for family in ("operator", "linear"))
        errors, of_linear = (compare_with_measured(case.run, one) for one in (table, linear))
        stem = "fidelity_" + case.run.name.replace("/", "_").lower()
        picture = plot(case.run, table, output_dir / stem)
        written += [picture, picture.with_suffix(".pdf")]
        ends = _uneven_ends(case, table)
        parts += [*_section(case, errors, of_linear, ends, picture.name)]
        parts += [*_ablation_table(case, table, errors)]
    if timelines_dir is not None:
        parts += _timelines(timeline_ends(timelines_dir, data_dir))
    page = output_dir / "fidelity.md"
    write_whole(page, "\n\n".join([*parts, _TRUST]) + "\n")
    return [page, *written]


def _case(data_dir: Path, directory: Path) -> Case:
    run = read_measured_run(directory)
    gpu, name, meta = directory.parent.name, str(run.model), run.meta or {}
    model, profile = data_dir / "models" / f"{name}.json", data_dir / "profiles" / gpu / name
    if not profile.is_dir():
        raise ConfigError(f"{directory}: its operator profile is expected in {profile}, which is no folder")
    # The note names the workload where the path in the record is an older name of it.
    told = (str(meta.get("note", "")).removeprefix("workload:").strip(), str(meta.get("dataset_path", "")))
    stems = [Path(one).name.removesuffix(".jsonl") for one in told if one]
    paths = [data_dir / "workloads" / f"{stem}.jsonl{end}" for stem in stems for end in ("", ".gz")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ConfigError(f"{directory}: its workload is expected in {' or '.join(map(str, paths))}")
    return Case(run, directory, profile, read_model_config(model), *read_workload(path, run.num_requests))


def _predict(case: Case, settings: EngineSettings, family: Any = "operator") -> Prediction:
    return predict(settings, case.profile, case.model, case.workload, case.names, family)


def _uneven_ends(case: Case, table: Prediction) -> list[Mapping[str, Any]]:
    """Replay with the lag of uneven contexts at both ends of its range, where there is one."""
    if "uneven_contexts" not in table.latency.info.details:
        return []
    ends: tuple[UnevenContexts, ...] = ("low", "high")
    return [
        compare_with_measured(case.run, _predict(case, replace(table.settings, uneven_contexts=end)))
        for end in ends
    ]


def _section(
    case: Case,
    errors: Mapping[str, Any],
    linear: Mapping[str, Any],
    ends: Sequence[Mapping[str, Any]],
    picture: str,
) -> Iterator[str]:
    settings, peer = case.run.settings, errors["peer"]
    yield f"## {case.run.name}"
    yield (
        f"{errors['model']} on {errors['gpu']}, tensor parallel {settings.tensor_parallel}, data parallel "
        f"{settings.data_parallel}; `max_num_seqs` {settings.max_num_seqs}, `max_num_batched_tokens` "
        f"{settings.max_num_batched_tokens}; {errors['num_compared']} requests, "
        f"{errors['num_preemptions']} preemptions predicted; {errors['num_extrapolated_iterations']} of "
        f"{errors['num_iterations']} iterations outside the profile."
    )
    for sentence in errors["notices"]:
        yield f"*{sentence[0].upper()}{sentence[1:]}.*"
    if ends:
        told = errors["latency"]["details"]["uneven_contexts"]
        yield (
            f"Lowest and highest: predicted with the lag of uneven contexts at the ends of its range, "
            f"{_percent(told['low'])} to {_percent(told['high'])} of a decode pass (mean error on numbers of "
            f"sequences that its fit did not see: {told['heldout_mape']:.1%})."
        )
    yield f"![Distributions, measured and predicted]({picture})"
    bases = [basis for basis in BASES if basis in errors["bases"]]
    columns = ["", "measured", "predicted", *(["lowest", "highest"] if ends else [])]
    columns += [*(f"error, from {basis} on" for basis in bases)]
    columns += [*([str(peer)] if peer else []), "linear model"]
    first = bases[0]
    found, of_linear = errors["bases"], linear["bases"][first]
    blanks = ["", "", *(["", ""] if ends else [])]
    rows = []
    for name in AGGREGATES:
        row = found[first]["aggregates"][name]
        replays = [one["bases"][first]["aggregates"][name]["predicted"] for one in ends]
        reached = [value for value in (*replays, row["predicted"]) if value is not None] if ends else []
        rows.append(
            [
                name,
                _number(row["measured"]),
                _number(row["predicted"]),
                *([_number(min(reached, default=None)), _number(max(reached, default=None))] if ends else []),
                *(_percent(found[basis]["aggregates"][name]["error"]) for basis in bases),
                *([_percent(row["peer_error"])] if peer else []),
                _percent(of_linear["aggregates"][name]["error"]),
            ]
        )
    rows.append(
        [
            "**mean absolute error**",
            *blanks,
            *(f"**{found[basis]['mean_absolute_error']:.2%}**" for basis in bases),
            *([f"**{found[first]['peer_mean_absolute_error']:.2%}**"] if peer else []),
            f"**{of_linear['mean_absolute_error']:.2%}**",
        ]
    )
    rows.append(
        [
            "E2E MAPE of requests",
            *blanks,
            *(f"{found[basis]['e2e_mape']:.2%}" for basis in bases),
            *([""] if peer else []),
            f"{of_linear['e2e_mape']:.2%}",
        ]
    )
    yield _table(columns, rows)


def _ablation_table(case: Case, table: Prediction, errors: Mapping[str, Any]) -> Iterator[str]:
    """Errors of replays that each leave one thing out."""
    basis = next(iter(errors["bases"]))
    names = ("ttft_mean_s", "tpot_mean_s", "e2e_mean_s", "output_tokens_per_s")
    rows = [["as it ran", *_short(errors, basis, names)]]
    for label, without in ABLATIONS.items():
        settings = without(table.settings)
        if settings != table.settings:
            report = compare_with_measured(case.run, _predict(case, settings))
            rows.append([label, *_short(report, basis, names)])
    yield "What each part is worth, as errors of a replay without it or with another setting:"
    yield _table(["", *names, "mean absolute error"], rows)


def _timelines(ends: Iterable[TimelineEnd]) -> Iterator[str]:
    yield "## When runs end of which no more was recorded"
    yield (
        "Runs of LLMServingSim's paper of 2026, on vLLM 0.11 with default limits, told from the first form "
        "of its profiles (see [operator-profiles.md](operator-profiles.md)). Measured, and told by the peer, "
        "is the last second in which a token came; errors are relative to the middle of it."
    )
    rows = [
        [
            end.name,
            str(end.num_replicas),
            f"{end.measured_s:.0f} s",
            end.reason if end.predicted_s is None else f"{end.predicted_s:.1f} s",
            _percent(end.error),
            "-" if end.peer_s is None else f"{end.peer_s:.0f} s",
        ]
        for end in ends
    ]
    yield _table(["run", "instances", "measured end", "predicted", "error", "peer"], rows)


def _short(report: Mapping[str, Any], basis: str, names: Sequence[str]) -> list[str]:
    found = report["bases"][basis]
    return [
        *(_percent(found["aggregates"][name]["error"]) for name in names),
        f"{found['mean_absolute_error']:.2%}",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{error:+.1%}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_HEAD = """\
# Fidelity: predicted and measured runs of vLLM

Generated by `make fidelity`; do not edit. Every run below was made by a real engine on real GPUs. The
prediction knows the requests (arrival, lengths, block hashes), the engine's settings and an operator profile
of the GPU; **nothing is fitted on a measured run**. Errors are signed: predicted / measured - 1. TTFT and E2E
time count from where the engine takes a request into its queue, which it does between iterations only
(*queued*), and from where the client sent it (*arrival*); the peer's column and the linear model's are those
of *queued*. The linear model is fitted to the operator table at the iterations that a first replay visits."""

_TRUST = """\
## Where not to trust it

- **Saturation.** These runs are overloaded: the queue grows until the last arrival. Then TTFT sums up the
  errors of all iterations before it, and when the engine fills up, a small error in speed shifts the median
  TTFT by seconds. Read TPOT and tokens/s for the model of the GPU, TTFT for the model of the queue.
- **TTFT below saturation** hangs on single iterations with a prompt chunk. The profile's seconds of these are
  those of single layers, timed alone; in the Llama run on one GPU, the few that can be told apart took 9 to
  18 % longer than their sum, and the first of the fresh engine longer still. Expect it to be too low. In the
  Qwen run on two GPUs such iterations come out right; what makes the difference is not known.
- **Errors that cancel.** Where leaving out a part lowers an error, the part is still there in the engine; its
  effect hides another error. A better total without it is luck.
- **KV blocks.** In a run that fills its KV cache, the number of blocks decides the TTFT. Where nobody wrote
  it down, it is estimated from the GPU's memory, and on a card with little left a tenth more or fewer blocks
  shift the TTFT by seconds. No run that preempts was compared.
- **Mixtures of experts.** Which experts tokens choose is not known; they are taken to choose by lot. Replicas
  that share experts are taken as one engine, of equal shares at all times. No such run was compared.
- **Several GPUs.** The exchange between GPUs is a formula with the rate and latency of the run's record.
- **Uneven contexts.** Of the decodes in a pass, the model knows the mean context and the longest, and how far
  such a pass lags from profiles with two lengths of context. How far contexts of many lengths lag, nobody
  measured. *Lowest* and *highest* are no bounds: they are where nine of ten groups of those measurements lie,
  and nothing but the lag moves between them.
- **Between kernels** half a microsecond is counted, a published figure of another GPU. Its size was not
  tuned, but it was put in after predictions without it had come out too fast: the tables show both."""
