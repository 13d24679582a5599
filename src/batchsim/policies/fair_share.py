"""Who is next, of several tenants? The one who has been served least: VTC (arXiv 2401.00588)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from batchsim.errors import ConfigError
from batchsim.policies.base import QueueDiscipline, WaitingRequest, arrival_order
from batchsim.policies.building_blocks import OneBin
from batchsim.policies.guards.checks import unguarded
from batchsim.policies.parts.lines import Line
from batchsim.policies.parts.parameters import check_by_name
from batchsim.policies.parts.service import Account, ServiceCounters


@dataclass(slots=True)
class FairShare(OneBin):
    """Next is the first of the tenant who has been served least: the virtual token counter (Algorithm 2).

    The counter of a tenant grows by its prompt's tokens when a request is admitted, and by each token of its
    answer when that is decoded; a prompt that is computed again after a preemption costs nothing. A tenant
    nothing of whom waited is lifted to the smallest counter of those who wait, or to that of the last who
    did. Within a tenant, first come, first served; level tenants go by arrival. Where batches run to
    completion, an answer counts as predicted until its batch has ended.

    Between two tenants who both always have requests waiting, service over weight differs by at most ``2 *
    output_weight * M``, with M the most tokens of requests that run together, answers whole, if a prompt
    token counts no more than one of an answer (Theorem 4.4 has ``max(w_p L, w_q M)``).

    Attributes
    ----------
    prompt_weight, output_weight
        What a token of a prompt and one of an answer count.
    weights
        Of tenants, by name, 1 where not given: one of weight 2 is served twice as much.
    shared
        Whether the queues of all replicas count together, as one dispatcher would; else each for itself. The
        replicas then simulate every iteration as an event of its own.
    """

    prompt_weight: float = 1.0
    output_weight: float = 2.0
    weights: Mapping[str, float] = field(default_factory=dict)
    shared: bool = False
    counters: ServiceCounters = field(init=False, repr=False, compare=False)
    _lines: dict[str, Line] = field(default_factory=dict, init=False, repr=False, compare=False)
    _decoding: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    _ahead: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("prompt_weight", "output_weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; a number > 0 is needed")
        check_by_name("weights", self.weights, "a number > 0", lambda weight: 0 < weight < math.inf)
        self.counters = ServiceCounters(self.prompt_weight, self.output_weight, self.weights)

    @property
    def is_fifo(self) -> bool:
        """No."""
        return False

    @property
    def meter(self) -> FairShare:
        """Itself: a `ServiceMeter`."""
        return self

    # Who waits

    def push(self, request: WaitingRequest) -> int:
        """Take a request in."""
        self._line_of(request.tenant).append(request)
        return 0

    def push_back(self, request: WaitingRequest, bin_: int) -> None:
        """Put a request back to the head of its tenant's line; what it was to cost, it has not cost."""
        ahead = self._ahead.pop(id(request), None)
        if ahead is not None:
            self._charge(request, -request.prompt_tokens, -ahead)
        self._line_of(request.tenant, lifts=ahead is None).appendleft(request)

    def waiting(self, bin_: int) -> int:
        """How many wait."""
        return sum(line.num_waiting for line in self._lines.values())

    def head(self, bin_: int, now_s: float) -> WaitingRequest:
        """The first of the tenant who has been served least."""
        return self._lines[self._next_tenant()][0]

    def pop(self, bin_: int, now_s: float) -> WaitingRequest:
        """Hand over the one `head` names."""
        tenant = self._next_tenant()
        request = self._lines[tenant].pop_head()
        self._close_if_empty(tenant)
        return request

    def oldest(self, bin_: int) -> WaitingRequest:
        """The one that arrived first."""
        return min((line[0] for line in self._lines.values()), key=arrival_order)

    def nth(self, bin_: int, position: int) -> WaitingRequest:
        """The request at a position in order of arrival; O(n log n)."""
        waiting = (line.nth(index) for line in self._lines.values() for index in range(line.num_waiting))
        return sorted(waiting, key=arrival_order)[position]

    def take(self, bin_: int, num: int, now_s: float) -> list[WaitingRequest]:
        """Hand over a batch, one after the other; each counts as served before the next is chosen."""
        taken = []
        for _ in range(num):
            request = self.pop(bin_, now_s)
            self._ahead[id(request)] = request.predicted_output_tokens
            self._charge(request, request.prompt_tokens, request.predicted_output_tokens)
            taken.append(request)
        return taken

    def oldest_bin(self) -> int | None:
        """The only one, if anyone waits."""
        return 0 if self._lines else None

    next_bin = oldest_bin

    def discard(self, request: WaitingRequest, bin_: int) -> None:
        """Forget a request that gave up."""
        self._lines[request.tenant].discard(request)
        self._close_if_empty(request.tenant)

    def _line_of(self, tenant: str, *, lifts: bool = True) -> Line:
        line = self._lines.get(tenant)
        if line is None:
            self.counters.enter(tenant, lifts=lifts)
            line = self._lines[tenant] = Line()
        return line

    def _close_if_empty(self, tenant: str) -> None:
        if not self._lines[tenant]:
            del self._lines[tenant]
            self.counters.leave(tenant)

    def _next_tenant(self) -> str:
        lines = self._lines
        if len(lines) == 1:
            return next(iter(lines))
        account = self.counters.account
        return min(lines, key=lambda tenant: (account(tenant).served, *arrival_order(lines[tenant][0])))

    # What is served

    def admit(self, request: WaitingRequest, prompt_tokens: int) -> None:
        """Count the prompt."""
        self._charge(request, prompt_tokens, 0)

    def first_token(self, request: WaitingRequest) -> None:
        """Count a token."""
        self._charge(request, 0, 1)

    def join(self, request: WaitingRequest) -> None:
        """One more decodes."""
        self._decoding[request.tenant] = self._decoding.get(request.tenant, 0) + 1

    def leave(self, request: WaitingRequest) -> None:
        """One fewer decodes."""
        num = self._decoding[request.tenant] - 1
        if num:
            self._decoding[request.tenant] = num
        else:
            del self._decoding[request.tenant]

    def advance(self, num_iterations: int) -> None:
        """Count a token of each that decodes for each iteration."""
        for tenant, num in self._decoding.items():
            account = self.counters.account(tenant)
            account.served += account.output_price * num * num_iterations

    def iterations_to_other_head(self) -> float:
        """Until another tenant falls below the one whose turn it is, in O(tenants)."""
        if len(self._lines) < 2:
            return math.inf
        first = self._next_tenant()
        order = arrival_order(self._lines[first][0])
        own, own_growth = self._account_and_growth(first)
        least = math.inf
        for tenant, line in self._lines.items():
            other, growth = self._account_and_growth(tenant)
            closing = own_growth - growth
            if closing > 0:
                gap = other.served - own.served
                goes_first_if_level = arrival_order(line[0]) < order
                least = min(least, -(-gap // closing) if goes_first_if_level else gap // closing + 1)
        return least

    def settle(self, requests: Sequence[WaitingRequest], total_tokens: Sequence[int]) -> None:
        """Count answers as they were; those who were thrown out have been served nothing."""
        for index, request in enumerate(requests):
            ahead = self._ahead.pop(id(request))
            if index < len(total_tokens):
                self._charge(request, 0, total_tokens[index] - request.prompt_tokens - ahead)
            else:
                self._charge(request, -request.prompt_tokens, -ahead)

    def _account_and_growth(self, tenant: str) -> tuple[Account, int]:
        """And by how much it grows in an iteration."""
        account = self.counters.account(tenant)
        return account, account.output_price * self._decoding.get(tenant, 0)

    def _charge(self, request: WaitingRequest, prompt_tokens: int, output_tokens: int) -> None:
        account = self.counters.account(request.tenant)
        account.served += account.prompt_price * prompt_tokens + account.output_price * output_tokens


def share_counters(queues: Iterable[QueueDiscipline]) -> None:
    """Let those queues that are to count together do so."""
    sharing = [queue for queue in map(unguarded, queues) if isinstance(queue, FairShare) and queue.shared]
    for queue in sharing[1:]:
        queue.counters = sharing[0].counters
