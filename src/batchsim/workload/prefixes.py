"""Which prompts begin alike: the prefix ids that some traces carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchsim.errors import TraceError
from batchsim.workload.request import Workload

#: Extra columns that hold a list of ids per request, and the prompt tokens that an id stands for.
TOKENS_PER_ID: Mapping[str, int] = {
    "hash_ids": 512,  # Mooncake
    "hash_ids_16": 16,  # LLMServingSim
    "prefix_ids": 16,  # sessions
}


@dataclass(frozen=True, slots=True)
class PrefixIds:
    """Ids of the full blocks of each prompt.

    Attributes
    ----------
    tokens_per_id
        Prompt tokens in such a block.
    ids
        One sequence per request. An id stands for the whole prompt up to the end of its block: where two
        requests have an id in common, their prompts are the same up to there.
    """

    tokens_per_id: int
    ids: Sequence[Sequence[int]]


def prefix_ids(workload: Workload) -> PrefixIds | None:
    """Find the ids in a workload's extra columns; None if it has no column of `TOKENS_PER_ID`.

    An id for the rest of a prompt, as Mooncake has it, is left out: only full blocks can be shared.

    Raises
    ------
    TraceError
        For a value that is no list of whole numbers, or a list too long for the prompt.
    """
    for name, tokens_per_id in TOKENS_PER_ID.items():
        if name in workload.extra:
            rows = zip(
                workload.extra[name],
                workload.prompt_tokens.tolist(),
                workload.request_id.tolist(),
                strict=True,
            )
            return PrefixIds(tokens_per_id, [_full_blocks(row, name, workload.source.name) for row in rows])
    return None


def _full_blocks(row: tuple[Any, int, int], name: str, where: str) -> list[int]:
    ids, prompt_tokens, request_id = row
    if isinstance(ids, np.ndarray):
        ids = ids.tolist()
    if not isinstance(ids, list) or not all(isinstance(id_, int) for id_ in ids):
        raise TraceError(
            f"{where}, request {request_id}: {name} is {ids!r}; a list of whole numbers is needed"
        )
    tokens_per_id = TOKENS_PER_ID[name]
    most = -(-prompt_tokens // tokens_per_id)
    if len(ids) > most:
        raise TraceError(
            f"{where}, request {request_id}: {name} has {len(ids)} ids for {prompt_tokens} prompt tokens; "
            f"at {tokens_per_id} tokens each, {most} are possible"
        )
    return ids[: prompt_tokens // tokens_per_id]
