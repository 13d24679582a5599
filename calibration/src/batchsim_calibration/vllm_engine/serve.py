"""Schedulers to name to a server: ``--scheduler-cls batchsim_calibration.vllm_engine.serve.Scheduler``.

They write their passes to the file that the environment variable ``BATCHSIM_SCHEDULER_LOG`` names, for
``batchsim fit --vllm-log``. A server that schedules asynchronously, vLLM's default where it can, needs the
second.
"""

from __future__ import annotations

from vllm.v1.core.sched.async_scheduler import AsyncScheduler as _AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler as _Scheduler

from batchsim_calibration.vllm_engine.passes import LogsPasses


class Scheduler(LogsPasses, _Scheduler):  # type: ignore[misc]
    """Logs what it does."""


class AsyncScheduler(LogsPasses, _AsyncScheduler):  # type: ignore[misc]
    """Logs what it does."""
