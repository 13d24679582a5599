"""Runs of a sweep in processes, each at one run at a time: one that dies takes that run alone with it."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress

from batchsim.errors import BatchsimError
from batchsim.study.worker import Failure, Task, attempt

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
    pool, threads = _Pool(), ThreadPoolExecutor(min(jobs, len(tasks)), initializer=_leave_ctrl_c)
    try:
        futures = {threads.submit(pool.do, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        pool.kill()
        threads.shutdown()
        pool.wait()


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

    def answer(self) -> Failure | None:
        """Wait for what it says next; EOFError if it says nothing any more."""
        failure: Failure | None = pickle.load(self._answers)
        return failure

    def do(self, task: Task) -> Failure | None:
        """Do a task; EOFError or OSError if it ends instead."""
        pickle.dump(task, self._tasks)
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


class _Pool:
    """A process for each thread that asks."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._lock = threading.Lock()
        self._processes: list[_Process] = []
        self._is_closed = False

    def do(self, task: Task) -> Failure | None:
        process = getattr(self._own, "process", None) or self._start()
        try:
            return process.do(task)
        except (EOFError, OSError):
            self._own.process = None
            return Failure(f"its process {_end(process.wait())}")

    def kill(self) -> None:
        """End all processes, whatever they are at, and start no more."""
        with self._lock:
            self._is_closed = True
            for process in self._processes:
                process.kill()

    def wait(self) -> None:
        """Wait until all have ended."""
        for process in self._processes:
            process.wait()

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


def _end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = next((one.name for one in signal.Signals if one == -code), f"signal {-code}")
    return f"was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
