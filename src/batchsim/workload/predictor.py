"""Where predicted output lengths come from, and how good they are.

A predictor is a small dataclass whose fields are its parameters, chosen by ``kind`` in the configuration.
Only `Oracle` hands true lengths on; the error models distort them, and `PromptRegression` never sees them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from batchsim.config import PredictorConfig
from batchsim.errors import ConfigError, nearest
from batchsim.workload.boundaries import fit_boundaries
from batchsim.workload.request import Workload

Floats = NDArray[np.float64]
Tokens = NDArray[np.int64]

#: Confusion counts of a BERT predictor on LMSYS-Chat-1M (Multi-Bin Batching, appendix C): row = true bin.
PUBLISHED_CONFUSION: Mapping[int, Sequence[Sequence[float]]] = {
    2: ((25802, 4778), (3668, 26716)),
    4: (
        (12165, 2584, 490, 178),
        (2668, 8385, 3386, 724),
        (287, 2569, 8145, 4186),
        (82, 730, 4689, 9696),
    ),
    8: (
        (5925, 1143, 410, 175, 53, 30, 13, 24),
        (1242, 3855, 1356, 643, 280, 127, 92, 49),
        (294, 1619, 3060, 1350, 601, 276, 149, 96),
        (147, 608, 1515, 2460, 1713, 796, 359, 120),
        (35, 170, 482, 1284, 2428, 1767, 1070, 251),
        (18, 64, 188, 615, 1683, 2267, 2154, 711),
        (7, 35, 110, 313, 915, 1902, 2998, 1329),
        (8, 32, 87, 220, 595, 1277, 2577, 2792),
    ),
}

_MOST_RANKED = 100_000


class Predictor(Protocol):
    """Guesses output lengths before a request runs."""

    #: Whether it is fitted on requests that are not evaluated.
    needs_training: ClassVar[bool]

    def predict(self, workload: Workload, training: Workload, boundaries: Floats, rng: Generator) -> Tokens:
        """Predict the output tokens of each request, at least 1, shape ``(num_requests,)``.

        ``boundaries`` are the inner edges of the queue's bins, empty where it has none; ``training`` may be
        empty.
        """


@dataclass(frozen=True, slots=True)
class Oracle:
    """The true length: the only predictor that sees it, so its results are an upper bound for all others."""

    needs_training: ClassVar[bool] = False

    def predict(self, workload: Workload, training: Workload, boundaries: Floats, rng: Generator) -> Tokens:
        """Copy the truth."""
        return workload.output_tokens.copy()


@dataclass(frozen=True, slots=True)
class Lognormal:
    """The true length times a lognormal factor of median 1, rounded, at least 1.

    Attributes
    ----------
    sigma
        Standard deviation of the factor's logarithm, 0 to 5.
    """

    sigma: float
    needs_training: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_range("sigma", self.sigma, 0, 5)

    def predict(self, workload: Workload, training: Workload, boundaries: Floats, rng: Generator) -> Tokens:
        """Distort every length independently."""
        factor = np.exp(self.sigma * rng.standard_normal(len(workload)))
        return np.maximum(np.rint(workload.output_tokens * factor), 1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class NeighbourBin:
    """The true bin, or one beside it (Multi-Bin Batching, section 6.2).

    An inner bin is taken for the one below and the one above with ``error_probability`` each, an outer bin
    for its only neighbour with ``error_probability``. Without bins in the queue, four of equal mass are used.
    """

    error_probability: float
    needs_training: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_range("error_probability", self.error_probability, 0, 0.5)

    def predict(self, workload: Workload, training: Workload, boundaries: Floats, rng: Generator) -> Tokens:
        """Predict a typical length of the bin."""
        edges = _edges_or_equal_mass(boundaries, training, num_bins=4)
        true_bin = _bins(workload.output_tokens, edges)
        draw = rng.random(len(workload))
        step = np.where(draw < self.error_probability, -1, np.where(draw >= 1 - self.error_probability, 1, 0))
        bins = true_bin + step
        outside = (bins < 0) | (bins > len(edges))
        return _length_in_bin(edges, training)[np.where(outside, true_bin, bins)]


@dataclass(frozen=True, slots=True)
class Confusion:
    """A bin drawn from the row of the true bin in a confusion matrix: an empirical error model.

    Attributes
    ----------
    num_bins
        2, 4 or 8: a published matrix, see `PUBLISHED_CONFUSION`; left out: as many as the queue has, or 4.
    matrix
        Or a matrix of one's own: row = true bin, column = predicted bin, counts or shares.
    """

    num_bins: int | None = None
    matrix: Sequence[Sequence[float]] | None = None
    needs_training: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_bins is not None and self.matrix is not None:
            raise ConfigError("predictor confusion has num_bins and matrix; give at most one of the two")
        self.shares()

    def shares(self, num_bins: int = 4) -> Floats:
        """Probability of each predicted bin by true bin, rows sum to 1; `ConfigError` if that cannot be.

        `num_bins` chooses the published matrix where neither field does.
        """
        given = self.matrix
        if given is None:
            num_bins = self.num_bins or num_bins
            if num_bins not in list(PUBLISHED_CONFUSION):
                raise ConfigError(
                    f"predictor confusion for {num_bins!r} bins: a matrix is built in for 2, 4 and 8 bins; "
                    "for others give predictor.matrix"
                )
            given = PUBLISHED_CONFUSION[num_bins]
        try:
            counts = np.array(given, dtype=np.float64)
        except (TypeError, ValueError):
            counts = np.empty(0)
        if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.shape[0] < 2:
            raise ConfigError(
                "predictor.matrix must be square: as many numbers in each row as rows, at least 2"
            )
        for row, values in enumerate(counts):
            if not (np.isfinite(values).all() and (values >= 0).all() and values.any()):
                raise ConfigError(
                    f"predictor.matrix, row {row + 1} is {values.tolist()}; numbers >= 0, not all 0, needed"
                )
        shares: Floats = counts / counts.sum(axis=1, keepdims=True)
        return shares

    def predict(self, workload: Workload, training: Workload, boundaries: Floats, rng: Generator) -> Tokens:
        """Predict a typical length of the bin; `ConfigError` if the queue has another number of bins."""
        shares = self.shares(len(boundaries) + 1 if len(boundaries) else 4)
        if len(boundaries) and len(boundaries) + 1 != len(shares):
            raise ConfigError(
                f"predictor confusion has {len(shares)} bins, but the queue has {len(boundaries) + 1}; "
                "both must be the same"
            )
        edges = _edges_or_equal_mass(boundaries, training, len(shares))
        up_to = np.cumsum(shares, axis=1)[:, :-1]
        draw = rng.random(len(workload))
        bins: Tokens = np.sum(draw[:, np.newaxis] >= up_to[_bins(workload.output_tokens, edges)], axis=1)
        return _length_in_bin(edges, training)[bins]


@dataclass(frozen=True, slots=True)
class PromptRegression:
    """What the prompt's length says: least squares of log output tokens on log prompt tokens.

    Fitted on the training part; predictions stay between its shortest and longest answer.
    """

    needs_training: ClassVar[bool] = True

    def predict(self, workload: Workload, training: Workload, boundaries: Floats, rng: Generator) -> Tokens:
        """Fit and predict; `ConfigError` without a training part."""
        if len(training) == 0:
            raise ConfigError(
                "predictor prompt_regression is fitted on a training part, which is empty: "
                "set workload.training_fraction above 0"
            )
        prompt, output = np.log(training.prompt_tokens), np.log(training.output_tokens)
        deviation = prompt - prompt.mean()
        spread = float(deviation @ deviation)
        slope = float(deviation @ output) / spread if spread > 0 else 0.0
        predicted = output.mean() + slope * (np.log(workload.prompt_tokens) - prompt.mean())
        tokens: Floats = np.rint(np.exp(np.clip(predicted, output.min(), output.max())))
        return tokens.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Constant:
    """The same length for all: no prediction.

    Attributes
    ----------
    tokens
        At least 1.
    """

    tokens: int
    needs_training: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, int) or isinstance(self.tokens, bool) or self.tokens < 1:
            raise ConfigError(f"predictor.tokens is {self.tokens!r}; a whole number >= 1 is needed")

    def predict(self, workload: Workload, training: Workload, boundaries: Floats, rng: Generator) -> Tokens:
        """Repeat the number."""
        return np.full(len(workload), self.tokens, dtype=np.int64)


PREDICTORS: Mapping[str, type[Predictor]] = {
    "oracle": Oracle,
    "lognormal": Lognormal,
    "neighbour_bin": NeighbourBin,
    "confusion": Confusion,
    "prompt_regression": PromptRegression,
    "constant": Constant,
}


def make_predictor(config: PredictorConfig) -> Predictor:
    """Build the predictor that a configuration names; `ConfigError` for an unknown name or parameter."""
    if config.kind not in PREDICTORS:
        raise ConfigError(f"predictor.kind is {config.kind!r}; {nearest(config.kind, PREDICTORS)}")
    kind: Any = PREDICTORS[config.kind]
    known = {item.name: item for item in fields(kind)}
    for name in config.parameters:
        if name not in known:
            raise ConfigError(f"predictor.{name} is no parameter of {config.kind}; {nearest(name, known)}")
    for name, item in known.items():
        if item.default is MISSING and name not in config.parameters:
            raise ConfigError(f"predictor.{name} is missing; {config.kind} needs it")
    predictor: Predictor = kind(**config.parameters)
    return predictor


def prediction_quality(
    true: ArrayLike, predicted: ArrayLike, boundaries: ArrayLike
) -> dict[str, float | None]:
    """Tell how good predictions are.

    Parameters
    ----------
    true, predicted
        Output tokens, shape ``(num_requests,)``.
    boundaries
        Inner edges of the bins, maybe none.

    Returns
    -------
    dict
        ``bin_accuracy`` and ``within_one_bin`` as shares, None without bins; ``kendall_tau`` (tau-b, on at
        most 100,000 evenly spaced requests), None where either side is constant.
    """
    true, predicted = np.asarray(true), np.asarray(predicted)
    edges = np.asarray(boundaries, dtype=np.float64)
    quality: dict[str, float | None] = {"bin_accuracy": None, "within_one_bin": None, "kendall_tau": None}
    if len(edges) and len(true):
        off_by = np.abs(_bins(true, edges) - _bins(predicted, edges))
        quality["bin_accuracy"] = float(np.mean(off_by == 0))
        quality["within_one_bin"] = float(np.mean(off_by <= 1))
    step = math.ceil(len(true) / _MOST_RANKED) or 1
    some_true, some_predicted = true[::step], predicted[::step]
    if len(np.unique(some_true)) > 1 and len(np.unique(some_predicted)) > 1:
        quality["kendall_tau"] = _kendall_tau(some_true, some_predicted)
    return quality


def _kendall_tau(true: NDArray[Any], predicted: NDArray[Any]) -> float:
    if np.array_equal(true, predicted):
        return 1.0
    from scipy import stats  # takes longer to load than a short run, which mostly has the oracle

    return float(stats.kendalltau(true, predicted).statistic)


def _bins(tokens: NDArray[Any], edges: Floats) -> Tokens:
    return np.searchsorted(edges, tokens, side="right").astype(np.int64)


def _edges_or_equal_mass(boundaries: Floats, training: Workload, num_bins: int) -> Floats:
    if len(boundaries):
        return boundaries
    if len(training) == 0:
        raise ConfigError(
            "the queue has no bins and the training part is empty, so the predictor has no bins to err in: "
            "set workload.training_fraction above 0"
        )
    return fit_boundaries("equal_mass", training.output_tokens, num_bins, batch_size=1)


def _length_in_bin(edges: Floats, training: Workload) -> Tokens:
    """Return one length for each bin: the (lower) median of the training lengths inside, or its least."""
    lengths = np.sort(training.output_tokens)
    cuts = [0, *np.searchsorted(lengths, edges, side="left").tolist(), len(lengths)]
    least = np.maximum(np.ceil(np.concatenate([[1], edges])), 1)
    empty = np.append(least[:-1] >= edges, False)
    if empty.any():
        raise ConfigError(
            f"no whole number of tokens lies in bin {int(np.argmax(empty)) + 1} (edges {edges.tolist()})"
        )
    return np.array(
        [
            lengths[(low + high - 1) // 2] if high > low else least[bin_]
            for bin_, (low, high) in enumerate(pairwise(cuts))
        ],
        dtype=np.int64,
    )


def _check_range(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"predictor.{name} is {value!r}; a number from {low:g} to {high:g} is needed")
