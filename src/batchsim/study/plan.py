"""From a sweep file to the list of its runs: which configurations, under which names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from batchsim.config import RunConfig, SweepConfig, flat, read_toml, set_dotted, validate
from batchsim.config.paths import anchored
from batchsim.errors import ConfigError
from batchsim.policies import presets
from batchsim.policies.presets import Policy
from batchsim.study.identity import identify, refresh_policy
from batchsim.study.run import training_fraction
from batchsim.workload.predictor import Predictor, make_predictor


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a sweep.

    Attributes
    ----------
    run_id
        The same for the same configuration, code and content of the files it names, wherever these lie.
    case
        Label of the case; empty where the sweep has none.
    varied
        Dotted keys that the sweep varies, with the values of this run.
    key
        The same for the same configuration, whatever its files hold.
    inputs
        What it was named after, see `identity.Identity`.
    """

    run_id: str
    config: RunConfig
    case: str
    varied: Mapping[str, Any]
    key: str
    inputs: Mapping[str, str]

    def __str__(self) -> str:
        shown = [self.case] if self.case else []
        return ", ".join(
            shown + [f"{key}={value}" for key, value in self.varied.items() if value is not None]
        )


def read_sweep_file(
    path: str | Path,
    *,
    full: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> SweepConfig:
    """Read a sweep file, in whose folder the files that it names are.

    Parameters
    ----------
    full
        Let the entries of its ``full`` table win.
    overrides
        Dotted keys to values that win over all that the file says of them, the grid and cases included.
    """
    path = Path(path)
    sweep = validate(SweepConfig, read_toml(path), str(path))
    base, grid = flat(sweep.base), dict(sweep.grid)
    if full:
        base |= flat(sweep.full.base)
        grid |= sweep.full.grid
    base = _beside(path, base)
    cases = [_beside(path, flat(case)) for case in sweep.cases]
    grid = {key: [anchored(key, value, path.parent) for value in values] for key, values in grid.items()}
    if overrides:
        given = flat(overrides)
        base |= given
        cases = [_without(case, given) for case in cases]
        grid = _without(grid, given)
    return sweep.model_copy(update={"base": base, "grid": grid, "cases": cases})


def plan(sweep: SweepConfig, where: str | Path = "sweep") -> list[PlannedRun]:
    """List the runs, in the order of the file: cases outermost, the last key of the grid innermost.

    Raises
    ------
    ConfigError
        For a setting that no run can have, a file or an own policy that is not there, a key set by both a
        case and the grid, or policies and predictors that would meet different requests; ``where`` begins
        the sentence.
    """
    cases = [dict(case) for case in sweep.cases]
    labels = [str(case.pop("label", "")) for case in cases]
    varied = dict.fromkeys([key for case in cases for key in case] + list(sweep.grid)).keys()
    base, runs = flat(sweep.base), []
    built: dict[str, tuple[Policy, Predictor]] = {}
    fractions: list[tuple[RunConfig, float]] = []
    for case, label in zip(cases, labels, strict=True):
        if both := case.keys() & sweep.grid.keys():
            raise ConfigError(
                f"{where}: {min(both)} is set by a case and by the grid; one of them has to leave it"
            )
        for values in product(*sweep.grid.values()):
            chosen = {**case, **dict(zip(sweep.grid, values, strict=True))}
            config = _configure({**base, **chosen}, where)
            shown = flat(config.model_dump(mode="json")) if varied - chosen.keys() else {}
            used = {key: chosen.get(key, shown.get(key)) for key in varied}
            with _told_of(where):
                fractions.append((config, _training_fraction(config, built)))
                key, run_id, inputs = identify(config)
            runs.append(PlannedRun(run_id, config, label, used, key, inputs))
    if len({fraction for _, fraction in fractions}) > 1:
        _check_same_requests(fractions, where)
    return runs


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``K/N``."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ConfigError(f"shard {text!r}: write K/N with 1 <= K <= N, e.g. 2/4")
    return int(part), int(parts)


def take_shard(runs: Sequence[PlannedRun], shard: tuple[int, int]) -> Sequence[PlannedRun]:
    """Every N-th run from the K-th on, for a shard ``(K, N)``."""
    part, parts = shard
    if not 1 <= part <= parts:
        raise ConfigError(f"shard is {part}/{parts}; K/N with 1 <= K <= N is needed")
    return runs[part - 1 :: parts]


def _configure(settings: Mapping[str, Any], where: str | Path) -> RunConfig:
    tree: dict[str, Any] = {}
    with _told_of(where):
        for key, value in settings.items():
            set_dotted(tree, key, deepcopy(value))
    return validate(RunConfig, tree, str(where))


@contextmanager
def _told_of(where: str | Path) -> Iterator[None]:
    """Begin the sentence of a `ConfigError` with the sweep file."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _training_fraction(config: RunConfig, built: dict[str, tuple[Policy, Predictor]]) -> float:
    """Build the policy and predictor of a run, once for all that have the same, to see what they ask."""
    asked = config.model_dump_json(include={"policy", "predictor"})
    refresh_policy(config.autoscaler.kind or "")
    if asked not in built:
        refresh_policy(config.policy.preset)
        built[asked] = presets.build(config.policy), make_predictor(config.predictor)
    return training_fraction(config, *built[asked])


def _check_same_requests(fractions: Sequence[tuple[RunConfig, float]], where: str | Path) -> None:
    """Refuse runs that differ in policy or predictor alone, yet set different shares aside for training."""
    known: dict[str, float] = {}
    for config, fraction in fractions:
        if known.setdefault(config.model_dump_json(exclude={"policy", "predictor"}), fraction) != fraction:
            raise ConfigError(
                f"{where}: policies or predictors that learn would be evaluated on other requests than those "
                "that do not; set workload.training_fraction, e.g. to 0.1"
            )


def _beside(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: anchored(key, value, path.parent) for key, value in settings.items()}


def _without(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in given}
