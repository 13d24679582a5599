"""Own policies that fail: one sentence, with the policy, what it answered, its class and method."""

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from batchsim.cli import main
from batchsim.errors import BatchsimError, ConfigError, PlanError, StalledSimulation
from batchsim.policies import PlainRule, RankedQueue
from batchsim.policies.admission import AdmitAll
from batchsim.policies.batching import Greedy, Timer
from batchsim.policies.continuous import ChunkedPrefill, StallFree
from batchsim.policies.presets import Preset
from batchsim.policies.queueing import Fifo, MultiBin
from batchsim.policies.routing import CacheAware, Central, LeastLoaded, RoundRobin
from batchsim.policies.sizing import FixedSize, SloFeedback, Smallest
from batchsim.sim.step import MOST_ASKED
from batchsim.study.run import simulate
from tests.sim.worlds import workload

REQUESTS = workload([0.0, 0.0, 0.01, 0.02, 0.03], [5, 40, 5, 9, 5], [10, 20, 30, 40, 10])

#: Where the presets of these tests are found.
HERE = sys.modules[__name__]


def faulty(kind: type, name: str, answer: Callable[..., Any] | Any) -> Any:
    """An answer of this kind, of which one method or property is another."""
    member = property(lambda self: answer) if isinstance(vars_of(kind, name), property) else answer
    return type("Mine", (kind,), {name: member, "__module__": __name__})()


def vars_of(kind: type, name: str) -> Any:
    return next(vars(one)[name] for one in kind.__mro__ if name in vars(one))


def raising(error: BaseException) -> Callable[..., Any]:
    def method(*_: Any, **__: Any) -> Any:
        raise error

    return method


