"""Fetch the public BurstGPT trace from its authors: resumed where cut off, checked, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from batchsim.errors import TraceError
from batchsim.workload.columns import shown
from batchsim.workload.describe import trace_info
from batchsim.workload.formats import KNOWN_FILES, read_trace
from batchsim.workload.tables import Limits

FILE_NAME = "BurstGPT_1.csv"
URLS = (
    "https://raw.githubusercontent.com/HPMLL/BurstGPT/main/data/BurstGPT_1.csv",
    "https://github.com/HPMLL/BurstGPT/releases/download/v1.1/BurstGPT_1.csv",
)
KNOWN_NUM_BYTES = 52_283_111
KNOWN_SHA256 = next(sha256 for sha256, name in KNOWN_FILES.items() if name == FILE_NAME)
KNOWN_GIT_BLOB = "f95dd2c84454b067fdd0973858c55ecfe31bdad7"

MOST_BYTES = Limits().max_bytes  # what came is read, too

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30.0
_ATTEMPTS_PER_URL = 3

Opener = Callable[..., Any]  # the signature of urllib.request.urlopen


def download_burstgpt(
    target_dir: str | Path,
    opener: Opener = urllib.request.urlopen,
    urls: Sequence[str] = URLS,
    notify: Callable[[str], None] = lambda text: None,
    *,
    accept_unknown: bool = False,
) -> Path:
    """Download ``BurstGPT_1.csv`` into a folder and return its path; a file that is there is only checked.

    Parameters
    ----------
    target_dir
        Made if absent. What has come so far stays in a ``.part`` file there and is resumed by the next call.
    opener
        Opens a `urllib.request.Request`, as ``urllib.request.urlopen`` does.
    urls
        Tried in order.
    notify
        Told, in sentences, what happens and whether the file is the known version.
    accept_unknown
        Take another version of the file, too, if it is a BurstGPT trace.

    Raises
    ------
    TraceError
        If no URL gives the whole file (with what to do by hand), or what came is not the known version.
    """
    target = Path(target_dir) / FILE_NAME
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _fetch_any(urls, target, opener, notify)
        try:
            _check(part, notify, accept_unknown=accept_unknown)
        except TraceError:
            part.unlink()  # whatever came, it is nothing to resume
            raise
        part.replace(target)
    else:
        notify(f"{target} is there already")
        _check(target, notify, accept_unknown=accept_unknown)
    return target


def _fetch_any(urls: Sequence[str], target: Path, opener: Opener, notify: Callable[[str], None]) -> Path:
    failure = "no address was given"
    for number, url in enumerate(urls, 1):
        # one each: two copies that differ in their line ends must not be spliced
        part = target.with_name(f"{target.name}.{number}.part")
        for _ in range(_ATTEMPTS_PER_URL):
            try:
                _fetch(url, part, opener, notify)
                return part
            except urllib.error.HTTPError as error:
                failure = f"{url} answered {error.code} {error.reason}"
                if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    part.unlink(missing_ok=True)  # longer than the file on the server: start again
                    continue
                break  # asking again does not help
            except (OSError, http.client.HTTPException) as error:
                failure = f"{url}: {error or type(error).__name__}"
            notify(failure)
    raise TraceError(
        f"{FILE_NAME} could not be downloaded ({failure}). Run this again to resume; or, on a machine "
        f"without internet, fetch {URLS[0]} elsewhere, put it at {target} and run this again to check it; or "
        "name any BurstGPT file as workload.trace. The embedded synthetic trace needs no download."
    )


def _fetch(url: str, part: Path, opener: Opener, notify: Callable[[str], None]) -> None:
    """Append the rest of the file to ``part``; a connection that breaks raises and leaves what came."""
    num_present = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={num_present}-"} if num_present else {}
    with opener(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as answer:
        is_resumed = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        if not is_resumed:
            num_present = 0  # the server sends all of it
        length = answer.headers.get("Content-Length")
        if length is not None and not re.fullmatch(r"\d{1,15}", length.strip()):
            raise ConnectionError(f"it answered with a Content-Length of {shown(length)}")
        num_bytes = None if length is None else num_present + int(length)
        if num_bytes is not None and num_bytes > MOST_BYTES:
            raise TraceError(f"{url} has {num_bytes:,} bytes; at most {MOST_BYTES:,} are downloaded")
        notify(f"downloading {url}" + (f" from byte {num_present:,} on" if is_resumed else ""))
        with part.open("ab" if is_resumed else "wb") as file:
            while chunk := answer.read(_CHUNK_BYTES):
                file.write(chunk)
                num_present += len(chunk)
                if num_present > MOST_BYTES:
                    part.unlink()
                    raise TraceError(f"{url} has more than the {MOST_BYTES:,} bytes that are downloaded")
    if num_bytes is not None and num_present < num_bytes:
        raise ConnectionError(f"the connection ended after {num_present:,} of {num_bytes:,} bytes")


def _check(path: Path, notify: Callable[[str], None], *, accept_unknown: bool) -> None:
    num_bytes = path.stat().st_size
    sha256, git_blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % num_bytes, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
            git_blob.update(chunk)
    if sha256.hexdigest() == KNOWN_SHA256 or git_blob.hexdigest() == KNOWN_GIT_BLOB:
        notify(f"{path.name}: {num_bytes:,} bytes, the known version")
        return
    if not accept_unknown:
        raise TraceError(
            f"{path}: {num_bytes:,} bytes with sha256 {sha256.hexdigest()} are not the known version "
            f"({KNOWN_NUM_BYTES:,} bytes, {KNOWN_SHA256}); `batchsim trace download --accept-unknown` takes "
            "another"
        )
    info = trace_info(read_trace(path, format="burstgpt"))
    notify(
        f"{path.name}: {num_bytes:,} bytes, not the known version ({KNOWN_NUM_BYTES:,} bytes) but a BurstGPT "
        f"trace: {info['rows']:,} requests in {info['span_s'] / 86_400:.1f} days, "
        f"{sum(info['dropped'].values()):,} failed, mean request {info['prompt_tokens']['mean']:.0f} and "
        f"response {info['output_tokens']['mean']:.0f} tokens; sha256 {sha256.hexdigest()}"
    )
