"""The door of a cluster: who is refused there, as admission policies answer, never waits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import simpy

from batchsim.policies.base import Admission, ReplicaView
from batchsim.records import SHED
from batchsim.sim.cluster.outlook import Outlook
from batchsim.sim.recording.recorder import Recorder
from batchsim.sim.request import Request


class Gate:
    """Let requests in, or refuse them.

    Parameters
    ----------
    admissions
        Of each replica that requests come to, or one for all.
    """

    def __init__(
        self,
        env: simpy.Environment,
        recorder: Recorder,
        admissions: Sequence[Admission],
        replicas: Sequence[Outlook],
    ) -> None:
        self._env = env
        self._recorder = recorder
        self._admissions = admissions
        for number, replica in enumerate(replicas):
            replica.tell_first_tokens(partial(self._observe, min(number, len(admissions) - 1)))

    def lets_in(self, request: Request, number: int, view: ReplicaView) -> bool:
        """Ask about a request for the replica of this number; refuse it if the answer says so."""
        reason = self._admissions[number].refusal(request, view, self._env.now)
        if reason is not None:
            self._recorder.refuse(request, f"{SHED}: {reason}")
        return reason is None

    def _observe(self, number: int, request: Request) -> None:
        self._admissions[number].observe(request, request.first_token_s)