def answering(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def run(monkeypatch: pytest.MonkeyPatch, preset: Preset, **config: Any) -> Any:
    monkeypatch.setattr(HERE, "PRESET", preset, raising=False)
    return simulate({"policy": {"preset": f"{__name__}:PRESET"}, "seed": 1, **config}, REQUESTS)


def batches(**answers: Any) -> Preset:
    return Preset(**{"queueing": Fifo(), "sizing": FixedSize(2), "batching": Greedy(), **answers})


def iterations(**answers: Any) -> Preset:
    given = {
        "queueing": Fifo(),
        "sizing": FixedSize(2),
        "batching": ChunkedPrefill(),
        "routing": LeastLoaded(),
    }
    return Preset(**given | answers)


def forever(self: Any, *arguments: Any) -> Any:
    return forever(self, *arguments)


class Keeps(Fifo):
    """Hands a request back and keeps it."""

    def pop(self, bin_: int, now_s: float) -> Any:
        return self.head(bin_, now_s)

    def take(self, bin_: int, num: int, now_s: float) -> Any:
        return [self.head(bin_, now_s)] * num


class Loses(Fifo):
    """Forgets every request but the first."""

    def push(self, request: Any) -> int:
        return super().push(request) if self.waiting(0) == 0 else 0


class Invents(Fifo):
    """Hands back what was never pushed."""

    def head(self, bin_: int, now_s: float) -> Any:
        return type("Ghost", (), {"request_id": 77})()

    def take(self, bin_: int, num: int, now_s: float) -> Any:
        return [self.head(bin_, now_s) for _ in range(num)]


class Swaps(Fifo):
    """Shows one request and hands over another."""

    def head(self, bin_: int, now_s: float) -> Any:
        return self._line[-1]


def boom() -> Exception:
    return ValueError("boom\n[/x]")


FAULTS_OF_BOTH_WORLDS = [
    (
        {"queueing": faulty(Fifo, "push", raising(boom()))},
        r"Mine\.push raised ValueError: boom \[/x\] for request 0",
    ),
    (
        {"queueing": faulty(Fifo, "push", raising(SystemExit(0)))},
        r"Mine\.push raised SystemExit: 0 for request 0",
    ),
    ({"queueing": faulty(Fifo, "push", forever)}, r"Mine\.push raised RecursionError.* for request 0"),
    (
        {"queueing": faulty(Fifo, "push", answering(None))},
        r"Mine\.push answered None for request 0; a bin from 0 to 0",
    ),
    (
        {"queueing": faulty(Fifo, "push", answering(3))},
        r"Mine\.push answered 3 for request 0; a bin from 0 to 0",
    ),
    (
        {"queueing": faulty(Fifo, "push", answering(0))},
        r"Mine\.waiting answered 0 for request 0; 1, those of bin 0",
    ),
    (
        {"queueing": faulty(Fifo, "waiting", answering(7))},
        r"Mine\.waiting answered 7 for request 0; 1, those of",
    ),
    ({"queueing": faulty(Fifo, "num_bins", 0)}, r"Mine\.num_bins answered 0; a whole number >= 1"),
    ({"queueing": faulty(Fifo, "prepare", raising(boom()))}, r"Mine\.prepare raised ValueError"),
    (
        {"queueing": Keeps()},
        r"Keeps\.waiting answered \d.*; \d, those of bin 0 .* after (pop|take)|Keeps\.take answered",
    ),
    ({"queueing": Loses()}, r"Loses\.waiting answered 1 for request 1; 2, those of bin 0"),
    ({"queueing": Invents()}, r"Invents\.(head|take) answered request 77; a request that waits in bin 0"),
    (
        {"sizing": faulty(FixedSize, "batch_size", answering(0))},
        r"Mine\.batch_size answered 0; a whole number from 1",
    ),
    (
        {"sizing": faulty(FixedSize, "batch_size", answering(-1))},
        r"Mine\.batch_size answered -1; a whole number",
    ),
    (
        {"sizing": faulty(FixedSize, "batch_size", answering(1.5))},
        r"Mine\.batch_size answered 1\.5; a whole number",
    ),
    (
        {"sizing": faulty(FixedSize, "batch_size", answering(None))},
        r"Mine\.batch_size answered None; a whole number",
    ),
    (
        {"sizing": faulty(FixedSize, "batch_size", answering(9))},
        r"answered 9; .* to its max_batch_size, 8, is",
    ),
    ({"sizing": faulty(FixedSize, "max_batch_size", 0)}, r"Mine\.max_batch_size answered 0"),
    ({"sizing": faulty(FixedSize, "max_batch_size", 10**400)}, r"Mine\.max_batch_size answered 10"),
    (
        {"sizing": Smallest((FixedSize(2), faulty(FixedSize, "batch_size", answering(0))))},
        r"Mine\.batch_size answered 0",
    ),
    ({"sizing": faulty(FixedSize, "prepare", raising(SystemExit()))}, r"Mine\.prepare raised SystemExit \("),
]

FAULTS_OF_BATCHES = [
    ({"batching": faulty(Greedy, "next_bin", answering(5))}, r"Mine\.next_bin answered 5; None, or a bin"),
    ({"batching": faulty(Greedy, "next_bin", answering(-1))}, r"Mine\.next_bin answered -1; None, or a bin"),
    (
        {"batching": faulty(Greedy, "next_bin", answering(True))},
        r"Mine\.next_bin answered True; None, or a bin",
    ),
    (
        {"batching": faulty(Greedy, "next_bin", raising(StopIteration()))},
        r"Mine\.next_bin raised StopIteration",
    ),
    (
        {"sizing": FixedSize(8), "batching": faulty(Timer, "wake_s", answering(math.nan))},
        r"Mine\.wake_s answered nan; a time in seconds",
    ),
    (
        {"sizing": FixedSize(8), "batching": faulty(Timer, "wake_s", answering(0.0))},
        r"Mine\.wake_s answered 0\.0; a time after",
    ),
    (
        {"sizing": FixedSize(8), "batching": faulty(Timer, "num_missing", answering(0))},
        r"Mine\.num_missing answered 0; a whole number",
    ),
    (
        {"sizing": faulty(FixedSize, "observe", answering(None))},
        r"Mine\.observe answered None; a list or tuple",
    ),
    ({"sizing": faulty(FixedSize, "observe", raising(boom()))}, r"Mine\.observe raised ValueError: boom"),
    (
        {"queueing": faulty(Fifo, "oldest_bin", answering(None))},
        r"Mine\.oldest_bin answered None; a bin in which",
    ),
    ({"queueing": faulty(Fifo, "take", answering([]))}, r"Mine\.take answered \[\]; a list of \d requests"),
]


def _hold(self: Any, step: Any) -> None:
    while (request := step.next_waiting()) is not None:
        step.admit(request, 10**6, keep_free_blocks=step.num_blocks)


def _take_back(self: Any, step: Any) -> None:
    head = step.next_waiting()
    if head is not None:
        step.admit(head, head.remaining_tokens)
        step.preempt(head)


def _admit(**named: Any) -> Callable[..., None]:
    def plan(self: Any, step: Any) -> None:
        step.admit(step.next_waiting(), **named)

    return plan


def _twice(self: Any, step: Any) -> None:
    head = step.next_waiting()
    step.admit(head, 1)
    step.prefill(head, 1)


def _prefill_of_one_who_decodes(self: Any, step: Any) -> None:
    StallFree.plan(self, step)
    for request in step.running:
        if request not in step.prefilling and request.generated_tokens:
            step.prefill(request, 1)


def _preempt_of_one_who_waits(self: Any, step: Any) -> None:
    step.preempt(step.next_waiting())


FAULTS_OF_ITERATIONS = [
    ({"queueing": Swaps()}, r"Swaps\.pop answered request 0; request \d, the head of bin 0, is needed"),
    ({"queueing": faulty(Fifo, "head", answering(None))}, r"Mine\.head answered None; a request that waits"),
    (
        {"queueing": faulty(Fifo, "head_changes_s", answering("soon"))},
        r"Mine\.head_changes_s answered 'soon'",
    ),
    (
        {"routing": faulty(LeastLoaded, "choose", answering(2))},
        r"Mine\.choose answered 2 for request 0; .* from 0 to 1",
    ),
    ({"routing": faulty(LeastLoaded, "choose", answering(-1))}, r"Mine\.choose answered -1 for request 0"),
    (
        {"routing": faulty(LeastLoaded, "choose", answering(None))},
        r"Mine\.choose answered None for request 0",
    ),
    (
        {"routing": faulty(LeastLoaded, "load", "weight")},
        r"Mine\.load answered 'weight'; 'requests', 'kv_blocks'",
    ),
    (
        {"routing": faulty(RoundRobin, "view_age_s", -1.0)},
        r"Mine\.view_age_s answered -1\.0; a number of seconds >= 0",
    ),
    ({"routing": faulty(CacheAware, "score", raising(boom()))}, r"Mine\.choose raised ValueError: boom"),
    (
        {"routing": faulty(Central, "choose", answering(7))},
        r"Mine\.choose answered 7 for request 0; .* 0 to 1",
    ),
    (
        {"admission": faulty(AdmitAll, "refusal", answering(" "))},
        r"Mine\.refusal answered ' ' for request 0; a reason that can be read, or None,",
    ),
    ({"admission": faulty(AdmitAll, "refusal", answering(False))}, r"Mine\.refusal answered False"),
    ({"admission": faulty(AdmitAll, "observe", raising(boom()))}, r"Mine\.observe raised ValueError: boom"),
    (
        {"sizing": faulty(SloFeedback, "observe_iterations", answering(None))},
        r"observe_iterations answered None",
    ),
    (
        {"sizing": faulty(SloFeedback, "iterations_to_decision", answering(None))},
        r"decision answered None; a number",
    ),
    (
        {"batching": ChunkedPrefill(chunk=faulty(FixedSize, "batch_size", answering(0)))},
        r"Mine\.batch_size answered 0",
    ),
    ({"batching": faulty(StallFree, "plan", raising(boom()))}, r"Mine\.plan raised ValueError: boom"),
    (
        {"batching": faulty(StallFree, "plan", raising(SystemExit(0)))},
        r"Mine\.plan raised SystemExit: 0 \(test_guard",
    ),
    ({"batching": faulty(StallFree, "plan", _hold)}, rf"Mine\.plan: .* asked {MOST_ASKED} times who is next"),
    (
        {"batching": faulty(StallFree, "plan", _take_back)},
        r"Mine\.plan preempted in \d iterations at 0\.000 s",
    ),
    (
        {"batching": faulty(StallFree, "plan", _admit(num_tokens=0))},
        r"Mine\.plan: request 0 was given a chunk of 0",
    ),
    (
        {"batching": faulty(StallFree, "plan", _admit(num_tokens=1.5))},
        r"plan: request 0 was given a chunk of 1\.5",
    ),
    (
        {"batching": faulty(StallFree, "plan", _admit(num_tokens=1, keep_free_blocks=-3))},
        r"keep_free_blocks = -3",
    ),
    ({"batching": faulty(StallFree, "plan", _twice)}, r"Mine\.plan: request 0 was given two chunks"),
    (
        {"batching": faulty(StallFree, "plan", _prefill_of_one_who_decodes)},
        r"plan: request \d .* no prompt of it is",
    ),
    (
        {"batching": faulty(StallFree, "plan", _preempt_of_one_who_waits)},
        r"request 0 was preempted, but it does not",
    ),
    (
        {"batching": faulty(StallFree, "plan", lambda self, step: step.swap_in(step.next_waiting()))},
        r"is not swapped",
    ),
    (
        {"batching": faulty(StallFree, "usable_blocks", answering(10**9))},
        r"Mine\.usable_blocks answered 1000000000",
    ),
    (
        {"batching": faulty(StallFree, "reserved_tokens", answering(None))},
        r"answered None for request 0; a whole",
    ),
]


@pytest.mark.parametrize(("answers", "message"), FAULTS_OF_BOTH_WORLDS + FAULTS_OF_BATCHES)
def test_a_fault_where_batches_run_to_completion_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], message: str
) -> None:
    with pytest.raises(BatchsimError, match=message) as raised:
        run(monkeypatch, batches(**answers))

    assert str(raised.value).startswith(f"policy {__name__}:PRESET: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("answers", "message"), FAULTS_OF_BOTH_WORLDS + FAULTS_OF_ITERATIONS)
def test_a_fault_in_iterations_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], message: str
) -> None:
    with pytest.raises(BatchsimError, match=message) as raised:
        run(monkeypatch, iterations(**answers), cluster={"num_gpus": 2 if "routing" in answers else 1})

    assert str(raised.value).startswith(f"policy {__name__}:PRESET: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "preset",
    [
        batches(batching=faulty(Greedy, "next_bin", answering(None))),
        iterations(batching=faulty(ChunkedPrefill, "plan", answering(None))),
    ],
)
def test_who_never_lets_anybody_run_is_named(monkeypatch: pytest.MonkeyPatch, preset: Preset) -> None:
    with pytest.raises(StalledSimulation, match=rf"wait for Mine of policy {__name__}:PRESET to"):
        run(monkeypatch, preset)


