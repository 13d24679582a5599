"""How many tokens go to the GPU that most of them go to, where GPUs hold whole experts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist

from batchsim.specs import ModelSpec


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """What the fullest of some GPUs has to do in a layer, if each token chooses its experts as by lot.

    The pairs of a token and an expert on one of ``num_gpus`` have the mean ``tokens * k / n`` and, as the
    ``k`` experts of a token differ (a hypergeometric draw), the variance ``tokens * k / n * (1 - 1 / n) * (E
    - k) / (E - 1)``. They are taken as normal; what one GPU has more, others have less, which spreads them by
    ``n / (n - 1)``. Of ``n`` normal values the largest is expected ``Phi^-1((n - 3/8) / (n + 1/4))`` standard
    deviations above the mean (Blom 1958). Experts that are reached likewise, each with a chance ``p`` of its
    own and the variance ``p (1 - p)``. Real tokens prefer some experts: this is the least that is to be
    expected, unless hot experts are copied.
    """

    model: ModelSpec
    num_gpus: int
    _above: float = field(init=False, repr=False)  # standard deviations, of values whose sum is given
    _load_sd: float = field(init=False, repr=False)  # of one token, as a share of the mean
    _most: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        gpus, experts, each = self.num_gpus, self.model.num_experts, self.model.experts_per_token
        above = load_sd = 0.0
        most = 1.0
        if gpus > 1 and experts:
            above = NormalDist().inv_cdf((gpus - 0.375) / (gpus + 0.25)) * math.sqrt(gpus / (gpus - 1))
            mean = each / gpus
            load_sd = math.sqrt(mean * (1 - 1 / gpus) * (experts - each) / max(experts - 1, 1)) / mean
            most = min(each, experts / gpus) / mean
        for name, value in (("_above", above), ("_load_sd", load_sd), ("_most", most)):
            object.__setattr__(self, name, value)

    def load(self, tokens: float) -> float:
        """Tokens of the fullest GPU, as a multiple of the mean."""
        if tokens <= 0:
            return 1.0
        return min(1 + self._above * self._load_sd / math.sqrt(tokens), self._most)

    def reached(self, tokens: float) -> float:
        """Experts that the GPU with most of them reads, times the number of GPUs."""
        experts = self.model.num_experts
        reached = self.model.reached_experts(tokens)
        if not self._above:
            return reached
        chance = reached / experts
        more = self._above * math.sqrt(experts / self.num_gpus * chance * (1 - chance)) * self.num_gpus
        return min(reached + more, experts)
