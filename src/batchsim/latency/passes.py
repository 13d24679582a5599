"""An iteration model of four tables that add up to the time of a forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchsim.errors import ConfigError
from batchsim.latency.base import (
    BatchShape,
    BatchTime,
    DecodeLine,
    Domain,
    IterationShape,
    LatencyInfo,
    padded_batch_time,
)
from batchsim.latency.operators import OperatorTable, check_table, look_up
from batchsim.latency.tables.iteration_grid import DecodeRow, along, decode_row, line_of, too_far

#: The tables of the model, and what their axes count.
PASS_TABLES = {
    "by_tokens": ("tokens",),
    "by_decodes": ("sequences",),
    "prefill": ("prompts", "chunk", "tokens before it"),
    "decode": ("sequences", "mean context"),
}


@dataclass(frozen=True, slots=True)
class PassTableLatency:
    """What follows the tokens of a pass, plus attention of its prompts, plus attention of its decodes.

    Seconds of whole passes, all layers together; linear between the points. Below the first point of an axis
    the time is that of the first point, beyond the last the outer cells go on.

    Attributes
    ----------
    by_tokens
        All but attention, over prompt tokens and decodes, in a pass that has prompts.
    by_decodes
        The same in a pass of decodes alone, for which engines have other kernels.
    prefill
        Attention of prompts over their number, the tokens of each in the pass, and those before them. Chunks
        that differ count as so many of their mean, after as many tokens as give them their pairs.
    decode
        Attention of decodes over their number and mean context.
    by_prompt_tokens
        What of the attention of prompts follows their tokens, whatever is before them. With it ``prefill`` is
        over their number and the tokens up to the end of each, and counts by the share of their pairs that
        the chunk has.
    domain
        The range of whole batches; that of iterations is where all tables have points.
    """

    by_tokens: OperatorTable
    by_decodes: OperatorTable
    prefill: OperatorTable
    decode: OperatorTable
    domain: Domain = field(default_factory=Domain)
    info: LatencyInfo = field(default_factory=lambda: LatencyInfo("passes", "derived"))
    by_prompt_tokens: OperatorTable | None = None
    _rows: dict[int, DecodeRow] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, axes in PASS_TABLES.items():
            if name != "prefill" or self.by_prompt_tokens is None:
                check_table(name, getattr(self, name), axes)
        if self.by_prompt_tokens is not None:
            check_table("prefill", self.prefill, ("prompts", "tokens up to their end"))
            check_table("by_prompt_tokens", self.by_prompt_tokens, ("prompt tokens",))
        if self.info.provenance == "measured":
            raise ConfigError(
                "a sum of tables is computed, not measured; its provenance must be derived or synthetic"
            )

    @property
    def is_bounded(self) -> bool:
        """Tables: they end somewhere."""
        return True

    def covers(self, shape: IterationShape) -> bool:
        """Whether no axis of the tables that tell of the shape ends before it."""
        prefill_tokens, decode_seqs, context_tokens = shape[:3]
        seqs, context = self.decode.axes
        if decode_seqs > seqs[-1] or context_tokens > context[-1] * decode_seqs:
            return False
        if not prefill_tokens:
            return decode_seqs <= self.by_decodes.axes[0][-1]
        num_prompts, chunk, before = _prompts(shape)
        at: tuple[float, ...] = (num_prompts, chunk, before)
        if self.by_prompt_tokens is not None:
            if prefill_tokens > self.by_prompt_tokens.axes[0][-1]:
                return False
            at = (num_prompts, chunk + before)
        is_inside = all(value <= axis[-1] for value, axis in zip(at, self.prefill.axes, strict=True))
        return is_inside and prefill_tokens + decode_seqs <= self.by_tokens.axes[0][-1]

    def batch_time(self, shape: BatchShape) -> BatchTime:
        """Seconds to the first token and to the end of the batch; its prefill is one pass, without chunks."""
        return padded_batch_time(self, shape)

    def iteration_s(self, shape: IterationShape) -> float:
        """Seconds for one forward pass.

        Raises
        ------
        ConfigError
            Outside the tables, where their slope leads below zero.
        """
        prefill_tokens, decode_seqs, context_tokens = shape[:3]
        if not prefill_tokens:
            return self.decode_line(decode_seqs, context_tokens).first_s
        time_s = self.tokens_s(prefill_tokens + decode_seqs)
        time_s += self._prefill_s(shape)
        if decode_seqs:
            time_s += look_up(self.decode, (decode_seqs, context_tokens / decode_seqs))
        if time_s <= 0:
            raise too_far(self.info, shape, time_s, "the tables")
        return time_s

    def decode_line(self, decode_seqs: int, context_tokens: int) -> DecodeLine:
        """Seconds of the following decode iterations, up to the next point of the mean context.

        Raises
        ------
        ConfigError
            As `iteration_s`.
        """
        row = self._rows.get(decode_seqs) or self._row(decode_seqs)
        first_s, slope_s, num_linear = along(row, decode_seqs, context_tokens)
        if first_s <= 0:
            raise too_far(self.info, IterationShape(0, decode_seqs, context_tokens), first_s, "the tables")
        return line_of(first_s, slope_s, num_linear, decode_seqs)

    def tokens_s(self, tokens: int) -> float:
        """What follows the tokens of a pass that has prompts."""
        return look_up(self.by_tokens, (tokens,))

    def _prefill_s(self, shape: IterationShape) -> float:
        """Attention of the prompts of a pass."""
        num_prompts, chunk, before = _prompts(shape)
        if self.by_prompt_tokens is None:
            return look_up(self.prefill, (num_prompts, chunk, before))
        end = chunk + before
        pairs_s = share_of_pairs(chunk, end) * look_up(self.prefill, (num_prompts, end))
        return look_up(self.by_prompt_tokens, (shape.prefill_tokens,)) + pairs_s

    def _row(self, decode_seqs: int) -> DecodeRow:
        beside_s = look_up(self.by_decodes, (decode_seqs,))
        row = self._rows[decode_seqs] = decode_row(
            [
                (decode_seqs * mean, beside_s + look_up(self.decode, (decode_seqs, mean)))
                for mean in self.decode.axes[1]
            ]
        )
        return row


def share_of_pairs(chunk: float, end: float) -> float:
    """Of the pairs of all tokens up to an end, those of the last so many."""
    return chunk * (2 * end - chunk) / end**2


def _prompts(shape: IterationShape) -> tuple[int, float, float]:
    """Prompts of a pass, the mean of their chunks, and the tokens before them that give them their pairs."""
    num_prompts = shape.prefill_seqs or 1
    chunk = shape.prefill_tokens / num_prompts
    return num_prompts, chunk, shape.prefill_pairs / shape.prefill_tokens - chunk / 2
