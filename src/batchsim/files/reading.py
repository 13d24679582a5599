"""Files read within bounds: regular ones, no longer than asked for, of text or JSON as it should be."""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Callable
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
        expected = status.st_size or max_bytes  # files of the system are of no stated size
        with path.open("rb") as file:
            content = b"" if expected > max_bytes else file.read(expected + 1)
    except (OSError, ValueError) as refusal:  # ValueError: a path that no file can have
        raise error(f"{path}: cannot be read ({reason(refusal)})") from refusal
    size = max(status.st_size, len(content))
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
    return parsed_json(read_text(path, max_bytes=max_bytes, error=error), path, error=error)


def parsed_json(
    text: str,
    where: str | Path,
    *,
    error: type[BatchsimError] = ConfigError,
    parse_constant: Callable[[str], Any] | None = None,
) -> Any:
    """Return what a JSON text says, as `read_json` does; ``where`` it stands begins the sentence on a fault.

    ``parse_constant`` makes what it will of ``NaN`` and ``Infinity``, which JSON has not but some write.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            doubled = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise error(f"{where}: key {doubled!r:.60} stands twice in an object; once is needed")
        return tree

    try:
        tree = json.loads(text, object_pairs_hook=unique, parse_constant=parse_constant)
        wrong = _wrong(tree, "", 0)
    except RecursionError:
        wrong = _TOO_DEEP
    except json.JSONDecodeError as refusal:
        raise error(f"{where}: not valid JSON ({refusal})") from refusal
    except ValueError as refusal:  # int() takes no more than some thousand digits
        raise error(f"{where}: holds a number of thousands of digits; finite ones are needed") from refusal
    if wrong:
        raise error(f"{where}: {wrong}")
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
        return f"{place[:80] or 'the file'} is {tree!r:.40}; a finite number is needed"
    if isinstance(tree, str) and _HALF.search(tree):
        return f"{tree!a:.60} holds half a character; whole ones are needed"
    return None


def reason(error: BaseException) -> str:
    """What the system said, in its first line."""
    strerror = getattr(error, "strerror", None)
    return (str(strerror or error).strip() or type(error).__name__).splitlines()[0]
