"""Runs of a sweep on a Dask cluster: one of this machine, or one that runs elsewhere.

A worker that dies has its run done by another; a scheduler that is started again gets what is left once more.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from batchsim.errors import BatchsimError, ConfigError
from batchsim.files import sibling
from batchsim.results.store import adopt_run
from batchsim.study.identity import PACKAGE, identify, refresh_policy
from batchsim.study.plan import PlannedRun
from batchsim.study.worker import Failure, Task, attempt_in_worker

#: Workers of a cluster of this machine where nobody says how many.
LOCAL_WORKERS = 2
#: Batches that a worker has at once: the next one comes while the last answer is on its way.
_PER_WORKER = 2
#: After how many runs, or which time, a worker answers: an answer costs a few milliseconds.
_MOST_IN_BATCH, _BATCH_S = 32, 0.2
#: How long a scheduler that is gone is waited for, and how long one attempt to reach it may take.
PATIENCE_S, _CONNECT_S = 60.0, 10.0
#: How often it is asked what workers there are, and how often in a row none may be there before it is told:
#: those that died are started again.
_LOOK_S, _LOOKS = 1.0, 10

#: A worker with several threads still does one run at a time: they would only take each other's time.
_one_at_a_time = threading.Lock()

_Files = Mapping[str, bytes]


class _Sent(NamedTuple):
    """What goes with every run: a file by which a worker knows the sweep's folder, and where modules are."""

    marker: Path
    path: Sequence[str]


class _LostScheduler(Exception):  # noqa: N818 -- the name states what happened
    """The scheduler does not answer any more."""


def run_on_dask(
    tasks: Sequence[Task],
    scheduler: str | None,
    num_workers: int,
    on_notice: Callable[[str], None],
) -> Iterator[tuple[Task, Failure | None]]:
    """Do all tasks on a cluster, and hand each back with how it failed, if it did.

    Where workers see the sweep's folder they save the runs, elsewhere they send them back.

    Parameters
    ----------
    scheduler
        Its address, or the file it has written; None: a cluster of this machine.
    num_workers
        Of a cluster of this machine.

    Raises
    ------
    BatchsimError
        If Dask is not installed, or no scheduler answers.
    """
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise BatchsimError("the backend dask needs Dask: pip install 'batchsim[cluster]'") from error
    if not tasks:
        return
    left = {task.run.run_id: task._replace(directory=task.directory.absolute()) for task in tasks}
    with _marker(tasks[0].directory.parent.absolute()) as marker, _cluster(scheduler, num_workers) as found:
        sent = _Sent(marker, _own_path())
        while left:
            with _client(found) as client:
                try:
                    for task, failure in _drive(client, list(left.values()), sent, on_notice):
                        del left[task.run.run_id]
                        yield task, failure
                except _LostScheduler:
                    on_notice(f"the Dask scheduler {found} is gone; what was under way is done again")


def do_here(tasks: Sequence[Task], sent: _Sent) -> list[Failure | _Files | None]:
    """Do runs in a worker of a cluster, the first and those for which there is time.

    An answer for each holds its files where it could not be saved in its place.
    """
    with _one_at_a_time:
        sys.path += [entry for entry in sent.path if entry not in sys.path]
        end_s = time.monotonic() + _BATCH_S
        answers = []
        for task in tasks:
            answers.append(_do(task, sent))
            if time.monotonic() > end_s:
                break
        return answers


def _do(task: Task, sent: _Sent) -> Failure | _Files | None:
    try:
        _check_same(task.run)
    except ConfigError as error:
        return Failure(str(error))
    if _can_save_beside(sent.marker):
        return attempt_in_worker(task)
    with TemporaryDirectory() as folder:
        place = Path(folder) / task.directory.name
        failure = attempt_in_worker(task._replace(directory=place))
        return failure or {file.name: file.read_bytes() for file in place.iterdir()}


def _can_save_beside(marker: Path) -> bool:
    with suppress(OSError):  # of a folder that the worker's user may not look into
        return marker.exists() and os.access(marker.parent, os.W_OK)
    return False


def _own_path() -> list[str]:
    """Where this process finds modules, but for what is installed: a worker has that of its own."""
    path = [Path(entry).absolute() for entry in sys.path]
    installed = (sys.prefix, sys.base_prefix)
    return [str(entry) for entry in path if not any(map(entry.is_relative_to, installed))]


def _check_same(run: PlannedRun) -> None:
    """Raise `ConfigError` if this machine would simulate something else than what was planned."""
    for name in (run.config.policy.preset, run.config.autoscaler.kind or ""):
        refresh_policy(name)
    found = identify(run.config)
    if found.run_id == run.run_id:
        return
    differing = [name for name, digest in run.inputs.items() if found.inputs.get(name) != digest]
    what = "batchsim" if differing in ([], [PACKAGE]) else next(name for name in differing if name != PACKAGE)
    raise ConfigError(
        f"worker on {platform.node()}: has another {what} than the sweep was planned with; give the workers "
        "the same files and version, and start them again"
    )


@contextmanager
def _marker(folder: Path) -> Iterator[Path]:
    """A file in a folder that nobody has who does not see this very folder."""
    marker = sibling(folder / "shared")
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)


@contextmanager
def _cluster(scheduler: str | None, num_workers: int) -> Iterator[str]:
    """Where the scheduler is; where none is given, of a cluster of this machine that ends with the block."""
    if scheduler is not None:
        yield scheduler
        return
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=num_workers,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
        scheduler_kwargs={
            "allowed_failures": 0,  # what was under way is tried once more, alone
            "dashboard_address": ":0",  # there is none, but a server that would say that its port is taken
        },
    ) as cluster:
        yield cluster.scheduler_address


