"""How many may run together? Sizers set the largest batch; memory is enforced besides, for all alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from batchsim.errors import ConfigError
from batchsim.policies.base import Setting, Sizer
from batchsim.policies.building_blocks import Answer
from batchsim.policies.parts.overflow import Lengths, largest_batch, normal_quantile
from batchsim.policies.parts.parameters import MOST, is_whole
from batchsim.policies.reports import BatchReport, Decision, IterationReport


@dataclass(slots=True)
class FixedSize(Answer):
    """Always the same limit."""

    size: int = 8

    def __post_init__(self) -> None:
        _check_whole("size", self.size)

    @property
    def max_batch_size(self) -> int:
        """The limit."""
        return self.size

    @property
    def adapts(self) -> bool:
        """Never."""
        return False

    def prepare(self, setting: Setting) -> None:
        """Nothing to set up."""

    def batch_size(self, bin_: int, num_decoding: int = 0) -> int:
        """The limit."""
        return self.size

    def observe(self, report: BatchReport) -> Sequence[Decision]:
        """Nothing to learn."""
        return ()

    def observe_iterations(self, report: IterationReport) -> Sequence[Decision]:
        """Nothing to learn."""
        return ()

    def iterations_to_decision(self) -> float:
        """It decides nothing."""
        return math.inf


@dataclass(slots=True)
class MemoryAware(Answer):
    """As many as keep the chance of outgrowing KV memory small: Algorithm 1 of arXiv 2503.05248.

    Lengths are learnt from the training part and from batches that ended; until `min_requests` are known the
    limit is `max_batch_size`. Variance is that of prompt + output, so their correlation counts. The printed
    gate (recompute only while requests both wait and decode) is left out: the limit is looked at only while
    requests wait. Where batches run to completion nothing decodes when one is sized, and `num_decoding` is
    zero.

    Attributes
    ----------
    overflow_probability
        epsilon_M, in (0, 0.5].
    rule
        ``clt``: the exact root (`largest_batch`). ``clt_linear``: ``(capacity - buffer) / mean`` with the
        corrected buffer ``capacity - b* x mean``, held between refreshes. ``as_printed``: the paper's buffer
        at the current size, which grows without bound; kept to show just that.
    refresh_every
        Batches between refreshes of the buffer.
    per_bin
        One state per bin, or one for all.
    """

    overflow_probability: float = 0.05
    rule: Literal["clt", "clt_linear", "as_printed"] = "clt"
    max_batch_size: int = 256
    refresh_every: int = 50
    min_requests: int = 30
    per_bin: bool = False
    _capacity_tokens: int = field(default=0, init=False, repr=False, compare=False)
    _lengths: list[Lengths] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.overflow_probability <= 0.5:
            raise ConfigError(
                f"overflow_probability is {self.overflow_probability!r}; a number in (0, 0.5] is needed"
            )
        if self.rule not in ("clt", "clt_linear", "as_printed"):
            raise ConfigError(f"rule is {self.rule!r}; 'clt', 'clt_linear' or 'as_printed' is needed")
        _check_whole("max_batch_size", self.max_batch_size)
        _check_whole("refresh_every", self.refresh_every)
        _check_whole("min_requests", self.min_requests)
        _check_bool("per_bin", self.per_bin)

    @property
    def adapts(self) -> bool:
        """With every batch."""
        return True

    def prepare(self, setting: Setting) -> None:
        """Take the capacity and the training lengths."""
        self._capacity_tokens = setting.kv_capacity_tokens
        self._lengths = [Lengths() for _ in range(setting.num_bins if self.per_bin else 1)]
        totals = setting.training_prompt_tokens + setting.training_output_tokens
        for bin_, lengths in enumerate(self._lengths):
            lengths.add((totals[setting.training_bins == bin_] if self.per_bin else totals).tolist())
            self._resize(lengths)

    def batch_size(self, bin_: int, num_decoding: int = 0) -> int:
        """The rule's limit, not below what already runs."""
        return min(max(self._state(bin_).size, num_decoding, 1), self.max_batch_size)

    def observe(self, report: BatchReport) -> Sequence[Decision]:
        """Learn the lengths of a batch that ended."""
        lengths = self._state(report.bin)
        lengths.add(report.total_tokens)
        lengths.num_batches += 1
        self._resize(lengths)
        return ()

    def observe_iterations(self, report: IterationReport) -> Sequence[Decision]:
        """Learn the lengths of requests that ended."""
        if not report.total_tokens:
            return ()
        lengths = self._state(0)
        size = lengths.size
        lengths.add(report.total_tokens)
        lengths.num_batches += 1
        self._resize(lengths)
        if lengths.size == size:
            return ()
        return (Decision("memory_aware", -1, self.batch_size(0), math.nan, math.nan, math.nan),)

    def iterations_to_decision(self) -> float:
        """It decides when requests end."""
        return math.inf

    def _state(self, bin_: int) -> Lengths:
        return self._lengths[bin_ if self.per_bin else 0]

    def _resize(self, lengths: Lengths) -> None:
        if lengths.num < self.min_requests:
            lengths.size = self.max_batch_size
            return
        root = largest_batch(self._capacity_tokens, lengths.mean, lengths.std, self.overflow_probability)
        if self.rule == "clt":
            lengths.size = math.floor(root)
            return
        if lengths.num_batches % self.refresh_every == 0:
            if self.rule == "clt_linear":
                held_tokens = root * lengths.mean
            else:
                theta = normal_quantile(1 - self.overflow_probability)
                # Before the first batch there is no size to print a buffer for: start from the exact root.
                size = lengths.size or math.floor(root)
                held_tokens = theta * lengths.std * math.sqrt(size) + size * lengths.mean
            lengths.buffer_tokens = self._capacity_tokens - held_tokens
        lengths.size = math.floor((self._capacity_tokens - lengths.buffer_tokens) / lengths.mean)


