"""The parts of a forward pass, told from the operators that the engine of `aiconfigurator-core` lists.

The package adds up operators of one forward pass. In a pass with prompts they follow the tokens of prompts
and decodes together, except attention, which it has apart for prompts and for decodes. Which operators are
attention is told by what they follow: the tokens before a chunk, the context of decodes. Where attention
and projections are one operator (MLA), the package leaves the decodes' context out of passes that also have
prompts; here both count as they do in passes of their own. It knows neither how uneven contexts are nor
CUDA graphs, and its energy is 0 in all tables that its release 0.12.0 has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

#: Sources of times that are tables of measurements, at least in part; all others are formulas.
_MEASURED = ("silicon", "mixed")
#: Share of a pass from which on times that nobody measured make the model doubtful.
_DOUBTFUL_SHARE = 0.25
#: Passes whose sources are told: tokens of a prompt; decodes and the context of each.
_PROMPT_TOKENS, _DECODES, _CONTEXT = 2048, 64, 2048

Operators = Sequence[tuple[str, float, float, str]]  # name, milliseconds, millijoules, source


class OperatorEstimator:
    """Parts of a pass, from the operators that the package's engine tells; see `PassEstimator`."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        prompt, after = self._prompt(1, _PROMPT_TOKENS, 0), self._prompt(1, _PROMPT_TOKENS, _CONTEXT)
        decode, longer = self._decode(_DECODES, _CONTEXT), self._decode(_DECODES, 4 * _CONTEXT)
        self.prefill_attention = _differing(prompt, after)
        self.decode_attention = _differing(decode, longer)
        self._passes = {"prompt pass": prompt, "decode pass": decode}
        names = [name for operators in self._passes.values() for name, *_ in operators]
        self.words = {word for name in names for word in name.split("_")}

    def tokens_s(self, tokens: int) -> float:
        """All but attention, in a pass that has prompts."""
        return _seconds(self._prompt(1, tokens, 0), without=self.prefill_attention)

    def decodes_s(self, decode_seqs: int) -> float:
        """All but attention, in a pass of decodes alone."""
        return _seconds(self._decode(decode_seqs, _CONTEXT), without=self.decode_attention)

    def prefill_s(self, num_prompts: int, chunk: int, before: int) -> float:
        """Attention of prompts."""
        return _seconds(self._prompt(num_prompts, chunk, before), only=self.prefill_attention)

    def decode_s(self, decode_seqs: int, context: int) -> float:
        """Attention of decodes."""
        return _seconds(self._decode(decode_seqs, context), only=self.decode_attention)

    def sources(self) -> dict[str, dict[str, float]]:
        """Share of the time of a pass by where it comes from."""
        return {name: _shares(operators, 3) for name, operators in self._passes.items()}

    def gives_energy(self) -> bool:
        """Whether any operator has an energy; tables without a column of power have none."""
        return any(energy for operators in self._passes.values() for _, _, energy, _ in operators)

    def doubts(self) -> list[str]:
        """A sentence on each pass that formulas tell rather than measurements."""
        return [
            f"{share:.0%} of a {name} is estimated, not measured"
            for name, shares in self.sources().items()
            if (share := sum(one for source, one in shares.items() if source not in _MEASURED))
            >= _DOUBTFUL_SHARE
        ]

    def _prompt(self, num_prompts: int, chunk: int, before: int) -> Operators:
        operators: tuple[Operators, Operators] = self._engine.run_static_per_op(
            batch_size=num_prompts, isl=before + chunk, osl=1, prefix=before, mode="static_ctx"
        )
        return operators[0]

    def _decode(self, decode_seqs: int, context: int) -> Operators:
        # An answer of no tokens: the token that is decoded comes after all of the prompt's.
        operators: Operators = self._engine.decode_step_per_op(decode_seqs, max(1, context - 1), 0)
        return operators


def _differing(one: Operators, other: Operators) -> frozenset[str]:
    times_ms = {name: time_ms for name, time_ms, *_ in one}
    return frozenset(name for name, time_ms, *_ in other if times_ms[name] != time_ms)


def _seconds(
    operators: Operators, only: frozenset[str] | None = None, without: frozenset[str] = frozenset()
) -> float:
    return (
        sum(
            time_ms
            for name, time_ms, *_ in operators
            if (only is None or name in only) and name not in without
        )
        / 1000
    )


def _shares(operators: Operators, which: int) -> dict[str, float]:
    times_ms: Counter[str] = Counter()
    for operator in operators:
        times_ms[str(operator[which])] += operator[1]  # type: ignore[assignment]
    total_ms = sum(times_ms.values())
    return {name: round(time_ms / total_ms, 3) for name, time_ms in times_ms.most_common()}
