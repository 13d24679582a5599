"""From a TOML file, a mapping or options to a checked configuration, or one sentence on its first fault."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from batchsim.config.dotted import flat, set_dotted
from batchsim.config.paths import anchored
from batchsim.config.run import RunConfig
from batchsim.config.section import Section, keys_at
from batchsim.errors import ConfigError, nearest
from batchsim.files import read_text

#: Characters of a value, and levels of tables in tables, beyond which a file holds no settings.
_MOST_SHOWN = 200
_MOST_NESTED = 30
_TOO_NESTED = f"holds more than {_MOST_NESTED} tables or lists in each other"

#: Settings by the names that vLLM's options have.
_OTHER_NAMES = {
    "max_num_seqs": "policy.batch_size",
    "max_num_batched_tokens": "policy.batching.max_num_batched_tokens",
}
#: What a sweep file has, and a run file has not.
_OF_SWEEPS = ("base", "grid", "zip", "cases")

S = TypeVar("S", bound=Section)


def load_config(
    given: RunConfig | Mapping[str, Any] | str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Read a run configuration.

    Parameters
    ----------
    given
        A `RunConfig`, a (nested) mapping, or the path of a TOML file, in whose folder the files that it names
        are; defaults alone if ``None``.
    overrides
        Dotted keys to values that win over ``given``, e.g. ``{"cluster.num_gpus": 4}``.

    Raises
    ------
    ConfigError
        One sentence that names the file, the key, the value and what would be accepted.
    """
    where = "configuration"
    if given is None:
        tree: dict[str, Any] = {}
    elif isinstance(given, RunConfig):
        tree = given.model_dump(exclude_unset=True)
    elif isinstance(given, Mapping):
        tree = _copy(given)
    else:
        where = str(given)
        tree = read_toml(Path(given))
        if any(key in tree for key in _OF_SWEEPS):
            raise ConfigError(f"{where}: a sweep file, for `batchsim sweep`; one run is its [base] alone")
        for key, value in flat(tree).items():
            if (found := anchored(key, value, Path(given).parent)) is not value:
                set_dotted(tree, key, found)
    for key, value in (overrides or {}).items():
        set_dotted(tree, key, value)
    if not _is_nested_at_most(_MOST_NESTED, tree):
        raise ConfigError(f"{where}: {_TOO_NESTED}")
    return validate(RunConfig, tree, where)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file as a dict, or raise `ConfigError` with a sentence."""
    try:
        tree = tomllib.loads(read_text(path))
        if not _is_nested_at_most(_MOST_NESTED, tree):
            raise RecursionError
    except RecursionError as error:
        raise ConfigError(f"{path}: {_TOO_NESTED}") from error
    except ValueError as error:  # tomllib's own, or of int(), which takes some thousand digits at most
        raise ConfigError(f"{path}: not valid TOML ({error})") from error
    return tree


def validate(section: type[S], tree: Mapping[str, Any], where: str) -> S:
    """Build a section, with pydantic's report cut down to one sentence about the first fault."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"])) or "table"
        is_told = fault["type"] == "missing" or isinstance(fault["input"], Mapping)  # of a whole table
        shown = "" if is_told else f" is {_short(repr(fault['input']))}"
        message = f"{_short(key)}{shown}: {_lower_first(fault['msg'])}"
        *tables, name = fault["loc"] or ("",)
        if fault["type"] == "extra_forbidden" and (known := keys_at(section, tables)):
            meant = settings_named(str(name)) if section is RunConfig else []
            told = f"did you mean {' or '.join(meant)}?" if meant else nearest(_short(str(name)), known)
            message = f"unknown key {_short(key)}; {told}"
        raise ConfigError(f"{where}: {message}") from error


def settings_named(name: str) -> list[str]:
    """Dotted keys that a bare name could mean: ``gpu`` is ``cluster.gpu``; none of what many tables have."""
    keys = [f"{table}.{name}" for table in RunConfig.model_fields if name in keys_at(RunConfig, [table])]
    keys += [key for other, key in _OTHER_NAMES.items() if other == name]
    return keys if len(keys) <= 2 else []


def _is_nested_at_most(levels: int, value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels >= 0 and all(_is_nested_at_most(levels - 1, one) for one in inside)


def _short(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _lower_first(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
