"""The question itself, `recommend`, and what came of it: the cheapest, and what separates it from others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchsim.config import RunConfig, load_config
from batchsim.errors import ConfigError
from batchsim.metrics.statistics import Interval, t_interval
from batchsim.metrics.weighted import Floats
from batchsim.study.recommend.betting import fewest
from batchsim.study.recommend.candidates import make_candidates, name_of
from batchsim.study.recommend.draws import Draws
from batchsim.study.recommend.evidence import QUEUE, wanted_share
from batchsim.study.recommend.race import REACH, Errors, Runner, race
from batchsim.study.recommend.runs import running
from batchsim.workload.request import Workload

#: What a search leaves in its folder.
RECOMMENDATION, CANDIDATES = "recommendation.json", "candidates.csv"

#: Replications of one candidate, at most: so many times as many as it takes where every request is good.
_PATIENCE = 5


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """One configuration at the end of the race.

    Attributes
    ----------
    runner
        None where it could not be configured.
    verdict
        ``best``, ``attains``, ``misses``, ``undecided`` (it costs less than the best, or as nothing attains
        could be it), ``dearer`` (it costs as much as the best or more, and was not looked at further), ``not
        run``, or ``cannot run``.
    reason
        Why, in words.
    """

    settings: Mapping[str, Any]
    runner: Runner | None
    verdict: str
    reason: str

    @property
    def name(self) -> str:
        """As a person would call it."""
        return name_of(self.settings)

    @property
    def num_replications(self) -> int:
        """Those that were simulated."""
        return 0 if self.runner is None else len(self.runner.evidence)

    @property
    def usd_per_hour(self) -> float:
        """NaN where not known."""
        return math.nan if self.runner is None else self.runner.usd_per_hour

    @property
    def attained(self) -> Interval:
        """Share of good requests with its own 95 % interval; NaN where it was never run.

        Where statistics alone are limited, of those within the limit of the tightest one.
        """
        if self.runner is None or not self.num_replications:
            return Interval.around(math.nan, math.nan)
        return self.runner.evidence.attained()


@dataclass(frozen=True, slots=True, eq=False)
class Recommendation:
    """What a search found.

    Attributes
    ----------
    best
        None where nothing attains for sure.
    standings
        All configurations, those that cost least first; those without a price last.
    num_requests
        Of a replication.
    num_parts
        That the trace has; None where a generator makes the requests.
    most
        Replications that one candidate could have at most.
    notices
        Sentences on the hardware and the latency model.
    """

    best: Standing | None
    standings: tuple[Standing, ...]
    share: float
    confidence: float
    num_requests: int
    num_parts: int | None
    most: int
    notices: tuple[str, ...]

    @property
    def num_simulations(self) -> int:
        """Of all candidates together."""
        return sum(one.num_replications for one in self.standings)

    @property
    def share_of_good(self) -> float | None:
        """The share of good requests that is wanted; None where statistics alone are limited."""
        ran = (one.runner.evidence for one in self.standings if one.runner is not None)
        return self.share if any("good" in one.requirements for one in ran) else None

    @property
    def counted(self) -> str:
        """What requests are that the attained shares count."""
        return "within the limit" if self.share_of_good is None else "good"

    @property
    def undecided(self) -> list[Standing]:
        """Those that may attain and cost less than the best."""
        return [one for one in self.standings if one.verdict == "undecided"]

    @property
    def stands_on(self) -> tuple[str, ...]:
        """Sentences on what the numbers of the best stand on, or of the first that was run."""
        run = [one for one in (self.best, *self.standings) if one is not None and one.num_replications]
        outcomes = [] if not run or run[0].runner is None else run[0].runner.evidence.outcomes
        return outcomes[0].stands_on if outcomes else ()

    @property
    def cautions(self) -> list[str]:
        """How far the answer can be trusted, in sentences."""
        said = []
        if self.best is None:
            said.append(f"no configuration is sure to attain the SLO; the nearest: {self._nearest()}")
        for one in self.undecided:
            said.append(f"{one.name} is undecided: {one.reason}")
        if self.best is not None and self.best.runner is not None:
            outcomes = self.best.runner.evidence.outcomes
            if sum(one.verdict == "transient" for one in outcomes) > len(outcomes) / 2:
                said.append(
                    f"whether the queue of {self.best.name} would go on growing cannot be told in "
                    f"replications of {self.num_requests:,} requests; longer ones "
                    "(workload.num_requests) tell"
                )
        return said

    def _nearest(self) -> str:
        ran = [one for one in self.standings if one.num_replications]
        nearest = max(ran, key=lambda one: one.attained.mean)
        return f"{nearest.name}: {nearest.reason}"

    def runners_up(self, num: int = 6) -> list[Standing]:
        """Who comes after the best: half that seem to attain and cost least, and half that save but miss."""
        others = [one for one in self.standings if one.num_replications and one is not self.best]
        hopeful = [one for one in others if one.runner is not None and one.runner.seems_to_attain]
        hopeful = sorted(hopeful, key=lambda one: (one.usd_per_hour, -one.attained.mean))
        missing = sorted((one for one in others if one not in hopeful), key=lambda one: -one.attained.mean)
        num_missing = min(len(missing), max(num // 2, num - len(hopeful)))
        return hopeful[: num - num_missing] + missing[:num_missing]

    def against_best(self, other: Standing) -> Interval | None:
        """Attained share of another less that of the best, on the same replications; None where not known."""
        shares = self._beside_best(other)
        num = min(map(len, shares), default=0)
        return t_interval(shares[0][:num] - shares[1][:num]) if num > 1 else None

    def _beside_best(self, other: Standing) -> list[Floats]:
        """Shares of another, and of the best by the same requirement; none where not known."""
        if (
            self.best is None
            or self.best.runner is None
            or other.runner is None
            or not other.num_replications
        ):
            return []
        ours, best = other.runner.evidence, self.best.runner.evidence
        return [ours.shares(), best.shares(ours.shown)]

    def table(self) -> pd.DataFrame:
        """One row a configuration: how far it got, what it attained and costs, and why it was dropped.

        ``attained_alike`` is what it would have attained on the replications of the best: the share of that
        one and the difference on those that both had. Tokens per second are of the replications that all had
        which were run. Other replications may hold more work, and would put one in a better light.
        """
        num_common = min((one.num_replications for one in self.standings if one.num_replications), default=0)
        rows = [self._row(one, num_common) for one in self.standings]
        table = pd.DataFrame(rows)
        table["on_cost_front"] = front(table["usd_per_hour"], -table["attained_alike"])
        table["on_speed_front"] = front(-table["tokens_per_gpu_s"], -table["tokens_per_user_s"])
        return table

    def _attained_alike(self, one: Standing, difference: Interval | None) -> float:
        if difference is None:
            return one.attained.mean
        _, of_best = self._beside_best(one)
        return min(max(float(of_best.mean()) + difference.mean, 0.0), 1.0)

    def _row(self, one: Standing, num_common: int) -> dict[str, Any]:
        evidence = None if one.runner is None or not one.num_replications else one.runner.evidence
        within = {} if evidence is None else evidence.within()
        difference = self.against_best(one) if one is not self.best else None
        return {
            "name": one.name,
            **one.settings,
            "verdict": one.verdict,
            "reason": one.reason,
            "num_replications": one.num_replications,
            "usd_per_hour": one.usd_per_hour,
            "extra_usd_per_hour": math.nan
            if self.best is None
            else one.usd_per_hour - self.best.usd_per_hour,
            "attained": one.attained.mean,
            "attained_ci95_low": one.attained.low,
            "attained_ci95_high": one.attained.high,
            "attained_alike": self._attained_alike(one, difference),
            "attained_less_best": math.nan if difference is None else difference.mean,
            "attained_less_best_ci95": math.nan if difference is None else difference.half_width,
            **{f"within_{name}": within.get(name, math.nan) for name in ("e2e", "ttft", "tpot")},
            "binding": "" if evidence is None else evidence.binding,
            "margin": math.nan if evidence is None else evidence.margin,
            **{
                name: math.nan if evidence is None else evidence.mean_of(name, num_common)
                for name in ("tokens_per_gpu_s", "tokens_per_user_s")
            },
        }


def recommend(
    config: RunConfig | Mapping[str, Any] | str | Path | None,
    workload: Workload | None = None,
    *,
    vary: Mapping[str, Sequence[Any]],
    gpus: Sequence[str] = (),
    policies: Sequence[str] = (),
    share: float = 0.9,
    confidence: float = 0.95,
    replications: int | None = None,
    jobs: int = 1,
    on_look: Callable[[str], None] | None = None,
) -> Recommendation:
    """Find the cheapest configuration that attains an SLO; `race` states with which guarantee.

    Parameters
    ----------
    config, workload
        As for `simulate`; ``workload.num_requests`` are those of a replication.
    vary
        Settings and the values to try, as `make_candidates` takes them.
    gpus, policies
        To try; none: those of the configuration.
    share
        Of requests that must meet the limits per request, in (0, 1).
    confidence
        With which the answer is to be right, in (0, 1).
    replications
        Of one candidate, at most; what is not decided then is named. Left out: five times as many as it takes
        to be sure where every request is good, which is the more the higher the share that is wanted.
    jobs
        Processes.
    on_look
        Told in words what is about to be run.

    Raises
    ------
    ConfigError, TraceError
        If no limit is configured, replicas come and go (their price is an outcome), an argument is out of
        range, or no combination can be simulated.
    """
    base = load_config(config)
    _check(base, share, confidence, replications)
    candidates, unfit = make_candidates(base, gpus, policies or [base.policy.preset], vary)
    least = _fewest(base, share, Errors.of(confidence, len(candidates)))
    draws = Draws(candidates[0].config, replications or _PATIENCE * least, workload)
    with running(share, jobs) as runs:
        runners = race(candidates, draws, runs, confidence, on_look)
    if all(one.state == "unable" for one in runners):
        raise ConfigError(f"none of the {len(runners)} configurations can be simulated: {runners[0].failure}")
    best = min(
        (one for one in runners if one.state == "attains"),
        key=lambda one: (one.usd_per_hour, -one.evidence.attained().mean),
        default=None,
    )
    standings = [Standing(one.candidate.settings, one, *_verdict(one, best, share)) for one in runners]
    named = next((one for one in standings if one.runner is best), None)
    standings += [Standing(one.settings, None, "cannot run", one.reason) for one in unfit]
    notices = dict.fromkeys(said for one in candidates for said in one.notices)
    return Recommendation(
        named,
        tuple(standings),
        share,
        confidence,
        draws.num_requests,
        draws.population,
        draws.most,
        tuple(notices),
    )


def front(first: pd.Series[float], second: pd.Series[float]) -> pd.Series[bool]:
    """Whether no other row is as low in both and lower in one: the Pareto front of what is to be low."""
    values = np.column_stack([first, second])
    is_on = [
        bool(np.isfinite(row).all()) and not ((values <= row).all(axis=1) & (values < row).any(axis=1)).any()
        for row in values
    ]
    return pd.Series(is_on, index=first.index, dtype=bool)


def _fewest(config: RunConfig, share: float, errors: Errors) -> int:
    """Replications that it takes to be sure of a candidate that meets all limits all the time."""
    wanted = [wanted_share(name, share) for name in config.slo.statistics_s]
    shares = [one for one in [share if config.slo.told_ms else None, *wanted] if one is not None]
    return fewest(max(shares, default=0.5), errors.attains)


def _check(config: RunConfig, share: float, confidence: float, replications: int | None) -> None:
    if not config.slo.told_ms and not config.slo.statistics_s:
        raise ConfigError(
            "a recommendation needs an SLO: at least one limit, e.g. slo.ttft_ms or slo.ttft_p95_ms"
        )
    if config.autoscaler.kind is not None:
        raise ConfigError(
            f"autoscaler.kind is {config.autoscaler.kind}: replicas that come and go cost what the run makes "
            "of them; a recommendation compares clusters that cost the same all the time"
        )
    if not 0 < share < 1:
        raise ConfigError(
            f"share is {share:g}; a number in (0, 1) is needed, e.g. 0.9: no number of replications makes "
            "sure that all requests are good"
        )
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence:g}; a number in (0, 1) is needed, e.g. 0.95")
    if replications is not None and replications < 2:
        raise ConfigError(f"replications is {replications}; at least 2 are needed to be sure of anything")


def _verdict(one: Runner, best: Runner | None, share: float) -> tuple[str, str]:
    """Where a runner stands, and why."""
    extra = 0.0 if best is None else one.usd_per_hour - best.usd_per_hour
    more = f"costs {extra:,.2f} USD/hour more than the best" if extra > 0 else "costs as much as the best"
    if one is best:
        return "best", "the cheapest that attains the SLO"
    if one.state == "unable":
        return "cannot run", one.failure
    if not len(one.evidence):
        return "not run", f"costs more than {REACH:g} times as much as one that seems to attain"
    if one.state == "attains":
        return "attains", f"attains, and {more}"
    if one.state == "misses":
        return "misses", failing(one, share)
    if best is None or extra < 0:
        return "undecided", f"after {len(one.evidence)} replications neither is sure; {failing(one, share)}"
    if one.evidence.margin < 0:
        return "dearer", f"{more}, and seems to miss: {failing(one, share)}"
    return "dearer", f"{more}; not looked at further"


def failing(one: Runner, share: float) -> str:
    """Which requirement is furthest from being met, in words."""
    evidence = one.evidence
    name = evidence.binding
    if name == QUEUE:
        return "its queue grows in many replications"
    if name != "good":
        return f"{name} is the tightest limit"
    within = evidence.within()
    good = within.pop("all")
    metric = min(within, key=lambda metric: within[metric])
    return (
        f"{good:.1%} of the requests are good, {100 * share:.4g}% are wanted; {within[metric]:.1%} are "
        f"within the limit on {metric.upper()}"
    )
