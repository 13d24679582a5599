"""Files read within bounds, and written so that a reader never meets half of anything."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import platform
import re
import shutil
import stat
import sys
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from batchsim.errors import BatchsimError, ConfigError

#: What a reader takes unless it is told otherwise: far more than the files of studies hold.
MAX_BYTES = 64 * 2**20
#: How many lists and objects inside each other a JSON file may have.
MAX_DEPTH = 64
#: The largest count, of tokens and the like, that readers take: beyond it sums overflow.
MAX_COUNT = 10**12

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
)
#: Surrogates: two of them are one character, one alone cannot be written to any file.
_HALF = re.compile("[\ud800-\udfff]")


def read_bytes(
    path: str | Path, *, max_bytes: int = MAX_BYTES, error: type[BatchsimError] = ConfigError
) -> bytes:
    """Read a regular file whole: no pipe or device, which might never end, and none longer than that.

    Raises
    ------
    BatchsimError
        Of the given class, in one sentence that begins with the path.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "a device")
            raise error(f"{path}: is {kind}; a regular file is needed")
        with path.open("rb") as file:
            content = b"" if status.st_size > max_bytes else file.read(max_bytes + 1)
    except (OSError, ValueError) as refusal:  # ValueError: a path that no file can have
        raise error(f"{path}: cannot be read ({reason(refusal)})") from refusal
    size = max(status.st_size, len(content))  # files of the system are of no stated size
    if size > max_bytes:
        raise error(f"{path}: holds {size:,} bytes; a file of at most {max_bytes:,} is needed")
    return content


def read_text(
    path: str | Path, *, max_bytes: int = MAX_BYTES, error: type[BatchsimError] = ConfigError
) -> str:
    """Read a file as `read_bytes` does, and return it as `decoded` does."""
    return decoded(read_bytes(path, max_bytes=max_bytes, error=error), path, error=error)


def unzipped(
    content: bytes, path: str | Path, *, max_bytes: int = MAX_BYTES, error: type[BatchsimError] = ConfigError
) -> bytes:
    """Return the content of a gzip file unzipped, without unzipping more of it than is allowed.

    Raises
    ------
    BatchsimError
        If it is broken or longer.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            plain = file.read(max_bytes + 1)
    except (EOFError, OSError, zlib.error) as refusal:
        raise error(f"{path}: broken gzip file ({reason(refusal)})") from refusal
    if len(plain) > max_bytes:
        raise error(f"{path}: holds more than {max_bytes:,} bytes unzipped; at most that many are read")
    return plain


def decoded(content: bytes, path: str | Path, *, error: type[BatchsimError] = ConfigError) -> str:
    """Return the content of a file as text: UTF-8, which may begin with a byte-order mark.

    Raises
    ------
    BatchsimError
        If it is not that, or holds another byte-order mark (as files do that were put together) or a NUL.
    """
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as refusal:
        line = content.count(b"\n", 0, refusal.start) + 1
        raise error(
            f"{path}, line {line}: byte 0x{content[refusal.start]:02x} is no UTF-8; "
            "a text file in UTF-8 is needed"
        ) from refusal
    for character, name in (("\ufeff", "a byte-order mark"), ("\0", "a NUL character")):
        if character in text:
            line = text.count("\n", 0, text.index(character)) + 1
            raise error(f"{path}, line {line}: {name} stands inside the text; plain text is needed")
    return text


def read_json(
    path: str | Path, *, max_bytes: int = MAX_BYTES, error: type[BatchsimError] = ConfigError
) -> Any:
    """Read a JSON file as `read_text` does: every number finite, every key once, nothing nested very deep.

    Raises
    ------
    BatchsimError
        Of the given class, in one sentence that begins with the path.
    """
    text = read_text(path, max_bytes=max_bytes, error=error)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            doubled = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise error(f"{path}: key {doubled!r:.60} stands twice in an object; once is needed")
        return tree

    try:
        tree = json.loads(text, object_pairs_hook=unique)
        wrong = _wrong(tree, "", 0)
    except RecursionError:
        wrong = _TOO_DEEP
    except json.JSONDecodeError as refusal:
        raise error(f"{path}: not valid JSON ({refusal})") from refusal
    except ValueError as refusal:  # int() takes no more than some thousand digits
        raise error(f"{path}: holds a number of thousands of digits; finite ones are needed") from refusal
    if wrong:
        raise error(f"{path}: {wrong}")
    return tree


_TOO_DEEP = f"nested too deeply; at most {MAX_DEPTH} lists and objects inside each other are read"


def _wrong(tree: Any, place: str, depth: int) -> str | None:
    """Say what is wrong with the first value in a tree that is."""
    if isinstance(tree, dict | list):
        if depth == MAX_DEPTH:
            return _TOO_DEEP
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if isinstance(value, float) and math.isfinite(value):  # most of what long files hold
                continue
            inside = f"{place}[{key}]" if isinstance(tree, list) else f"{place}.{key}".removeprefix(".")
            wrong = _wrong(value, inside, depth + 1)
            if wrong:
                return wrong
        if isinstance(tree, list):
            return None
        tree = "".join(tree)  # the keys are text, too
    if isinstance(tree, int | float) and not abs(tree) <= sys.float_info.max:  # NaN is not, either
        shown = place if place.isprintable() else ascii(place)
        return f"{shown[:80] or 'the file'} is {tree!r:.40}; a finite number is needed"
    if isinstance(tree, str) and _HALF.search(tree):
        return f"{tree!a:.60} holds half a character; whole ones are needed"
    return None


_SUFFIX = ".partial"
_DAY_S = 86_400


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, UTF-8 where it is text, that appears whole or not at all; an old one is replaced."""
    path = Path(path)
    partial = sibling(path)
    with cleanly(path, partial):
        _refuse_folder(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        partial.replace(path)


def check_file(path: Path, *, inputs: Iterable[Path | str | None] = (), overwrite: bool = True) -> None:
    """Raise before the work what writing would spoil after it: an input, or, unasked, a file that is there.

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
        raise ConfigError(f"{path}: is there already; choose another name or allow overwriting")


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
    for partial in folder.glob(f".*{_SUFFIX}"):
        if not _is_in_use(partial):
            _remove(partial)


def _is_in_use(partial: Path) -> bool:
    maker = partial.name.removesuffix(_SUFFIX).rpartition(".")[2].split("-")
    if len(maker) == 4 and maker[0] == _machine() and maker[2] != "0":
        return maker[1].isdecimal() and _started(int(maker[1])) == maker[2]
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


def _holds(given: Path, path: Path) -> bool:
    """Whether an input, a file or a folder, is what lies at a path, or holds it."""
    try:
        return given.samefile(path) or (given.is_dir() and path.resolve().is_relative_to(given.resolve()))
    except OSError:  # one of them is not there
        return given.resolve() == path.resolve()


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


def reason(error: BaseException) -> str:
    """What the system said, in its first line."""
    strerror = getattr(error, "strerror", None)
    return str(strerror or error).splitlines()[0]
