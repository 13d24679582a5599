"""Writing so that a reader never meets half of anything: a temporary name first, then a rename."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from batchsim.errors import ConfigError


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, UTF-8 where it is text, that appears whole or not at all; an old one is replaced."""
    path = Path(path)
    partial = sibling(path)
    with cleanly(path, partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        partial.replace(path)


def sibling(path: Path) -> Path:
    """A name beside a path that nobody else uses: where it is made before it appears."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")


@contextmanager
def cleanly(target: Path, partial: Path) -> Iterator[None]:
    """Leave nothing partial behind, and say in one sentence what the system refused."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({reason(error)})") from error
    finally:
        with suppress(OSError):
            partial.unlink() if partial.is_file() else shutil.rmtree(partial)


def reason(error: BaseException) -> str:
    """What the system said, in its first line."""
    strerror = getattr(error, "strerror", None)
    return str(strerror or error).splitlines()[0]
