"""One rate on so many GPUs, tried: a simulation, and how far it is within the limits of the SLO."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from batchsim.config import RunConfig, WorkloadConfig
from batchsim.errors import ConfigError
from batchsim.metrics.requests import e2e_s
from batchsim.metrics.slo import judged_scores
from batchsim.metrics.statistics import t_interval
from batchsim.policies import presets
from batchsim.streams import stream
from batchsim.study.run import simulate, training_fraction
from batchsim.study.setup.hardware import AnyLatency
from batchsim.workload.load import prepare
from batchsim.workload.predictor import make_predictor
from batchsim.workload.request import Workload

#: Requests that a search takes from a trace where the configuration does not say how many.
DEFAULT_NUM_REQUESTS = 20_000
#: Fewest requests of a part.
_SMALLEST_PART = 5
#: Arrivals within this share of the mean E2E time come all at once: a higher rate changes nothing.
_AT_ONCE = 0.01


class Trial(NamedTuple):
    """One simulation of a search.

    Attributes
    ----------
    num_prefill_replicas
        Replicas that only compute prompts; 0: all do both.
    num_requests
        Simulated; fewer in a first look than in the search itself.
    binding
        The requirement with the least margin, of `metrics.slo.requirement_scores`.
    margin
        Its mean score; the trial meets all limits where that is at least 0.
    half_width
        Of the 95 % interval of the margin over the parts.
    slo_attainment
        Share of good requests; of those within the binding limit where only statistics are limited.
    verdict, verdict_reason
        Whether the queue grows, as in a summary.
    is_at_once
        Whether all requests arrive in no time, compared with what they take.
    by_part
        Margin of each part.
    workload, latency
        Their names, and whether they were measured, derived or made up.
    mean_output_tokens
        Of a request.
    usd_per_hour, prices
        What the GPUs cost, None where a price is not known; what each kind does, and who says so.
    expected_error
        How far times could be off, in words.
    e2e_mean_s
        Mean time of the requests that finished, NaN if none did; no two trials share it by chance.
    """

    request_rate_per_s: float
    num_gpus: int
    num_prefill_replicas: int
    num_requests: int
    binding: str
    margin: float
    half_width: float
    slo_attainment: float | None
    verdict: str
    verdict_reason: str
    is_at_once: bool
    by_part: tuple[float, ...]
    workload: str
    latency: str
    mean_output_tokens: float
    usd_per_hour: float | None
    prices: str | None
    expected_error: str
    e2e_mean_s: float

    @property
    def attains(self) -> bool:
        """Whether every limit is met and the queue does not grow."""
        return self.margin >= 0 and self.verdict != "saturated"

    @property
    def failure(self) -> str:
        """Why it does not attain the SLO, as the end of a sentence."""
        if self.margin >= 0:
            return f"the limits are met, but {self.verdict_reason}"
        good = "" if self.slo_attainment is None else f": {self.slo_attainment:.1%} of the requests are good"
        return f"{self.subject} misses its limit{good}"

    @property
    def subject(self) -> str:
        """The binding requirement in words."""
        return "the share of good requests" if self.binding == "good" else self.binding


class Requests(NamedTuple):
    """What a search tries: requests at any pace, those to train on first."""

    workload: Workload
    num_training: int

    def first(self, num: int) -> Requests:
        """The first so many, besides those to train on."""
        return Requests(self.workload.take(slice(0, self.num_training + num)), self.num_training)

    @property
    def num_evaluated(self) -> int:
        """Those that are not trained on."""
        return len(self.workload) - self.num_training


def requests_of(config: RunConfig, workload: Workload | None) -> Requests:
    """What is configured, at its own pace."""
    given = config.workload
    fixed = (given.rate_scale, given.request_rate_per_gpu, given.load, given.num_requests_per_gpu)
    if any(one is not None for one in fixed) or config.cluster.replicas:
        raise ConfigError(
            "a capacity is searched over request rates or numbers of equal GPUs: leave out "
            "workload.rate_scale, workload.request_rate_per_gpu, workload.load, "
            "workload.num_requests_per_gpu and cluster.replicas"
        )
    is_generated = workload is None and given.generator is not None
    unpaced = given.model_copy(
        update={"request_rate": None, "num_requests": given.num_requests if is_generated else None}
    )
    _, everything = prepare(unpaced, config.cluster.num_gpus, stream(config.seed, "workload"), workload)
    fraction = training_fraction(config, presets.build(config.policy), make_predictor(config.predictor))
    num_training = max(1, round(fraction * len(everything))) if fraction else 0
    num_left = len(everything) - num_training
    num = num_left if is_generated else min(num_left, given.num_requests or DEFAULT_NUM_REQUESTS)
    return Requests(everything, num_training).first(num)


class Trials:
    """Makes trials of one configuration, and remembers them.

    Attributes
    ----------
    done
        All simulations, in the order in which they ran.
    """

    def __init__(
        self,
        config: RunConfig,
        latency: AnyLatency | None,
        share: float,
        num_parts: int,
        on_trial: Callable[[Trial], None] | None,
        *,
        is_split_open: bool = False,
    ) -> None:
        self.done: list[Trial] = []
        self._config = config
        self._latency = latency
        self._share = share
        self._num_parts = num_parts
        self._on_trial = on_trial
        self._is_split_open = is_split_open
        self._prefill_share = 0.5  # of the replicas, where it was best last

    def attempt(self, requests: Requests, rate_per_s: float, num_gpus: int) -> Trial:
        """Simulate the requests at this pace; of open splits into pools, the one with the best margin.

        The warm-up is left out of what is judged. With more replicas that compute prompts, more of them wait
        for too few that decode, and the other way round: so the best split is climbed to from where it was
        last.
        """
        if not self._is_split_open:
            return self._simulate(requests, rate_per_s, num_gpus, self._config.cluster.num_prefill_replicas)
        num_replicas = num_gpus // self._config.cluster.gpus_per_replica

        @cache
        def split(num: int) -> Trial:
            return self._simulate(requests, rate_per_s, num_gpus, num)

        best = min(max(round(self._prefill_share * num_replicas), 1), num_replicas - 1)
        while not split(best).attains:
            near = [num for num in (best - 1, best + 1) if 0 < num < num_replicas]
            better = max((best, *near), key=lambda num: (split(num).attains, split(num).margin))
            if better == best:
                break
            best = better
        self._prefill_share = best / num_replicas
        return split(best)

    def _simulate(
        self, requests: Requests, rate_per_s: float, num_gpus: int, num_prefill_replicas: int
    ) -> Trial:
        fraction = requests.num_training / len(requests.workload)
        config = self._config.model_copy(
            update={
                "workload": WorkloadConfig(request_rate=rate_per_s, training_fraction=fraction),
                "cluster": self._config.cluster.model_copy(
                    update={
                        "num_gpus": num_gpus,
                        "num_replicas": None,
                        "num_prefill_replicas": num_prefill_replicas,
                    }
                ),
            }
        )
        result = simulate(config, requests.workload, latency=self._latency)
        summary = result.summary
        covered = result.requests.iloc[int(summary["num_warmup"]) :]
        scores = judged_scores(covered, config.slo, self._share)
        binding = min(scores, key=lambda name: scores[name].mean())
        num_parts = max(1, min(self._num_parts, len(covered) // _SMALLEST_PART))
        by_part = [float(part.mean()) for part in np.array_split(scores[binding], num_parts)]
        arrivals_s, e2e_mean_s = result.requests["arrival_s"], float(e2e_s(result.requests).mean())
        trial = Trial(
            rate_per_s,
            num_gpus,
            num_prefill_replicas,
            requests.num_evaluated,
            binding,
            float(scores[binding].mean()),
            t_interval(by_part).half_width,
            summary["slo_attainment"],
            str(summary["verdict"]),
            str(summary["verdict_reason"]),
            bool(arrivals_s.max() - arrivals_s.min() < _AT_ONCE * e2e_mean_s),
            tuple(by_part),
            f"{summary['workload']} ({summary['workload_kind']})",
            f"{summary['latency_model']} ({summary['latency_provenance']})",
            float(result.requests["output_tokens"].mean()),
            summary["usd_per_hour"],
            summary["prices"],
            str(summary["expected_error"]),
            e2e_mean_s,
        )
        self.done.append(trial)
        if self._on_trial is not None:
            self._on_trial(trial)
        return trial
