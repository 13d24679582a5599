"""A real engine: one forward pass per iteration, for prompt chunks and decoding sequences together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from batchsim.errors import PlanError
from batchsim_calibration.serving.attention import ChunkPlan, PassPlan, chunk_mask
from batchsim_calibration.serving.cache import SlotCache
from batchsim_calibration.serving.models import LoadedModel


class Chunk(NamedTuple):
    """Tokens of a prompt that follow what a slot holds.

    Attributes
    ----------
    token_ids
        int64, one-dimensional, on any device.
    completes
        Whether the prompt ends with them, so that the pass yields the first token of the answer.
    """

    slot: int
    token_ids: torch.Tensor
    completes: bool


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device has no memory left; a CPU's allocator, and CUDA's libraries, have no class for it."""
    said = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in str(error) for words in said)


class Engine:
    """A model and a KV cache of slots, which the caller gives to sequences.

    All tokens of a pass go through the linear layers together, as in vLLM. The rows of the sequences that
    decode are kept side by side, so that their attention is one call over plain views: who starts or stops
    decoding costs one exchange of rows, in the pass that follows.

    Parameters
    ----------
    num_slots, max_tokens
        Sequences that the cache has room for, and tokens of each.
    """

    def __init__(self, loaded: LoadedModel, *, num_slots: int, max_tokens: int) -> None:
        self.num_slots = num_slots
        self.max_tokens = max_tokens
        self.device = loaded.device
        self.vocab_size = loaded.vocab_size
        self._model = loaded.model
        self._cache = SlotCache(loaded.model.config, num_slots, max_tokens, loaded.model.dtype, loaded.device)
        self._lengths = [0] * num_slots
        self._last_token: list[int | None] = [None] * num_slots
        self._row_of = list(range(num_slots))
        self._slot_in = list(range(num_slots))

    @property
    def lengths(self) -> Sequence[int]:
        """KV tokens that each slot holds."""
        return tuple(self._lengths)

    def clear(self, slot: int) -> None:
        """Let a slot hold nothing."""
        self._lengths[slot] = 0
        self._last_token[slot] = None

    def pretend(self, slot: int, num_tokens: int) -> None:
        """Let a slot hold so many tokens of arbitrary KV: what a pass takes does not depend on it."""
        if not 0 < num_tokens < self.max_tokens:
            raise PlanError(
                f"slot {slot} cannot hold {num_tokens} tokens and one more; {self.max_tokens} fit"
            )
        self._lengths[slot] = num_tokens
        self._last_token[slot] = 1

    @torch.inference_mode()
    def step(self, chunks: Sequence[Chunk], decode_slots: Sequence[int]) -> dict[int, int]:
        """Run one forward pass; return once the device is done.

        Parameters
        ----------
        chunks
            At most one per slot, none of a slot that decodes.
        decode_slots
            Slots whose prompt is complete: each stores its last token and yields the next.

        Returns
        -------
        dict
            The most likely next token of each slot that decodes or whose prompt completes.

        Raises
        ------
        PlanError
            If a slot is named twice, has no room, has no complete prompt to decode from, or nothing is asked.
        """
        self._check(chunks, decode_slots)
        self._gather_rows(decode_slots)
        decode_slots = self._slot_in[: len(decode_slots)]  # the same, in the order of their rows
        plan, last_of_slot = self._plan(chunks, decode_slots)
        device = self.device
        decoded = torch.tensor([self._last_token[slot] for slot in decode_slots], dtype=torch.int64)
        token_ids = torch.cat([decoded.to(device), *(chunk.token_ids.to(device) for chunk in chunks)])
        output = self._model(
            input_ids=token_ids[None],
            position_ids=self._cache.places.positions[None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor(list(last_of_slot.values()), dtype=torch.int64, device=device),
            plan=plan,
        )
        # Reading the tokens waits for the device, as an engine must; where there are none, it is told to.
        tokens = output.logits[0].argmax(-1).tolist()
        if not tokens and device.type == "cuda":
            torch.cuda.synchronize(device)
        for slot in decode_slots:
            self._lengths[slot] += 1
        for chunk in chunks:
            self._lengths[chunk.slot] += len(chunk.token_ids)
        next_tokens = dict(zip(last_of_slot, tokens, strict=True))
        for slot, token in next_tokens.items():
            self._last_token[slot] = token
        return next_tokens

    def _check(self, chunks: Sequence[Chunk], decode_slots: Sequence[int]) -> None:
        slots = [*decode_slots, *(chunk.slot for chunk in chunks)]
        if not slots or len(set(slots)) < len(slots):
            raise PlanError(f"slots {slots} cannot share a pass; at least one is needed, each named once")
        for slot in decode_slots:
            if self._last_token[slot] is None:
                raise PlanError(f"slot {slot} cannot decode: its prompt is not complete")
        added = dict.fromkeys(decode_slots, 1) | {chunk.slot: len(chunk.token_ids) for chunk in chunks}
        for slot, num_tokens in added.items():
            if not num_tokens or self._lengths[slot] + num_tokens > self.max_tokens:
                raise PlanError(
                    f"slot {slot} holds {self._lengths[slot]} of at most {self.max_tokens} tokens and "
                    f"was given {num_tokens} more"
                )
        for chunk in chunks:
            if self._last_token[chunk.slot] is not None:
                raise PlanError(f"slot {chunk.slot} was given a chunk, but its prompt is complete")

    def _gather_rows(self, decode_slots: Sequence[int]) -> None:
        """Bring the sequences that decode to the first rows."""
        num = len(decode_slots)
        rows = {self._row_of[slot] for slot in decode_slots}
        others = (row for row in range(num) if row not in rows)
        for slot in decode_slots:
            here = self._row_of[slot]
            if here >= num:
                there = next(others)
                other = self._slot_in[there]
                self._cache.swap(here, there, self._lengths[slot], self._lengths[other])
                self._row_of[slot], self._row_of[other] = there, here
                self._slot_in[there], self._slot_in[here] = slot, other

    def _plan(self, chunks: Sequence[Chunk], decode_slots: Sequence[int]) -> tuple[PassPlan, dict[int, int]]:
        """Say where tokens go; tell at which place of the pass each slot's last one is, if it yields one."""
        num, lengths = len(decode_slots), self._lengths
        slots = [*decode_slots, *(chunk.slot for chunk in chunks)]
        counts = np.array([1] * num + [len(chunk.token_ids) for chunk in chunks])
        ends = counts.cumsum()
        rows = np.repeat([self._row_of[slot] for slot in slots], counts)
        offsets = np.array([lengths[slot] for slot in slots]) - (ends - counts)
        positions = np.arange(ends[-1]) + np.repeat(offsets, counts)
        places = self._cache.places
        places.rows, places.positions = torch.from_numpy(np.stack([rows, positions])).to(self.device)

        last_of_slot = {slot: place for place, slot in enumerate(decode_slots)}
        chunk_plans = []
        for (slot, token_ids, completes), last in zip(chunks, ends[num:].tolist(), strict=True):
            num_tokens = len(token_ids)
            mask = chunk_mask(num_tokens, lengths[slot], self.device)
            chunk_plans.append(ChunkPlan(last - num_tokens, last, self._row_of[slot], lengths[slot], mask))
            if completes:
                last_of_slot[slot] = last - 1
        longest = max((lengths[slot] + 1 for slot in decode_slots), default=0)
        seen = torch.arange(longest, device=self.device) <= places.positions[:num, None]
        return PassPlan(num, seen[:, None, None], tuple(chunk_plans)), last_of_slot