def _client(scheduler: str) -> AbstractContextManager[Any]:
    """Reach a scheduler, which may be about to come back; `BatchsimError` if none comes."""
    from distributed import Client

    is_file = scheduler.endswith(".json")
    place: dict[str, Any] = {"scheduler_file": scheduler} if is_file else {"address": scheduler}
    end_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            client: AbstractContextManager[Any] = Client(**place, timeout=_CONNECT_S, set_as_default=False)
            return client
        except ValueError as error:
            raise ConfigError(
                f"scheduler {scheduler!r}: no address of one, such as tcp://host:8786"
            ) from error
        except (OSError, TimeoutError) as error:
            if time.monotonic() > end_s:
                raise BatchsimError(
                    f"no Dask scheduler answers at {scheduler}; what is finished is saved, the same command "
                    "does the rest"
                ) from error
            time.sleep(_LOOK_S)


def _drive(
    client: Any, tasks: Sequence[Task], sent: _Sent, on_notice: Callable[[str], None]
) -> Iterator[tuple[Task, Failure | None]]:
    """Keep the workers busy until all is done; `_LostScheduler` if the scheduler goes."""
    suspects: list[Task] = []
    for task, answer in _answers(client, tasks, sent, on_notice, one_at_a_time=False):
        if isinstance(answer, _NoAnswer):
            suspects.append(task)  # or a task beside it was what its workers died of
        else:
            yield task, _settled(task, answer)
    for task, answer in _answers(client, suspects, sent, on_notice, one_at_a_time=True):
        yield task, Failure(answer.sentence) if isinstance(answer, _NoAnswer) else _settled(task, answer)


class _NoAnswer(NamedTuple):
    """Every worker that tried a batch died, or could not even read it."""

    sentence: str


def _answers(
    client: Any,
    tasks: Sequence[Task],
    sent: _Sent,
    on_notice: Callable[[str], None],
    *,
    one_at_a_time: bool,
) -> Iterator[tuple[Task, Any]]:
    """Submit tasks as workers have room and hand back what each gave."""
    batches = _Batches(tasks, 1 if one_at_a_time else _MOST_IN_BATCH)
    running: dict[str, tuple[Any, list[Task]]] = {}
    ended: SimpleQueue[Any] = SimpleQueue()
    room, looked_s, num_in_vain = 0, -_LOOK_S, 0
    while batches or running:
        if time.monotonic() - looked_s >= _LOOK_S:
            room, looked_s = _room(client), time.monotonic()
            num_in_vain = 0 if room else num_in_vain + 1
            if num_in_vain == _LOOKS:
                on_notice("no worker of the Dask cluster is there; the sweep waits for one")
        while batches and len(running) < (1 if one_at_a_time else room):
            batch = batches.take(room)
            key = f"batchsim-{batch[0].run.run_id}-{time.time_ns()}"
            future = client.submit(do_here, batch, sent, key=key)
            running[key] = (future, batch)
            future.add_done_callback(ended.put)
        try:
            future = ended.get(timeout=_LOOK_S)
        except Empty:
            continue
        _, batch = running.pop(future.key)
        yield from batches.settle(batch, _answer(future))


class _Batches:
    """Tasks that wait, in batches: of one, then of twice as many for as long as workers do all in time."""

    def __init__(self, tasks: Sequence[Task], most: int) -> None:
        self._waiting, self._alone = deque(tasks), deque[Task]()
        self._size, self._most = 1, most

    def __len__(self) -> int:
        """Count the tasks."""
        return len(self._waiting) + len(self._alone)

    def take(self, room: int) -> list[Task]:
        """Give out the next; at the end they are small, so that the last worker is not long alone."""
        if self._alone:
            return [self._alone.popleft()]
        size = min(self._size, max(1, len(self._waiting) // (2 * max(1, room))))
        return [self._waiting.popleft() for _ in range(size)]

    def settle(self, batch: list[Task], answers: list[Any] | _NoAnswer) -> Iterator[tuple[Task, Any]]:
        """Take back what there was no time for; of a batch that nobody answered each is to go alone."""
        if isinstance(answers, _NoAnswer):
            if len(batch) == 1:
                yield batch[0], answers
            else:
                self._alone.extend(batch)
            return
        self._waiting.extendleft(reversed(batch[len(answers) :]))
        is_whole = len(answers) == len(batch)
        self._size = min(2 * len(answers), self._most) if is_whole else len(answers)
        yield from zip(batch, answers, strict=False)


def _room(client: Any) -> int:
    try:
        workers: Mapping[str, int] = client.nthreads()
        return _PER_WORKER * len(workers)
    except (OSError, RuntimeError, TimeoutError, ValueError) as error:  # of a client that has closed itself
        raise _LostScheduler from error


def _answer(future: Any) -> list[Any] | _NoAnswer:
    """What a worker gave; `_LostScheduler` if nobody knows."""
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker

    try:
        answers: list[Any] = future.result()
        return answers
    except (CancelledError, CommClosedError) as error:
        raise _LostScheduler from error
    except KilledWorker as error:
        worker = error.last_worker.address
        return _NoAnswer(f"its worker died, and so did every other that tried it (last {worker})")
    except Exception as error:  # of what could not be read, or sent
        return _NoAnswer(f"{type(error).__name__}: {error}")


def _settled(task: Task, answer: Failure | _Files | None) -> Failure | None:
    """Save what was sent back."""
    if answer is None or isinstance(answer, Failure):
        return answer
    try:
        adopt_run(task.directory, answer)
    except ConfigError as error:
        return Failure(str(error))
    return None
