import os
import socket
from pathlib import Path

import pytest

from batchsim.errors import ConfigError, TraceError, printable
from batchsim.files import MAX_DEPTH, read_bytes, read_json, read_text


def refused(path: Path, message: str) -> None:
    """Assert that a file is no JSON, in one line that begins with its name."""
    with pytest.raises(ConfigError) as refusal:
        read_json(path)
    assert str(refusal.value).startswith(f"{printable(str(path))}{message}"), str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('\ufeff{"größe": [1, 2.5, true, null, "x"]}\r\n'.encode())

    assert read_json(path) == {"größe": [1, 2.5, True, None, "x"]}
    assert read_text(path) == '{"größe": [1, 2.5, true, null, "x"]}\r\n'
    assert read_bytes(path) == path.read_bytes()


def test_what_is_no_regular_file_is_refused_without_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))  # the name of one is short

        refused(tmp_path, ": is a directory; a regular file is needed")
        refused(tmp_path / "pipe", ": is a named pipe; a regular file is needed")
        refused(tmp_path / "socket", ": is a socket; a regular file is needed")
    refused(Path("/dev/zero"), ": is a device; a regular file is needed")
    refused(tmp_path / "none.json", ": cannot be read (No such file or directory)")
    refused(tmp_path / "a\0b", ": cannot be read (embedded null byte)")


def test_file_longer_than_allowed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("12345")

    assert read_json(path, max_bytes=5) == 12345
    with pytest.raises(ConfigError, match=r"a\.json: holds 5 bytes; a file of at most 4 is needed"):
        read_json(path, max_bytes=4)


def test_empty_space_of_a_hundred_megabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(100_000_000)

    refused(path, ": holds 100,000,000 bytes; a file of at most 67,108,864 is needed")


def test_caller_says_which_error_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": NaN}')

    for read in (read_json, read_text, read_bytes):
        with pytest.raises(TraceError):
            read(tmp_path / "none", error=TraceError)
    with pytest.raises(TraceError):
        read_json(path, error=TraceError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": not valid JSON (Expecting value: line 1 column 1 (char 0))"),
        (b"{", ": not valid JSON (Expecting property name"),
        (b'{"a": 1}{}', ": not valid JSON (Extra data"),
        (b'{\n"a": "\xe4"}', ", line 2: byte 0xe4 is no UTF-8; a text file in UTF-8 is needed"),
        ('{"a": 1}'.encode("utf-16"), ", line 1: byte 0xff is no UTF-8"),
        ('{"a": 1}'.encode("utf-16-be"), ", line 1: a NUL character stands inside the text"),
        ('{"a":\n1\ufeff}'.encode(), ", line 2: a byte-order mark stands inside the text"),
        ("\ufeff\ufeff1".encode(), ", line 1: a byte-order mark stands inside the text"),
        (b'{"a": {"b": 1, "b": 1}}', ": key 'b' stands twice in an object; once is needed"),
        (b'{"a": {"b": [1, NaN]}}', ": a.b[1] is nan; a finite number is needed"),
        (b'{"a": -Infinity}', ": a is -inf; a finite number is needed"),
        (b'{"a\\nb": 1e999}', ": a b is inf; a finite number is needed"),
        (b"[1, 1" + b"0" * 400 + b"]", f": [1] is 1{'0' * 39}; a finite number is needed"),
        (b"NaN", ": the file is nan; a finite number is needed"),
        (b"1" + b"0" * 5000, ": holds a number of thousands of digits; finite ones are needed"),
        (b'{"a": "\\ud800"}', ": '\\ud800' holds half a character; whole ones are needed"),
        (b'{"\\udc00": 1.0}', ": '\\udc00' holds half a character; whole ones are needed"),
        (b"[" * 100_000 + b"]" * 100_000, ": nested too deeply; at most 64 lists and objects"),
        (b'{"a":' * 100_000, ": nested too deeply; at most 64 lists and objects"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), ": nested too deeply"),
    ],
)
def test_what_is_no_plain_json_is_refused_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)

    refused(path, message)


def test_pairs_and_nesting_within_bounds_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * MAX_DEPTH + r'"\ud83d\ude00", 1.7976931348623157e308, -7' + "]" * MAX_DEPTH)

    tree = read_json(path)
    for _ in range(MAX_DEPTH - 1):
        (tree,) = tree

    assert tree == ["\N{GRINNING FACE}", 1.7976931348623157e308, -7]
