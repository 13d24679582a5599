"""A delta debugger: make a case on which engines differ as small as can be."""

from collections.abc import Callable, Iterator
from typing import Any

from tests.conformance.workloads import Case

Requests = list[dict[str, Any]]


def shrink(case: Case, differs: Callable[[Case], bool]) -> Case:
    """Return a smaller case that still differs: with fewer requests, then with smaller numbers in each.

    No single request, and none of the smaller values that were tried, can be put in its place without the
    difference going away.
    """

    def keeps(requests: Requests) -> bool:
        return bool(requests) and differs({**case, "requests": requests})

    requests: Requests = case["requests"]
    while True:
        fewer = _without_some(requests, keeps)
        smaller = _with_less(fewer, keeps)
        if smaller == requests:
            return {**case, "requests": requests}
        requests = smaller


def _without_some(requests: Requests, keeps: Callable[[Requests], bool]) -> Requests:
    """Leave out runs of requests, first long ones, as long as that keeps the difference."""
    size = len(requests) // 2
    while size:
        start = 0
        while start < len(requests):
            rest = requests[:start] + requests[start + size :]
            if keeps(rest):
                requests = rest
            else:
                start += size
        size //= 2
    return requests


def _with_less(requests: Requests, keeps: Callable[[Requests], bool]) -> Requests:
    for index in range(len(requests)):
        is_smaller = True
        while is_smaller:
            is_smaller = False
            for less in _smaller(requests[index]):
                changed = [*requests[:index], less, *requests[index + 1 :]]
                if changed == sorted(changed, key=lambda one: one["arrival_s"]) and keeps(changed):
                    requests, is_smaller = changed, True
                    break
    return requests


def _smaller(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the request with one number less, the largest steps first."""
    if request.get("priority"):
        yield {**request, "priority": 0}
    if request["arrival_s"]:
        yield {**request, "arrival_s": 0.0}
    for tokens in _less(request["output_tokens"]):
        yield {**request, "output_tokens": tokens}
    prompt = request["prompt"]
    for part, (stream, most) in enumerate(prompt):
        if len(prompt) > 1:
            yield {**request, "prompt": prompt[:part] + prompt[part + 1 :]}
        for tokens in _less(most):
            yield {**request, "prompt": [*prompt[:part], [stream, tokens], *prompt[part + 1 :]]}


def _less(number: int) -> Iterator[int]:
    """Yield numbers from 1 on, nearer and nearer to this one."""
    step = number - 1
    while step:
        yield number - step
        step //= 2
