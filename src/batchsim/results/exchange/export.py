"""A saved run in the file of another tool's benchmark: which forms there are, and writing them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from batchsim.errors import ConfigError, nearest
from batchsim.files import write_whole
from batchsim.results.exchange.aiperf import aiperf_text
from batchsim.results.exchange.answers import Answers, answers_of, check_times
from batchsim.results.exchange.vllm_bench import vllm_bench_text
from batchsim.results.store import ITERATION_TABLES, TABLES, load_run

#: What writes each form, of the manifest, the summary and the answers of a run.
FORMS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any], Answers], str]] = {
    "vllm-bench": vllm_bench_text,
    "aiperf": aiperf_text,
}


def export_run(directory: str | Path, path: str | Path, form: str) -> tuple[str, ...]:
    """Write a run that was saved with its tables as a benchmark's result.

    Parameters
    ----------
    form
        One of `FORMS`.

    Returns
    -------
    tuple of str
        What the run does not tell, a sentence each.

    Raises
    ------
    ConfigError
        If there is no run with its tables in the directory, or the form is unknown.
    """
    if form not in FORMS:
        raise ConfigError(f"form {form!r} cannot be written; {nearest(form, list(FORMS))}")
    manifest, summary, tables = _load(Path(directory))
    answers = answers_of(tables, manifest.get("refusals", {}))
    write_whole(Path(path), FORMS[form](manifest, summary, answers))
    return tuple(f"{Path(path).name}: {sentence}" for sentence in answers.notices)


def _load(directory: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, pd.DataFrame]]:
    if (directory / "manifest.json").exists() and not (directory / "requests.parquet").exists():
        raise ConfigError(
            f"{directory}: the run was saved without its tables, which are needed; a sweep keeps them with "
            'save = "tables"'
        )
    manifest, summary, tables = load_run(directory)
    for name, columns in (ITERATION_TABLES if "iterations" in tables else TABLES).items():
        if missing := [column for column in columns if column not in tables[name]]:
            raise ConfigError(f"{directory / name}.parquet: has no column {missing[0]}")
    check_times(tables["requests"], directory / "requests.parquet")
    return manifest, summary, tables
