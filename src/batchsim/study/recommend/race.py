"""Who is run again and who is dropped: a race of candidates over replications, the cheapest first.

The guarantee
-------------
With a probability of at least the confidence that is asked for, the configuration that is named attains the
SLO, and the truly cheapest that does is this one (or costs the same), or one of those listed as undecided.

A candidate *attains* where the mean over replications meets every requirement: where the share of good
requests is at least the one wanted, say. The guarantee can fail in two ways, each of which gets half of ``1 -
confidence``. The truly cheapest may be taken for one that misses: as it is one candidate, whichever that is,
the error of each is the whole half, shared out over the requirements. Or some candidate that misses may be
taken for one that attains: the half is shared out over all candidates. Both are tested by betting
(`betting`), which holds at any time: after 3, 6, 9, 14, ... replications it is looked who is sure, and
looking again costs nothing.

What it stands on: that replications are alike. Those of a generator are independent, and the mean is that of
its law. Parts of a trace are taken in random order and none twice, and the mean is that of the trace: nothing
is said of other days. Nothing is asked of how replications vary. Prices are not in question: a fixed cluster
costs the same in every replication.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from batchsim.study.recommend.candidates import Candidate
from batchsim.study.recommend.draws import Draws
from batchsim.study.recommend.evidence import Evidence
from batchsim.study.recommend.runs import Runs

#: Replications after which is looked for the first time; with fewer nothing is sure.
FIRST_LOOK = 3
#: Candidates that cost so many times as much as one that seems to attain are not run at all.
REACH = 2.0

State = Literal["open", "attains", "misses", "unable"]


class Runner:
    """A candidate in the race.

    Attributes
    ----------
    state
        What is known of it; ``unable``: it cannot be simulated, and `failure` says why.
    """

    def __init__(self, candidate: Candidate, evidence: Evidence) -> None:
        self.candidate = candidate
        self.evidence = evidence
        self.state: State = "open"
        self.failure = ""

    @property
    def usd_per_hour(self) -> float:
        """What its GPUs cost."""
        return self.candidate.usd_per_hour

    @property
    def seems_to_attain(self) -> bool:
        """Whether it attains for sure, or is open and its means do."""
        return self.state == "attains" or (
            self.state == "open" and len(self.evidence) > 0 and self.evidence.margin >= 0
        )

    def judge(self, errors: Errors) -> None:
        """Say what is sure by now."""
        if self.evidence.attains(errors.attains):
            self.state = "attains"
        elif self.evidence.misses(errors.misses):
            self.state = "misses"


class Errors(NamedTuple):
    """Probabilities that a candidate which misses is taken for one that attains, and the other way round."""

    attains: float
    misses: float

    @classmethod
    def of(cls, confidence: float, num_candidates: int) -> Errors:
        """Those that the guarantee needs."""
        half = (1 - confidence) / 2
        return cls(half / num_candidates, half)


def race(
    candidates: Sequence[Candidate],
    draws: Draws,
    runs: Runs,
    confidence: float,
    on_look: Callable[[str], None] | None = None,
) -> list[Runner]:
    """Run candidates, those that cost least first, until the cheapest that attains is sure.

    All within reach are run for the first look. After that only those are run again that could change the
    answer: the cheapest one that seems to attain, and whatever costs less and is not decided.

    Parameters
    ----------
    candidates
        By what they cost, the cheapest first.
    on_look
        Told in words what is about to be run.
    """
    errors = Errors.of(confidence, len(candidates))
    runners = [Runner(one, Evidence(draws.population)) for one in candidates]
    while chosen := _unseen(runners, draws.most) or _contested(runners, draws.most):
        if on_look is not None:
            on_look(_words(chosen, runners))
        _advance(chosen, draws, runs)
        for one in chosen:
            if one.state == "open":
                one.judge(errors)
    return runners


def leader(runners: Sequence[Runner], most: int) -> Runner | None:
    """The cheapest that attains, or seems to and can still be run.

    Of those that cost the same, the one that was run most: to make sure of one is enough. At the first look
    that is the one with the highest attainment, then speed.
    """
    hopeful = [
        one for one in runners if one.seems_to_attain and (one.state == "attains" or len(one.evidence) < most)
    ]
    return min(hopeful, key=_by_cost_and_merit, default=None)


def _by_cost_and_merit(one: Runner) -> tuple[float | bool, ...]:
    evidence = one.evidence
    merit = (-evidence.attained().mean, -evidence.mean_of("tokens_per_user_s"))
    return (one.usd_per_hour, one.state != "attains", -len(evidence), *merit)


def _unseen(runners: Sequence[Runner], most: int) -> list[Runner]:
    """Those within reach that were never run: of them, all that cost least."""
    unseen = [one for one in runners if one.state == "open" and not len(one.evidence)]
    first = leader(runners, most)
    if not unseen or (first is not None and unseen[0].usd_per_hour > REACH * first.usd_per_hour):
        return []
    return [one for one in unseen if one.usd_per_hour == unseen[0].usd_per_hour]


def _contested(runners: Sequence[Runner], most: int) -> list[Runner]:
    """Those on which the answer hangs."""
    first = leader(runners, most)
    open_ = [one for one in runners if one.state == "open" and 0 < len(one.evidence) < most]
    return [one for one in open_ if first is None or one is first or one.usd_per_hour < first.usd_per_hour]


def _advance(chosen: Sequence[Runner], draws: Draws, runs: Runs) -> None:
    """Bring each to its next look, half as many replications again; all are run at once."""
    wanted = [
        (one, k)
        for one in chosen
        for num in (len(one.evidence),)
        for k in range(num, min(num + max(FIRST_LOOK, num // 2), draws.most))
    ]
    outcomes = runs([draws.draw(one.candidate.config, k) for one, k in wanted])
    for (one, _), outcome in zip(wanted, outcomes, strict=True):
        if isinstance(outcome, str):
            one.state, one.failure = "unable", one.failure or outcome
        else:
            one.evidence.outcomes.append(outcome)


def _words(chosen: Sequence[Runner], runners: Sequence[Runner]) -> str:
    num_seen = sum(one.state != "open" or len(one.evidence) > 0 for one in runners)
    if not len(chosen[0].evidence):
        return f"first look: {num_seen} of {len(runners)} configurations seen"
    least = min(len(one.evidence) for one in chosen)
    return f"{len(chosen)} of {len(runners)} configurations are open after {least} or more replications"
