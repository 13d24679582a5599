"""One run of a sweep, with what goes wrong told instead of raised; a process that does what it is sent."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, NamedTuple

from batchsim.errors import BatchsimError, printable
from batchsim.results.store import save_run
from batchsim.study.identity import check_unchanged
from batchsim.study.plan import PlannedRun
from batchsim.study.run import simulate


class Task(NamedTuple):
    """A run, where it is saved, and whether with its tables."""

    run: PlannedRun
    directory: Path
    save_tables: bool


class Failure(NamedTuple):
    """Why a run did not end well: a sentence, and where in the code it happened."""

    sentence: str
    traceback: str = ""


def attempt(task: Task) -> Failure | None:
    """Simulate and save. A fault of one run, ours or a policy's, must not take the others with it."""
    try:
        check_unchanged(task.run.inputs)
        start_s = time.perf_counter()
        result = simulate(task.run.config)
        manifest = {**result.manifest, "duration_s": round(time.perf_counter() - start_s, 4)}
        check_unchanged(task.run.inputs)
        tables = result.tables if task.save_tables else {}
        save_run(
            task.directory,
            manifest,
            result.summary,
            tables,
            sketches=result.sketches,
            overwrite=True,
        )
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a policy may call sys.exit
        return _failure(error)
    return None


def attempt_in_worker(task: Task) -> Failure | None:
    """Do as `attempt` where nobody presses Ctrl-C: an interrupt is one more fault of a policy."""
    try:
        return attempt(task)
    except KeyboardInterrupt as error:
        return _failure(error)


def serve() -> None:
    """Apply functions to arguments that come in pickled on stdin, and answer pickled on stdout.

    What one raises is answered as a `Failure`. The process ends as soon as stdin does: that is when the
    parent closed it, or is no more, and then nothing is to go on writing, not even the run under way. What
    runs print goes to stderr.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it as well, and ends this process
    tasks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    inbox: SimpleQueue[tuple[Callable[[Any], Any], Any]] = SimpleQueue()
    threading.Thread(target=_receive, args=(tasks, inbox), daemon=True).start()
    _send(answers, None)  # ready
    while True:
        act, item = inbox.get()
        try:
            answer = act(item)
        except BaseException as error:  # an interrupt is one more fault of a policy
            answer = _failure(error)
        _send(answers, answer)


def _receive(tasks: BinaryIO, inbox: SimpleQueue[Any]) -> None:
    try:
        while True:
            inbox.put(pickle.load(tasks))
    except EOFError:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _send(answers: BinaryIO, answer: object) -> None:
    pickle.dump(answer, answers)
    answers.flush()


def _failure(error: BaseException) -> Failure:
    said = printable(str(error))
    if not isinstance(error, BatchsimError):
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return Failure(said, "".join(traceback.format_exception(error)))
