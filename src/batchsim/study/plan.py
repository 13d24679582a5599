"""From a sweep file to the list of its runs: which configurations, under which names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from batchsim.config import RunConfig, SweepConfig, flat, read_toml, set_dotted, validate
from batchsim.config.paths import anchored
from batchsim.errors import ConfigError
from batchsim.policies import presets
from batchsim.policies.presets import Policy
from batchsim.study.identity import identify, refresh_policy
from batchsim.study.replications import replication
from batchsim.study.run import training_fraction
from batchsim.study.sweeps.axes import points, varied_keys
from batchsim.workload.predictor import Predictor, make_predictor

_Act = Callable[[Mapping[str, Any]], dict[str, Any]]


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
        Dotted keys that the sweep varies, with the values of this run; and ``replication``, from 0 on, where
        there are several of any point.
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

    @property
    def point(self) -> str:
        """The same for the replications of one point of the sweep."""
        return _point(self.case, self.varied)

    def __str__(self) -> str:
        return _told(self.case, self.varied)


def read_sweep_file(
    path: str | Path,
    *,
    full: bool = False,
    overrides: Mapping[str, Any] | None = None,
    replications: int | None = None,
) -> SweepConfig:
    """Read a sweep file, in whose folder the files that it names are.

    Parameters
    ----------
    full
        Let the entries of its ``full`` table win.
    overrides
        Dotted keys to values that win over all that the file says of them, the axes and cases included.
    replications
        Runs of each point, whatever the file says.
    """
    path = Path(path)
    tree = read_toml(path)
    if tree and set(tree) <= set(RunConfig.model_fields):
        raise ConfigError(f"{path}: a run file, for `batchsim run`; a sweep has it under [base], and a name")
    sweep = validate(SweepConfig, tree, str(path))
    if full:
        sweep = _full(sweep)
    folder = path.parent.absolute()  # another process or machine may do the runs, in a folder of its own
    beside, all_beside = partial(_beside, folder), partial(_all_beside, folder)
    sweep = _each_table(sweep, beside, all_beside)
    whens = [when.model_copy(update={"has": all_beside(when.has)}) for when in sweep.when]
    sweep = sweep.model_copy(update={"when": whens})
    if overrides:
        given = _beside(Path.cwd(), flat(overrides))
        sweep = _each_table(sweep, partial(_without, given), partial(_without, given))
        sweep = sweep.model_copy(update={"base": {**sweep.base, **given}})
    if replications is not None:
        sweep = _replicated(sweep, replications)
    return sweep


def plan(
    sweep: SweepConfig, where: str | Path = "sweep", counts: Mapping[str, int] = MappingProxyType({})
) -> list[PlannedRun]:
    """List the runs, in the order of the file: cases outermost, then the grid, its last key innermost.

    Zipped lists and the axes of conditions lie within the grid, replications within all. ``counts`` are
    replications of single points, by `PlannedRun.point`.

    Raises
    ------
    ConfigError
        For a setting that no run can have, a file or an own policy that is not there, a key set twice, or
        policies and predictors that would meet different requests; ``where`` begins the sentence.
    """
    with _told_of(where):
        found = list(points(sweep))
    varied, base, runs = varied_keys(sweep), flat(sweep.base), []
    is_replicated = any(point.num_replications > 1 for point in found)
    built: dict[str, tuple[Policy, Predictor]] = {}
    fractions: list[tuple[RunConfig, float]] = []
    for case, chosen, num_replications in found:
        config = _configure({**base, **chosen}, where)
        shown = flat(config.model_dump(mode="json")) if set(varied) - chosen.keys() else {}
        used = {key: chosen.get(key, shown.get(key)) for key in varied}
        with _told_of(where):
            fractions.append((config, _training_fraction(config, built)))
        for number in range(counts.get(_point(case, used), num_replications)):
            one = replication(config, number)
            with _told_of(where):
                key, run_id, inputs = identify(one)
            more = {"replication": number} if is_replicated else {}
            runs.append(PlannedRun(run_id, one, case, used | more, key, inputs))
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


def _point(case: str, varied: Mapping[str, Any]) -> str:
    return _told(case, {key: value for key, value in varied.items() if key != "replication"})


def _told(case: str, varied: Mapping[str, Any]) -> str:
    settings = [f"{key}={value}" for key, value in varied.items() if value is not None]
    return ", ".join([case] * bool(case) + settings)


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


def _full(sweep: SweepConfig) -> SweepConfig:
    """Put what ``full`` says in place: entries of base and grid, and the rest as a whole."""
    full = sweep.full
    whole = {name: getattr(full, name) for name in ("zip", "when", "replications") if getattr(full, name)}
    parts = {"base": {**flat(sweep.base), **flat(full.base)}, "grid": {**sweep.grid, **full.grid}}
    return sweep.model_copy(update={**whole, **parts})


def _replicated(sweep: SweepConfig, num: int) -> SweepConfig:
    if num < 1:
        raise ConfigError(f"replications is {num}; a whole number >= 1 is needed")
    whens = [when.model_copy(update={"replications": None}) for when in sweep.when if when.grid]
    return sweep.model_copy(update={"replications": num, "when": whens})


def _each_table(sweep: SweepConfig, settings: _Act, lists: _Act) -> SweepConfig:
    """Put what is in base and cases, and the lists of values of all axes, through a function each."""
    whens = [when.model_copy(update={"grid": lists(when.grid)}) for when in sweep.when]
    return sweep.model_copy(
        update={
            "base": settings(flat(sweep.base)),
            "cases": [settings(flat(case)) for case in sweep.cases],
            "grid": lists(sweep.grid),
            "zip": [lists(one) for one in sweep.zip],
            "when": whens,
        }
    )


def _beside(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: anchored(key, value, folder) for key, value in settings.items()}


def _all_beside(folder: Path, lists: Mapping[str, Any]) -> dict[str, Any]:
    return {key: [anchored(key, value, folder) for value in values] for key, values in lists.items()}


def _without(given: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in given}