@dataclass(slots=True)
class _Window:
    """The interval a `SloFeedback` searches, and the measurements since its last decision."""

    low: float
    high: float
    size: int
    latencies_s: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    elapsed_s: float = 0.0
    num_iterations: int = 0
    num_tokens: int = 0


@dataclass(slots=True)
class SloFeedback(Answer):
    """As many as keep a measured latency at its limit: Algorithm 2 of arXiv 2503.05248.

    With recent means ``tau`` (latency) and ``b`` (batch size): above the band the window ``[low, high]``
    moves its top to ``max(b, low + alpha)`` and its bottom down by ``delta``; below the band the mirror
    image; inside it closes to ``b +- floor(alpha / 2)``. The limit is the middle of the window. The paper
    gives no parameter values.

    A band wider than the latency can vary makes the inside case permanent and the limit a one-way ratchet
    (fault D10 of the seed); the default band is 5 % of the target.

    Attributes
    ----------
    metric
        ``per_token``: time between tokens of the batch, ``(total - first token) / (output - 1)``, or total /
        output where the model knows no first token; ``e2e``: time from arrival to end of the member that
        waited longest.
    target_s
        D_SLA in seconds; left out: the run's SLO on that metric (``tpot`` or ``e2e``), else
        `DEFAULT_TARGET_S`.
    tolerance
        epsilon_D as a share of the target.
    alpha, delta
        Smallest width of the window; how fast its other end re-opens. Left out: 16, or a quarter of what lies
        between the limits if that is less, and a quarter of alpha. An alpha beyond the limits starves: below
        the band, the window then closes on sizes under `min_batch_size`.
    measure_batches
        Batches whose means make one decision.
    measure_iterations
        The same where engines batch at every iteration: decode iterations, prefills that stalled them
        included in their time. There only ``per_token`` can be measured.
    per_bin
        One window per bin, or one for all.
    """

    metric: Literal["per_token", "e2e"] = "per_token"
    target_s: float | None = None
    tolerance: float = 0.05
    alpha: int | None = None
    delta: int | None = None
    min_batch_size: int = 1
    max_batch_size: int = 256
    measure_batches: int = 1
    measure_iterations: int = 20
    per_bin: bool = False
    _target_s: float = field(default=math.nan, init=False, repr=False, compare=False)
    _alpha: int = field(default=0, init=False, repr=False, compare=False)
    _delta: int = field(default=0, init=False, repr=False, compare=False)
    _windows: list[_Window] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.metric not in DEFAULT_TARGET_S:
            raise ConfigError(f"metric is {self.metric!r}; 'per_token' or 'e2e' is needed")
        if self.target_s is not None and not 0 < self.target_s < math.inf:
            raise ConfigError(f"target_s is {self.target_s!r}; seconds > 0 are needed")
        if not 0 <= self.tolerance < 1:
            raise ConfigError(f"tolerance is {self.tolerance!r}; a share in [0, 1) is needed")
        for name in ("min_batch_size", "max_batch_size", "measure_batches", "measure_iterations"):
            _check_whole(name, getattr(self, name))
        if self.alpha is not None:
            _check_whole("alpha", self.alpha)
        if self.delta is not None:
            _check_whole("delta", self.delta, least=0)
        _check_bool("per_bin", self.per_bin)
        if self.min_batch_size > self.max_batch_size:
            raise ConfigError(
                f"min_batch_size is {self.min_batch_size}, above max_batch_size {self.max_batch_size}"
            )

    @property
    def adapts(self) -> bool:
        """With every batch."""
        return True

    def prepare(self, setting: Setting) -> None:
        """Open the window wide and find the target."""
        slo_s = setting.slo_tpot_s if self.metric == "per_token" else setting.slo_e2e_s
        self._target_s = self.target_s or slo_s or DEFAULT_TARGET_S[self.metric]
        low, high = self.min_batch_size, self.max_batch_size
        self._alpha = max(1, min(16, (high - low) // 4)) if self.alpha is None else self.alpha
        self._delta = max(1, self._alpha // 4) if self.delta is None else self.delta
        num_windows = setting.num_bins if self.per_bin else 1
        self._windows = [_Window(low, high, (low + high) // 2) for _ in range(num_windows)]

    def batch_size(self, bin_: int, num_decoding: int = 0) -> int:
        """The middle of the window, not below what already runs."""
        return min(max(self._window(bin_).size, num_decoding, 1), self.max_batch_size)

    def observe(self, report: BatchReport) -> Sequence[Decision]:
        """Measure a batch; decide when enough were measured."""
        latency_s = self._measured_s(report)
        if latency_s is None:
            return ()
        window = self._window(report.bin)
        window.latencies_s.append(latency_s)
        window.sizes.append(report.batch_size)
        if len(window.sizes) < self.measure_batches:
            return ()
        tau_s = sum(window.latencies_s) / len(window.latencies_s)
        self._decide(window, tau_s, sum(window.sizes) / len(window.sizes))
        window.latencies_s.clear()
        window.sizes.clear()
        bin_ = report.bin if self.per_bin else -1
        return (Decision("slo_feedback", bin_, window.size, window.low, window.high, tau_s),)

    def observe_iterations(self, report: IterationReport) -> Sequence[Decision]:
        """Measure decode iterations; decide when enough were measured."""
        window = self._window(0)
        if not report.num_decoding:
            return ()
        window.elapsed_s += report.duration_s
        if report.num_sequences:
            window.num_iterations += report.num_iterations
            window.num_tokens += report.num_iterations * report.num_sequences
        num = window.num_iterations
        if num < self.measure_iterations:
            return ()
        tau_s = window.elapsed_s / num
        self._decide(window, tau_s, window.num_tokens / num)
        window.elapsed_s, window.num_iterations, window.num_tokens = 0.0, 0, 0
        return (Decision("slo_feedback", -1, window.size, window.low, window.high, tau_s),)

    def iterations_to_decision(self) -> float:
        """What the window still lacks."""
        return self.measure_iterations - self._window(0).num_iterations

    def _decide(self, window: _Window, tau_s: float, mean_size: float) -> None:
        """Algorithm 2 verbatim; right-hand sides use the old window."""
        low, high = window.low, window.high
        if tau_s > self._target_s * (1 + self.tolerance):
            window.high = max(mean_size, low + self._alpha)
            window.low = max(low - self._delta, self.min_batch_size)
        elif tau_s < self._target_s * (1 - self.tolerance):
            window.low = min(mean_size, high - self._alpha)
            window.high = min(high + self._delta, self.max_batch_size)
        else:
            window.high = min(mean_size + self._alpha // 2, self.max_batch_size)
            window.low = max(mean_size - self._alpha // 2, self.min_batch_size)
        window.size = min(math.floor((window.low + window.high) / 2), self.max_batch_size)

    def _measured_s(self, report: BatchReport) -> float | None:
        if self.metric == "e2e":
            return report.worst_e2e_s
        if math.isnan(report.first_token_s):
            return report.total_s / report.output_tokens
        if report.output_tokens == 1:
            return None  # one token has no time between tokens
        return (report.total_s - report.first_token_s) / (report.output_tokens - 1)

    def _window(self, bin_: int) -> _Window:
        return self._windows[bin_ if self.per_bin else 0]


#: Targets where neither the sizer nor the run names one. 20 ms a token bites at some hundred sequences on the
#: packaged default GPU; 20 s is the seed study's limit.
DEFAULT_TARGET_S = {"per_token": 0.02, "e2e": 20.0}


@dataclass(slots=True)
class Smallest(Answer):
    """The smallest limit of several sizers (the papers combine ``min(memory, SLO)``)."""

    of: tuple[Sizer, ...]

    def __post_init__(self) -> None:
        if not self.of:
            raise ConfigError("Smallest needs at least one sizer")

    @property
    def max_batch_size(self) -> int:
        """The smallest of the largest."""
        return min(sizer.max_batch_size for sizer in self.of)

    @property
    def adapts(self) -> bool:
        """If any of them does."""
        return any(sizer.adapts for sizer in self.of)

    def prepare(self, setting: Setting) -> None:
        """Prepare each."""
        for sizer in self.of:
            sizer.prepare(setting)

    def batch_size(self, bin_: int, num_decoding: int = 0) -> int:
        """The smallest limit."""
        return min(sizer.batch_size(bin_, num_decoding) for sizer in self.of)

    def observe(self, report: BatchReport) -> Sequence[Decision]:
        """Let each learn."""
        return [decision for sizer in self.of for decision in sizer.observe(report)]

    def observe_iterations(self, report: IterationReport) -> Sequence[Decision]:
        """Let each learn."""
        return [decision for sizer in self.of for decision in sizer.observe_iterations(report)]

    def iterations_to_decision(self) -> float:
        """The next decision of any."""
        return min(sizer.iterations_to_decision() for sizer in self.of)


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; true or false is needed")


def _check_whole(name: str, value: object, least: int = 1) -> None:
    if not is_whole(value, least):
        raise ConfigError(f"{name} is {value!r:.40}; a whole number >= {least} is needed, up to {MOST}")
