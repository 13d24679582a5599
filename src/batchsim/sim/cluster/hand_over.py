"""Prefill and decode on replicas of their own: the KV of a prompt is handed over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import simpy

from batchsim.sim.cluster.link import Link, Transfer, send
from batchsim.sim.cluster.router import Spread
from batchsim.sim.mailbox import delay_until
from batchsim.sim.recording.iteration_recorder import IterationRecorder
from batchsim.sim.replica import Replica
from batchsim.sim.request import Request

Role = Literal["both", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class KVNetwork:
    """What carries KV between replicas.

    Attributes
    ----------
    nic_bytes_per_s
        Of all network adapters of a replica together, each way.
    latency_s
        Of a transfer, once.
    max_transfers
        So many pass an adapter at once, the others wait in order of arrival; None: all.
    fabric_bytes_per_s
        Of what all replicas share; None: that is never the bottleneck.
    by_layer
        Whether the KV of a layer is sent as soon as that is computed, not when the whole prompt is.
    """

    nic_bytes_per_s: float
    latency_s: float = 0.0
    max_transfers: int | None = None
    fabric_bytes_per_s: float | None = None
    by_layer: bool = False


@dataclass(frozen=True, slots=True)
class Disaggregation:
    """Who computes prompts, who decodes, and what lies between.

    Attributes
    ----------
    roles
        Of each replica.
    kv_bytes_per_token, num_layers
        Of the model, which all of them run.
    """

    roles: Sequence[Role]
    network: KVNetwork
    kv_bytes_per_token: float
    num_layers: int


class Handed(Request):
    """The second half of a request, which decodes; the first ends with it.

    Attributes
    ----------
    first
        The half that computes the prompt.
    source, target
        The replicas of the two.
    asked_s, ready_s
        When it asked for room, and when the prompt was complete; NaN before.
    transfer
        Once it is under way.
    """

    __slots__ = ("asked_s", "first", "ready_s", "source", "target", "transfer")

    transfer: Transfer

    def __init__(self, first: Request, source: int, target: int) -> None:
        super().__init__(
            first.env, first.request_id, first.arrival_s, first.prompt_tokens, first.predicted_output_tokens
        )
        self.first = first
        self.source, self.target = source, target
        self.asked_s = self.known_s = first.env.now
        self.ready_s = math.nan
        self.priority, self.session_id = first.priority, first.session_id
        if first.tenant or first.slo_class:
            self.tenant, self.slo_class = first.tenant, first.slo_class
        self.is_waiting = False
        self.computed_tokens = first.prompt_tokens
        self.generated_tokens = 1

    @property
    def is_ready(self) -> bool:
        """Whether its prompt is complete."""
        return not math.isnan(self.ready_s)

    def end(self, status: str) -> None:
        """Both halves end."""
        super().end(status)
        self.first.end(status)


class HandOver:
    """Take requests whose prompts are complete to replicas that decode them.

    The `Outlet` of the replicas that compute prompts, and the `KVSource` of what it hands over. A request
    asks a replica for room when its prompt is complete, or, layer by layer, when that is begun. It is given
    that at once, or waits in that replica's queue; then links carry its KV, and until all of it is there, the
    blocks on the first replica stay taken.

    Parameters
    ----------
    replicas
        All, by their numbers.
    spread
        Over those that decode.
    true_output_tokens
        By request id.
    """

    def __init__(
        self,
        env: simpy.Environment,
        replicas: Sequence[Replica],
        spread: Spread,
        plan: Disaggregation,
        true_output_tokens: Sequence[int],
        recorder: IterationRecorder,
    ) -> None:
        self._env = env
        self._replicas = replicas
        self._targets = [number for number, role in enumerate(plan.roles) if role == "decode"]
        self._spread = spread
        network = plan.network
        self._by_layer = network.by_layer
        self._latency_s = network.latency_s
        self._kv_bytes_per_token = plan.kv_bytes_per_token
        self._true_output_tokens = true_output_tokens
        self._recorder = recorder
        self._begun: dict[int, Handed] = {}  # whose prompts are not complete
        self._last_layer_bytes_per_s = plan.num_layers * network.nic_bytes_per_s
        self._out, self._in = (
            [Link(env, network.nic_bytes_per_s, network.max_transfers) for _ in plan.roles] for _ in range(2)
        )
        self._fabric = () if network.fabric_bytes_per_s is None else (Link(env, network.fabric_bytes_per_s),)

    def begin(self, request: Request, replica_id: int) -> None:
        """The first chunk of a prompt is about to be computed."""
        if self._by_layer and self._true_output_tokens[request.request_id] > 1:
            self._begun[request.request_id] = self._ask_for_room(request, replica_id)

    def finish(self, request: Request, replica_id: int, now_s: float) -> None:
        """A prompt is complete."""
        if self._true_output_tokens[request.request_id] == 1:
            request.decode_start_s = now_s
            self._recorder.finish(request, replica_id, now_s)
            self._replicas[replica_id].release(request)
            return
        self._recorder.preempt(request, replica_id, now_s, now_s, 0, "hand_over")
        request.uncount()
        if self._by_layer:
            handed = self._begun.pop(request.request_id)
        else:
            handed = self._ask_for_room(request, replica_id)
        handed.ready_s = now_s
        handed.scheduled_s, handed.first_token_s = request.scheduled_s, now_s
        handed.cached_tokens = request.cached_tokens
        if handed.kv_source is None:  # all but the last layer is there
            self._deliver_at(handed, self._end_of_last_layer_s(handed))

    def fetch(self, handed: Handed) -> None:
        """There is room for it: send its KV."""
        path = (self._out[handed.source], *self._fabric, self._in[handed.target])
        handed.transfer = send(self._env, path, self._num_bytes(handed), self._latency_s)
        handed.transfer.callbacks.append(partial(self._arrive, handed))

    def _ask_for_room(self, request: Request, replica_id: int) -> Handed:
        target = self._targets[self._spread.choose(request)]
        handed = Handed(request, replica_id, target)
        handed.kv_source = self
        replica = self._replicas[target]
        if replica.make_room(handed):
            self._spread.count(handed, replica)
            self.fetch(handed)
        else:
            self._spread.hand_over(handed, replica)
        return handed

    def _arrive(self, handed: Handed, _: simpy.Event) -> None:
        """A transfer has ended; the last of its layers comes when the prompt is complete."""
        handed.kv_source = None
        if not self._by_layer:
            self._deliver(handed)
        elif handed.is_ready:
            self._deliver_at(handed, self._end_of_last_layer_s(handed))

    def _end_of_last_layer_s(self, handed: Handed) -> float:
        return handed.ready_s + self._num_bytes(handed) / self._last_layer_bytes_per_s + self._latency_s

    def _num_bytes(self, handed: Handed) -> float:
        return handed.prompt_tokens * self._kv_bytes_per_token

    def _deliver_at(self, handed: Handed, at_s: float) -> None:
        if at_s <= self._env.now:
            self._deliver(handed)
        else:
            later = simpy.Timeout(self._env, delay_until(self._env.now, at_s))
            later.callbacks.append(lambda _: self._deliver(handed))

    def _deliver(self, handed: Handed) -> None:
        """All of its KV is there."""
        now_s = handed.known_s = self._env.now
        self._replicas[handed.source].release(handed.first)
        rows = self._recorder.transfers
        rows.add(
            rows.pack(
                handed.request_id,
                handed.source,
                handed.target,
                self._num_bytes(handed),
                handed.asked_s,
                handed.ready_s,
                handed.transfer.start_s,
                now_s,
            )
        )
        self._replicas[handed.target].inbox.deliver(handed)
