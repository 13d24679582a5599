"""Are two logs the same, to the last bit? If not, the first difference in words.

A log has ``rows``, of an iteration each: its start in seconds, ``(request, tokens)`` of all that it computes,
who was preempted for it, and the KV blocks that are free while it runs; and ``first_token_s`` and
``finish_s``, of a request each.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

Log = dict[str, Any]

#: More than this many requests are not listed.
_FEW = 4


def first_difference(theirs: Log, ours: Log) -> str | None:
    """Tell in words where our log first departs from theirs; None if it nowhere does."""
    for number, (their_row, our_row) in enumerate(zip_longest(theirs["rows"], ours["rows"])):
        if their_row is None or our_row is None:
            start_s, tokens = (their_row or our_row)[:2]
            who = "vLLM has" if our_row is None else "we have"
            return f"iteration {number}, at {start_s!r} s: only {who} it ({_composition(tokens)})"
        if difference := _row_difference(their_row, our_row):
            return f"iteration {number}, at {their_row[0]!r} s: {difference}"
    return request_difference(theirs, ours)


def request_difference(theirs: Log, ours: Log) -> str | None:
    """Tell which request's times first depart from theirs, whatever the iterations were."""
    for name, what in (("first_token_s", "first token"), ("finish_s", "end")):
        for number, (their_s, our_s) in enumerate(zip(theirs[name], ours[name], strict=True)):
            if their_s != our_s:
                return f"request {number}: {what} at {their_s!r} s, ours at {our_s!r} s"
    return None


def effect(theirs: Log, ours: Log, arrival_s: Sequence[float]) -> str:
    """Tell what a difference comes to."""
    if not theirs["finish_s"] or not ours["finish_s"]:
        return "there is no end"
    total_s = sum(arrival_s)
    ratio = (sum(ours["finish_s"]) - total_s) / (sum(theirs["finish_s"]) - total_s)
    return f"our mean E2E time {ratio - 1:+.4%}"


def _row_difference(theirs: Sequence[Any], ours: Sequence[Any]) -> str | None:
    their_start_s, their_tokens, their_preempted, their_free = theirs
    our_start_s, our_tokens, our_preempted, our_free = ours
    said = []
    if their_start_s != our_start_s:
        said.append(f"ours begins at {our_start_s!r} s")
    if list(their_preempted) != list(our_preempted):
        said.append(f"preempts {_requests(their_preempted)}, ours {_requests(our_preempted)}")
    their_by_id, our_by_id = dict(their_tokens), dict(our_tokens)
    if their_by_id != our_by_id:
        departing = sorted(
            id_ for id_ in their_by_id.keys() | our_by_id.keys() if their_by_id.get(id_) != our_by_id.get(id_)
        )
        told = [
            f"{their_by_id.get(id_, 0)} tokens of {id_}, ours {our_by_id.get(id_, 0)}" for id_ in departing
        ]
        said.append("; ".join(told[:_FEW]) + (f"; {len(told) - _FEW} more" if len(told) > _FEW else ""))
    if their_free != our_free:
        said.append(f"{their_free} blocks free, ours {our_free}")
    return "; ".join(said) or None


def _requests(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids)) or "nobody"


def _composition(tokens: Sequence[tuple[int, int]]) -> str:
    told = ", ".join(f"{num} of {id_}" for id_, num in tokens[:_FEW])
    return told + (", ..." if len(tokens) > _FEW else "")