def test_a_timer_that_launches_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    class Snooze(Greedy):
        def next_bin(self, queue: Any, sizer: Any, now_s: float, *, is_last_call: bool) -> None:
            object.__setattr__(self, "now_s", now_s)

        def wake_s(self, queue: Any) -> float:
            return float(self.now_s + 1.0)

    with pytest.raises(PlanError, match=r"Snooze\.wake_s set a timer \d+ times"):
        run(monkeypatch, batches(batching=Snooze()))


def test_a_fault_raised_on_purpose_keeps_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ConfigError("late_s is -1; seconds > 0 are needed")

    with pytest.raises(ConfigError, match=r"Mine\.prepare: late_s is -1"):
        run(monkeypatch, batches(sizing=faulty(FixedSize, "prepare", raising(error))))


def test_an_interrupt_is_no_fault_of_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, batches(queueing=faulty(Fifo, "push", raising(KeyboardInterrupt()))))


class Bare:
    """Neither this nor that."""


class OnlyPlans:
    """Half a rule."""

    def plan(self, step: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        (batches(queueing=Bare()), "Bare has no num_bins, which a QueueDiscipline needs"),
        (batches(queueing=FixedSize(2)), "FixedSize has no num_bins, which a QueueDiscipline needs"),
        (batches(sizing=Smallest((Bare(),))), "Bare has no max_batch_size, which a Sizer needs"),
        (iterations(batching=OnlyPlans()), "OnlyPlans has no caches_prefixes, which a IterationRule needs"),
        (iterations(routing=Bare()), "Bare has no load, which a Routing needs"),
    ],
)
def test_what_an_answer_lacks_is_said_before_the_run(
    monkeypatch: pytest.MonkeyPatch, preset: Preset, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(monkeypatch, preset)


def test_isinstance_and_parameters_see_through_a_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(MultiBin):
        """Another."""

    seen = []

    class Looks(Greedy):
        def next_bin(self, queue: Any, sizer: Any, now_s: float, *, is_last_call: bool) -> Any:
            seen.append((isinstance(queue, MultiBin), queue.turn))
            return super().next_bin(queue, sizer, now_s, is_last_call=is_last_call)

    result = run(monkeypatch, batches(queueing=Mine(1, turn=5), batching=Looks()))

    assert set(seen) == {(True, 5)}
    assert result.summary["combination"].startswith("Mine(num_bins=1")


def test_a_rule_without_a_say_is_asked_at_every_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Counts(StallFree):
        def plan(self, step: Any) -> None:
            asked.append(step.now_s)
            super().plan(step)

    class Silent(PlainRule):
        def plan(self, step: Any) -> None:
            if not step.num_running and (head := step.next_waiting()):
                step.admit(head, head.remaining_tokens)

    class ByLength(RankedQueue):
        def rank(self, request: Any) -> Any:
            return (request.predicted_output_tokens, -request.prompt_tokens)

    result = run(monkeypatch, iterations(queueing=ByLength(), batching=Counts()))

    spans = result.iterations
    waited = spans["num_waiting"] > 0
    assert waited.any()
    assert (spans.loc[waited, "num_iterations"] == 1).all()
    assert (run(monkeypatch, iterations(batching=Silent())).requests["status"] == "finished").all()


EXITS = batches(queueing=faulty(Fifo, "push", raising(SystemExit(0))))


def test_a_policy_that_exits_fails_on_the_command_line() -> None:
    options = ["--set", "workload.num_requests=20"]

    result = CliRunner().invoke(main, ["run", "--policy", f"{__name__}:EXITS", *options])

    assert result.exit_code == 1
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "EXITS: Mine.push raised SystemExit: 0 for request 0" in sentence
