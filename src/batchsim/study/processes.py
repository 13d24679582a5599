"""Runs in processes, each at one run at a time: one that dies takes that run alone with it."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

from batchsim.errors import BatchsimError
from batchsim.study.worker import Failure, Task, attempt

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")

#: Numerical libraries start threads of their own; the processes are all the cores are asked for.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

#: What a process does: look after its parent, from before anything else is imported, and serve. Where orphans
#: get no other parent, the end of stdin tells.
_CODE = """
import os, sys, threading, time
def watch():
    while os.getppid() == {parent}:
        time.sleep(0.2)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
sys.path[:] = {path!r}
from batchsim.study.worker import serve
serve()
"""


def run_all(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, Failure | None]]:
    """Do all tasks, in so many processes, and hand each back with how it failed, if it did.

    A process that dies fails its run and is replaced. One at a time they are done in this one, if the code of
    all is our own: a policy from outside may end its process, or fill its memory.

    Raises
    ------
    BatchsimError
        If no process can be started.
    """
    if min(jobs, len(tasks)) < 2 and all(_is_ours(task) for task in tasks):
        yield from ((task, attempt(task)) for task in tasks)
        return
    with Processes(min(jobs, len(tasks))) as processes:
        yield from ((tasks[k], failure) for k, failure in processes.each(attempt, tasks))


class Processes:
    """So many processes, started as they are needed; none outlives the block, or this process."""

    def __init__(self, num: int) -> None:
        self._threads = ThreadPoolExecutor(num, initializer=_leave_ctrl_c)  # with a process each
        self._own = threading.local()
        self._lock = threading.Lock()
        self._processes: list[_Process] = []
        self._is_closed = False

    def __enter__(self) -> Processes:
        """Start nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes, whatever they are at, and wait until they have ended."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._is_closed = True
            for process in self._processes:
                process.kill()
        self._threads.shutdown()
        for process in self._processes:
            process.wait()

    def each(
        self, act: Callable[[_Item], _Answer], items: Sequence[_Item]
    ) -> Iterator[tuple[int, _Answer | Failure]]:
        """Apply a function of a module to all items, and hand back which ends and what it gave.

        A `Failure` is that of what it raised, or of a process that died, which is replaced.

        Raises
        ------
        BatchsimError
            If no process can be started.
        """
        futures = {self._threads.submit(self._do, act, item): k for k, item in enumerate(items)}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def _do(self, act: Callable[[_Item], _Answer], item: _Item) -> _Answer | Failure:
        process = getattr(self._own, "process", None) or self._start()
        try:
            answer: _Answer | Failure = process.do(act, item)
            return answer
        except (EOFError, OSError):
            self._own.process = None
            return Failure(f"its process {_end(process.wait())}")

    def _start(self) -> _Process:
        with self._lock:
            if self._is_closed:
                raise BatchsimError("interrupted")
            process = _Process()
            self._processes.append(process)
        try:
            process.answer()  # it is ready
        except EOFError as error:
            raise BatchsimError(f"a worker process cannot start: it {_end(process.wait())}") from error
        self._own.process = process
        return process


def _leave_ctrl_c() -> None:
    """Block SIGINT in this thread, and so in the processes it starts, from before they run any code.

    A terminal sends it to all; the parent alone is to tell of it, and ends them.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _is_ours(task: Task) -> bool:
    config = task.run.config
    return ":" not in config.policy.preset and ":" not in (config.workload.load_of or "")


class _Process:
    """A process that finds the same modules as this one; it reads nothing of the main script."""

    def __init__(self) -> None:
        path = [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109 -- as Python itself reads it
        code = _CODE.format(parent=os.getpid(), path=path)
        pipe, environment = subprocess.PIPE, os.environ | _ONE_THREAD
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=pipe, stdout=pipe, env=environment
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tasks, self._answers = self._process.stdin, self._process.stdout

    def answer(self) -> Any:
        """Wait for what it says next; EOFError if it says nothing any more."""
        return pickle.load(self._answers)

    def do(self, act: Callable[[Any], Any], item: object) -> Any:
        """Have a function applied; EOFError or OSError if the process ends instead."""
        pickle.dump((act, item), self._tasks)
        self._tasks.flush()
        return self.answer()

    def kill(self) -> None:
        """End it, whatever it is at."""
        self._process.kill()

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        code = self._process.wait()
        with suppress(OSError):  # of what it did not take
            self._tasks.close()
        self._answers.close()
        return code


def _end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = next((one.name for one in signal.Signals if one == -code), f"signal {-code}")
    return f"was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
