"""Which prompts begin alike: the prefix ids that some traces carry."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchsim.errors import TraceError
from batchsim.workload.columns import refuse, shown
from batchsim.workload.request import Workload

#: Prompt tokens that an id of these columns stands for; the column ``hash_ids_N`` says itself that it is N.
TOKENS_PER_ID = {
    "hash_ids": 512,  # Mooncake
    "prefix_ids": 16,  # sessions
}

#: So many ids more than a prompt has blocks are what other tools write; they are left out.
FEW_IDS = 2

_NAMED = re.compile(r"hash_ids_([1-9]\d{0,8})")
_SIZES = tuple(2**exponent for exponent in range(3, 14))


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


def tokens_per_id(name: str) -> int | None:
    """Tell how many prompt tokens an id of a column covers; None for a column that holds no ids."""
    named = _NAMED.fullmatch(name)
    return int(named[1]) if named else TOKENS_PER_ID.get(name)


def id_column(names: Iterable[str]) -> str | None:
    """Find the column of ids among those of a table, if it has one."""
    return next((name for name in names if tokens_per_id(name) is not None), None)


def prefix_ids(workload: Workload) -> PrefixIds | None:
    """Find the ids in a workload's extra columns; None if it has no column of ids.

    An id for the rest of a prompt, as Mooncake has it, is left out: only full blocks can be shared.

    Raises
    ------
    TraceError
        For a value that is no list of whole numbers, or a list too long for the prompt.
    """
    name = id_column(workload.extra)
    if name is None:
        return None
    size = tokens_per_id(name)
    assert size is not None, "it was found by it"
    rows = zip(
        workload.extra[name], workload.prompt_tokens.tolist(), workload.request_id.tolist(), strict=True
    )
    where = workload.source.name
    return PrefixIds(
        size, [_full_blocks(ids, prompt, size, name, f"{where}, request {id_}") for ids, prompt, id_ in rows]
    )


class ReadIds(NamedTuple):
    """A column of ids as read: the name that says their size, the lists, and what was inferred about them."""

    name: str
    ids: NDArray[np.object_]
    remarks: tuple[str, ...]


def read_ids(
    column: pd.Series,
    prompt_tokens: NDArray[Any],
    where: str,
    usual_tokens: int | None = None,
    asked_tokens: int | None = None,
) -> ReadIds:
    """Make lists of whole numbers of what a file has: numbers, or text such as hashes, numbered as they come.

    How many tokens an id covers is what the caller asks for, what the name of the column says, or for plain
    ``hash_ids`` what is usual where all prompts agree with it, else the power of two that they agree on.

    Raises
    ------
    TraceError
        For a value that is no list of ids, or lists too long for their prompts.
    """
    name = str(column.name)
    size = asked_tokens or usual_tokens or tokens_per_id(name)
    assert size is not None, "a column of ids"
    rows, were_numbered = _numbered(column, where)
    num_ids = np.array([len(ids) for ids in rows], dtype=np.int64)
    remarks = []
    if asked_tokens is None and name == "hash_ids" and num_ids.any():
        size = _infer_size(num_ids, prompt_tokens, size)
        remarks.append(f"{size} tokens an id")
    too_many = num_ids > -(-prompt_tokens // size) + FEW_IDS
    if too_many.any():
        row = int(np.argmax(too_many))
        raise TraceError(
            f"{where}, row {column.index[row]}: "
            f"{_too_many(name, int(num_ids[row]), int(prompt_tokens[row]), size)}; "
            "say how many an id covers: --hash-block-tokens (workload.hash_block_tokens)"
        )
    is_odd = (num_ids > 0) & (num_ids != prompt_tokens // size) & (num_ids != -(-prompt_tokens // size))
    num_odd = int(np.count_nonzero(is_odd))
    if num_odd:
        remarks.append(f"{num_odd} prompts with fewer or more ids than that")
    if were_numbered:
        remarks.append("ids that are no numbers numbered")
    ids = np.fromiter(rows, dtype=object, count=len(rows))
    if tokens_per_id(name) != size:
        name = f"hash_ids_{size}"
    return ReadIds(name, ids, tuple(remarks))


def _infer_size(num_ids: NDArray[np.int64], prompt_tokens: NDArray[Any], usual: int) -> int:
    """The usual size, unless another one alone fits all prompts: the one nearest to it."""
    has_ids = num_ids > 0
    num_ids, prompt_tokens = num_ids[has_ids], prompt_tokens[has_ids]

    def fits(size: int) -> bool:
        full = prompt_tokens // size
        return bool(np.all((num_ids == full) | (num_ids == -(-prompt_tokens // size))))

    nearest_first = sorted(_SIZES, key=lambda size: abs(np.log2(size / usual)))
    return next((size for size in (usual, *nearest_first) if fits(size)), usual)


def _numbered(column: pd.Series, where: str) -> tuple[list[list[int]], bool]:
    """Lists of whole numbers, and whether they number what the file has; no list means no ids."""
    rows: list[list[Any]] = []
    kinds: set[type] = set()
    for position, value in enumerate(column.to_list()):
        ids = value.tolist() if isinstance(value, np.ndarray) else value
        if ids is None or (isinstance(ids, float) and ids != ids):
            ids = []
        here = set(map(type, ids)) if isinstance(ids, list) else {type(ids)}
        if not isinstance(ids, list) or not here <= {int, str}:
            refuse(column, position, where, "a list of ids (whole numbers or text) is needed")
        kinds |= here
        rows.append(ids)
    if str not in kinds and all(min(ids) >= -(2**63) and max(ids) < 2**63 for ids in rows if ids):
        return rows, False
    numbers: dict[object, int] = {}
    return [[numbers.setdefault(id_, len(numbers)) for id_ in ids] for ids in rows], str in kinds


def _full_blocks(ids: Any, prompt_tokens: int, size: int, name: str, where: str) -> list[int]:
    if isinstance(ids, np.ndarray):
        ids = ids.tolist()
    if not isinstance(ids, list) or not all(isinstance(id_, int) for id_ in ids):
        raise TraceError(f"{where}: {name} is {shown(ids)}; a list of whole numbers is needed")
    if len(ids) > -(-prompt_tokens // size) + FEW_IDS:
        raise TraceError(f"{where}: {_too_many(name, len(ids), prompt_tokens, size)}")
    return ids[: prompt_tokens // size]


def _too_many(name: str, num_ids: int, prompt_tokens: int, size: int) -> str:
    return (
        f"{name} has {num_ids} ids for {prompt_tokens} prompt tokens; at {size} tokens each, "
        f"{-(-prompt_tokens // size)} are possible"
    )
