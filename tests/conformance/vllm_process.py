"""A process of its own that runs a driver, `vllm_driver` or V0's, in an environment that has vLLM."""

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.conformance.workloads import Case

ROOT = Path(__file__).resolve().parents[2]


class VllmProcess:
    """Serves cases one by one; importing vLLM takes half a minute, so one process serves many.

    Attributes
    ----------
    version
        Of vLLM, as it says itself.
    """

    def __init__(self, python: Path, driver: str) -> None:
        self._process = subprocess.Popen(
            [python.absolute(), "-m", f"tests.conformance.{driver}"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version: str = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.terminate()
        self._process.wait()

    def start(self, case: Case) -> None:
        """Begin to serve a case; `finish` waits for the log."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()

    def finish(self) -> dict[str, Any]:
        """Return the log of the case that was started."""
        return self._answer()

    def run(self, case: Case) -> dict[str, Any]:
        """Serve a case."""
        self.start(case)
        return self.finish()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"vLLM's process ended with status {self._process.wait()}; see above why")
        return json.loads(line)
