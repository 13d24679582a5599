"""Files written so that a reader never meets half of anything."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from batchsim.errors import ConfigError
from batchsim.files.reading import reason

_SUFFIX = ".partial"
#: What `sibling` calls them; whatever else is called partial is not ours.
_OURS = re.compile(r"\..+\.[0-9a-f]{8}-\d+-\d+-[0-9a-f]{8}\.partial", re.DOTALL)
_DAY_S = 86_400


def json_text(content: Any) -> str:
    """Return indented JSON that any reader takes: what is no finite number is null."""
    try:
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def _finite(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, UTF-8 where it is text, that appears whole or not at all; an old one is replaced."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what becomes a file, at once and whole, when the block ends well; as `write_whole`."""
    path = Path(path)
    partial = sibling(path)
    with cleanly(path, partial):
        _refuse_folder(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)


def check_file(path: Path, *, inputs: Iterable[Path | str | None] = (), overwrite: bool = True) -> None:
    """Raise before the work what writing would spoil after it: an input, or, unasked, a file that is there.

    What the dead began to write beside it is removed.

    Raises
    ------
    ConfigError
        Also for a folder, and for a link: what it leads to would stay as it is.
    """
    path = Path(path)
    _refuse_folder(path)
    if any(one is not None and _holds(Path(one), path) for one in inputs):
        raise ConfigError(f"{path}: is an input; an input is never replaced, choose another name")
    if path.is_symlink():
        raise ConfigError(f"{path}: is a symbolic link; name the file itself")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: is there already; choose another name, or replace it with --overwrite")
    remove_dead_partials(path.parent)


def sibling(path: Path) -> Path:
    """A name beside a path that nobody else uses: where it is made before it appears.

    It tells which process on which machine makes it, so that what the dead left is known.

    Raises
    ------
    ConfigError
        For a path that ends in no name of its own, like ``.`` and ``/``.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise ConfigError(f"{str(path)!r} is no name of a file or folder to write; a name is needed")
    maker = f"{_machine()}-{os.getpid()}-{_started(os.getpid()) or 0}"
    return path.with_name(f".{path.name}.{maker}-{uuid.uuid4().hex[:8]}{_SUFFIX}")


def remove_dead_partials(folder: Path) -> None:
    """Remove what processes that are no more had begun to write in a folder; those of the living stay.

    Of another machine's processes nothing is known: theirs go when they are a day old.
    """
    with suppress(OSError):  # a folder that nobody may look into is for whoever writes there to tell
        for partial in Path(folder).glob(f".*{_SUFFIX}"):
            if _OURS.fullmatch(partial.name) and not _is_in_use(partial):
                _remove(partial)


def _is_in_use(partial: Path) -> bool:
    maker = partial.name.removesuffix(_SUFFIX).rpartition(".")[2].split("-")
    if maker[0] == _machine() and maker[2] != "0":
        return _started(int(maker[1])) == maker[2]
    with suppress(OSError):
        return time.time() - partial.stat().st_mtime < _DAY_S
    return False


def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _started(pid: int) -> str | None:
    """When a process started, in ticks of the machine; None if it runs no more, or the system does not tell.

    A process id alone may belong to another process by now.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state == "Z" else rest[18]


def _refuse_folder(path: Path) -> None:
    if path.name in ("", "..") or path.is_dir():
        raise ConfigError(f"{str(path)!r} cannot be written: it is a folder; the name of a file is needed")


def resolved(path: str | Path) -> Path:
    """Return where a path leads to, whether there is anything or not: it may be a link to itself, too."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):  # no file can have this name
        return Path(path)


def _holds(given: Path, path: Path) -> bool:
    """Whether an input, a file or a folder, is what lies at a path, or holds it."""
    try:
        return given.samefile(path) or (given.is_dir() and resolved(path).is_relative_to(resolved(given)))
    except (OSError, ValueError):  # one of them is not there
        return resolved(given) == resolved(path)


def _remove(partial: Path) -> None:
    with suppress(OSError):
        partial.unlink() if partial.is_file() else shutil.rmtree(partial)


@contextmanager
def cleanly(target: Path, partial: Path) -> Iterator[None]:
    """Leave nothing partial behind, and say in one sentence what the system refused."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({reason(error)})") from error
    finally:
        _remove(partial)
