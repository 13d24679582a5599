"""Downloads against a server on this machine: whole, cut off, resumed, without ranges, gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from batchsim.errors import TraceError
from batchsim.workload import download
from batchsim.workload.download import FILE_NAME, download_burstgpt
from batchsim.workload.formats import read_trace

TRACE = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    + "".join(f"{second},ChatGPT,{second + 1},{second % 4},0,API log\n" for second in range(5_000))
).encode()


@dataclass
class Server:
    """What is served, how it misbehaves, and the ranges asked for."""

    content: bytes = TRACE
    cut_after: list[int] = field(default_factory=list)  # bytes sent before the connection breaks, per answer
    supports_ranges: bool = True
    missing: tuple[str, ...] = ()
    length: str | None = None  # what it says instead of the length
    ranges: list[str | None] = field(default_factory=list)
    address: str = ""

    def url(self, name: str = "a.csv") -> str:
        return f"{self.address}/{name}"


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            if self.path.strip("/") in state.missing:
                self.send_error(404)
                return
            first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.supports_ranges else 0
            if first >= len(state.content):
                self.send_error(416)
                return
            body = state.content[first:]
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", state.length or str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cut_after.pop(0)] if state.cut_after else body)

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.address = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        running.shutdown()
        thread.join()


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != FILE_NAME)


def test_a_whole_file_lands_under_its_name_with_its_statistics(server: Server, tmp_path: Path) -> None:
    said: list[str] = []

    path = download_burstgpt(tmp_path / "data", urls=[server.url()], notify=said.append, accept_unknown=True)

    assert path == tmp_path / "data" / FILE_NAME
    assert path.read_bytes() == TRACE
    assert leftovers(path.parent) == []
    assert "not the known version" in said[-1]
    assert "3,750 requests" in said[-1]
    assert "1,250 failed" in said[-1]
    assert len(read_trace(path)) == 3_750


def test_a_cut_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1_000, 2_000]

    path = download_burstgpt(tmp_path, urls=[server.url()], accept_unknown=True)

    assert path.read_bytes() == TRACE
    assert server.ranges == [None, "bytes=1000-", "bytes=3000-"]


def test_a_later_call_resumes_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.cut_after = [100, 100, 100]
    with pytest.raises(TraceError, match=r"the connection ended after 300 of"):
        download_burstgpt(tmp_path, urls=[server.url()])

    path = download_burstgpt(tmp_path, urls=[server.url()], accept_unknown=True)

    assert path.read_bytes() == TRACE
    assert server.ranges[-1] == "bytes=300-"
    assert leftovers(tmp_path) == []


def test_a_server_without_ranges_sends_all_of_it_again(server: Server, tmp_path: Path) -> None:
    server.supports_ranges = False
    server.cut_after = [1_000]

    path = download_burstgpt(tmp_path, urls=[server.url()], accept_unknown=True)

    assert path.read_bytes() == TRACE


def test_a_part_as_long_as_the_file_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{FILE_NAME}.1.part").write_bytes(b"x" * len(TRACE))

    path = download_burstgpt(tmp_path, urls=[server.url()], accept_unknown=True)

    assert path.read_bytes() == TRACE


def test_the_second_address_is_asked_when_the_first_has_nothing(server: Server, tmp_path: Path) -> None:
    server.missing = ("gone.csv",)

    path = download_burstgpt(
        tmp_path, urls=[server.url("gone.csv"), server.url("here.csv")], accept_unknown=True
    )

    assert path.read_bytes() == TRACE


def test_pieces_from_two_addresses_are_never_joined(server: Server, tmp_path: Path) -> None:
    server.cut_after = [100, 100, 100]

    path = download_burstgpt(
        tmp_path, urls=[server.url("one.csv"), server.url("two.csv")], accept_unknown=True
    )

    assert path.read_bytes() == TRACE
    assert server.ranges[3] is None


def test_no_answer_is_explained_in_one_paragraph(server: Server, tmp_path: Path) -> None:
    server.missing = ("a.csv",)

    with pytest.raises(TraceError, match="answered 404") as caught:
        download_burstgpt(tmp_path, urls=[server.url()])

    assert str(tmp_path / FILE_NAME) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_closed_port_is_explained_too(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_port

    with pytest.raises(TraceError, match="could not be downloaded"):
        download_burstgpt(tmp_path, urls=[f"http://127.0.0.1:{port}/a.csv"])


def test_a_page_instead_of_the_trace_is_refused_and_not_resumed(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>Please sign in</html>"

    with pytest.raises(TraceError, match="missing"):
        download_burstgpt(tmp_path, urls=[server.url()], accept_unknown=True)

    assert list(tmp_path.iterdir()) == []


def test_a_file_put_there_by_hand_is_checked_and_not_downloaded(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(TRACE)
    said: list[str] = []

    path = download_burstgpt(tmp_path, urls=[], notify=said.append, accept_unknown=True)

    assert path.read_bytes() == TRACE
    assert "is there already" in said[0]
    assert "3,750 requests" in said[1]


def test_the_known_version_is_recognised_by_its_git_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `git hash-object` of these bytes
    monkeypatch.setattr(download, "KNOWN_GIT_BLOB", "ce013625030ba8dba906f756967f9e9ca394464a")
    (tmp_path / FILE_NAME).write_bytes(b"hello\n")
    said: list[str] = []

    download_burstgpt(tmp_path, urls=[], notify=said.append)

    assert said[-1].endswith("6 bytes, the known version")


@pytest.mark.parametrize(
    "content", [TRACE, TRACE[: len(TRACE) // 2], TRACE * 2], ids=["other", "half", "longer"]
)
def test_what_is_not_the_known_version_is_refused_and_not_resumed(
    server: Server, tmp_path: Path, content: bytes
) -> None:
    server.content = content

    with pytest.raises(TraceError, match=r"are not the known version .* --accept-unknown` takes another"):
        download_burstgpt(tmp_path, urls=[server.url()])

    assert list(tmp_path.iterdir()) == []


def test_an_unknown_file_put_there_by_hand_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(TRACE)

    with pytest.raises(TraceError, match="not the known version"):
        download_burstgpt(tmp_path, urls=[])

    assert (tmp_path / FILE_NAME).read_bytes() == TRACE


@pytest.mark.parametrize("length", ["many", "-5", "1e3", "9" * 400])
def test_a_broken_content_length_is_one_sentence(server: Server, tmp_path: Path, length: str) -> None:
    server.length = length

    with pytest.raises(TraceError, match="answered with a Content-Length of") as caught:
        download_burstgpt(tmp_path, urls=[server.url()])

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_no_more_is_downloaded_than_is_read(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MOST_BYTES", 1_000)

    with pytest.raises(TraceError, match=r"bytes; at most 1,000 are downloaded"):
        download_burstgpt(tmp_path, urls=[server.url()], accept_unknown=True)

    assert list(tmp_path.iterdir()) == []
