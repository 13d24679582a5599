"""Faults that people and programs put into files: each makes of a valid file a malformed one."""

import gzip
import os
import re
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

Fault = tuple[str, Callable[[Path], None]]

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_WORD = re.compile(rb"[A-Za-z_]{2,}")

#: Instead of a number.
NUMBERS = {
    "1e308": b"1e308", "1e400": b"1e400", "NaN": b"NaN", "Infinity": b"Infinity", "-Infinity": b"-Infinity",
    "inf": b"inf", "-1": b"-1", "0": b"0", "-0.0": b"-0.0", "2^63": b"9223372036854775808",
    "31 digits": b"1" * 31, "5,000 digits": b"9" * 5_000, "1e-320": b"1e-320", "true": b"true",
    "null": b"null", "nothing": b"", "text": b"soon", "quoted": b'"1"', "list": b"[1]",
    "hexadecimal": b"0x10", "underscore": b"1_0", "full width": "\uff11".encode(),
}  # fmt: skip
#: Instead of a word.
WORDS = {
    "escape": b"\x1b[31m", "markup": b"[red]", "closing markup": b"[/]", "line end": b"a\nb",
    "return": b"a\rb", "tab": b"a\tb", "formula": b"=1+1", "mark": "\ufeff".encode(), "NUL": b"\0",
    "right to left": "\u202e".encode(), "long": b"x" * 100_000, "quote": b'"', "dots": b"../..",
    "no UTF-8": b"\xff", "lone surrogate": b"\\ud800", "nothing": b"",
}  # fmt: skip
#: Instead of the whole.
CONTENTS = {
    "empty": b"", "a line end": b"\n", "spaces": b" " * 1_000, "a mark": "\ufeff".encode(),
    "NULs": b"\0" * 1_000, "binary": bytes(range(256)) * 4, "a picture": b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
    "cut gzip": b"\x1f\x8b\x08",
    "gzip of nothing": gzip.compress(b"", mtime=0), "gzip of gzip": gzip.compress(gzip.compress(b"a")),
    "no Parquet": b"PAR1", "no Parquet, longer": b"PAR1" + b"\xff" * 64 + b"PAR1",
    "zip": b"PK\x03\x04" + b"\0" * 30,
    "10,000 lists": b"[" * 10_000, "10,000 closed lists": b"[" * 10_000 + b"]" * 10_000,
    "10,000 objects": b'{"a":' * 10_000, "10,000 tables": b"a = " + b"{a = " * 10_000, "null": b"null",
    "a number": b"1", "a list": b"[]", "an object": b"{}", "a text": b'"text"', "nested": b'[[[["a"]]]]',
    "objects": b"{}\n" * 1_000, "commas": b",,,\n" * 1_000, "a long line": b"x" * 2_000_000,
    "many columns": b",".join(b"c%d" % i for i in range(20_000)) + b"\n", "quotes": b'"' * 1_001,
    "markup": b"[red]\n[/red]\n", "escapes": b"\x1b[2J\x1b[31m\n",
    "a web page": b"<!doctype html><p>404</p>\n",
    "a key of 1 MB": b'{"' + b"k" * 1_000_000 + b'": 1}', "comments": b"# synthetic\n" * 20_000,
}  # fmt: skip


def _replace(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _make(make: Callable[[Path], object], path: Path) -> None:
    path.unlink()
    make(path)


def _unreadable(path: Path) -> None:
    path.chmod(0)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        before = Path.cwd()
        os.chdir(path.parent)  # the names of sockets are short
        try:
            server.bind(path.name)
        finally:
            os.chdir(before)


def _in_place(content: bytes, what: re.Pattern[bytes], values: dict[str, bytes]) -> Iterator[Fault]:
    """The first, a middle and the last of what is found, replaced."""
    found = list(what.finditer(content))
    for place in sorted({0, len(found) // 2, len(found) - 1}) if found else ():
        start, end = found[place].span()
        for name, value in values.items():
            yield f"{name} at {start}", partial(_replace, content[:start] + value + content[end:])


def faults(content: bytes) -> list[Fault]:
    """List the faults that a file with this content may have."""
    lines, half = content.splitlines(keepends=True), len(content) // 2
    header = lines[0].rstrip(b"\n") if lines else b""
    changed = {
        "cut at a quarter": content[: half // 2],
        "cut in half": content[:half],
        "cut by one": content[:-1],
        "twice": content * 2,
        "without its first line": b"".join(lines[1:]),
        "its first line alone": header,
        "its first line twice": header + b"\n" + content,
        "a mark in the middle": content[:half] + "\ufeff".encode() + content[half:],
        "a NUL in the middle": content[:half] + b"\0" + content[half:],
        "a byte that is no UTF-8": content[:half] + b"\xff" + content[half:],
        "in UTF-16": content.decode("latin-1").encode("utf-16"),
        "gzipped and cut": gzip.compress(content, mtime=0)[:-9],
        "columns twice": b"\n".join(line.rstrip(b"\n") + b"," + line.rstrip(b"\n") for line in lines),
        "rows too long": b"\n".join([header, *(line.rstrip(b"\n") + b",1" for line in lines[1:])]),
        "old line ends": content.replace(b"\n", b"\r"),
    }
    keys = re.findall(rb'"\w+"(?=\s*:)', content)
    if len(keys) > 1:
        changed["a key twice"] = content.replace(keys[1], keys[0], 1)
    made = {
        "a folder": Path.mkdir,
        "a named pipe": os.mkfifo,
        "a socket": _socket,
        "a device without end": lambda path: path.symlink_to("/dev/zero"),
        "a link to itself": lambda path: path.symlink_to(path),
        "a link to nothing": lambda path: path.symlink_to(path.with_name("nothing")),
        "not there": lambda path: None,
    }
    return [
        *(
            (name, partial(_replace, changed_content))
            for name, changed_content in (CONTENTS | changed).items()
        ),
        *((name, partial(_make, make)) for name, make in made.items()),
        ("unreadable", _unreadable),
        *_in_place(content, _NUMBER, NUMBERS),
        *_in_place(content, _WORD, WORDS),
    ]
