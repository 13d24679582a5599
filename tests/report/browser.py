"""A headless Chromium, spoken to over two pipes in its own protocol: no package is needed for it."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

#: Where to find it, if anywhere.
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_PATIENCE_S = 60.0


class Browser:
    """One page in a browser of its own; what it complained of, and asked the network for, is kept.

    Attributes
    ----------
    complaints
        Errors and warnings of the console, and exceptions that nobody caught.
    requests
        Addresses that the page asked for, but for its own.
    """

    def __init__(self, profile: Path, width: int = 1400, height: int = 900) -> None:
        assert CHROMIUM is not None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._next_id = 0
        self._pending = b""
        self._answers: dict[int, dict[str, Any]] = {}
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run"
        )
        # It reads from 3 and writes to 4; the shell puts our pipes there.
        script = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$0" "$@"'
        command = [CHROMIUM, *flags.split(), "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            ["bash", "-c", script, *command, "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile)},
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session: str | None = None
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def forget(self) -> None:
        """Begin anew: no complaints, no requests, and nothing that a page has stored."""
        self.send("Page.navigate", url="about:blank")
        self.send("Storage.clearDataForOrigin", origin="*", storageTypes="all")
        self.complaints.clear()
        self.requests.clear()

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer."""
        self._next_id += 1
        asked = self._next_id
        message = {"id": asked, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + _PATIENCE_S
        while asked not in self._answers:
            self._listen(end)
        answer = self._answers.pop(asked)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, page: Path) -> None:
        """Load a page and wait until it has drawn itself."""
        self.send("Page.navigate", url=page.resolve().as_uri())
        self.until("document.readyState === 'complete' && Boolean(document.documentElement.dataset.drawn)")

    def run(self, script: str) -> Any:
        """Evaluate JavaScript in the page and return its value."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until JavaScript says true."""
        end = time.monotonic() + _PATIENCE_S
        while not self.run(script):
            assert time.monotonic() < end, f"never: {script}; {self.complaints}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Click the element that a selector finds."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select."""
        self.run(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); "
            f"one.value = {json.dumps(value)}; one.dispatchEvent(new Event('change')); }})()"
        )

    def resize(self, width: int, height: int = 900) -> None:
        """Be a screen of this size; a phone, if it is narrow."""
        is_phone = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=is_phone,
        )

    def prefer(self, scheme: str) -> None:
        """Be of somebody who prefers ``light`` or ``dark``."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def download_to(self, folder: Path) -> None:
        """Put what is downloaded there, without asking."""
        session, self._session = self._session, None
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self._session = session

    def screenshot(self, file: Path, *, whole: bool = True) -> None:
        """Save what is seen as a PNG, or the whole page."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(answer["data"]))

    def _listen(self, end: float) -> None:
        there, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
        assert there, "the browser does not answer"
        received = os.read(self._read, 2**20)
        assert received, "the browser has ended"
        *messages, self._pending = (self._pending + received).split(b"\0")
        for message in messages:
            self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        params = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif message["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(" ".join(str(one.get("value", "")) for one in params["args"]))
        elif message["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif message["method"] == "Network.requestWillBeSent":
            address = params["request"]["url"]
            if params.get("type") != "Document":
                self.requests.append(address)
