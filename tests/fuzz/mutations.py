"""Damage done to valid files: what the fuzzers of all readers share.

A mutated file must end in one sentence of ours, or in values that an independent reading of it gives too.
``FUZZ_EXAMPLES`` says how many are tried of each kind; few by default, thousands in ``make fuzz``.
"""

import copy
import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from batchsim.errors import BatchsimError
from tests.fuzz.bounds import bounded

#: How many examples each property is tried on.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
_SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def fuzz(test: Callable[..., None]) -> Callable[..., None]:
    """Try a property on so many examples, each within the bounds of time and memory."""
    return _SETTINGS(bounded(test))


#: Numbers at which readers go wrong: edges of types, and what is no number though it looks like one.
NUMBERS = (
    st.sampled_from([0, -1, 1, 2, 2**31, 2**53 + 1, 2**63, 10**13, 10**30, 10**400, True, False])
    | st.sampled_from([0.5, -0.0, 5e-324, 1e-320, 1e-12, 1e9, 1e18, 1e300, 1.7976931348623157e308])
    | st.sampled_from([math.nan, math.inf, -math.inf])
    | st.floats()
    | st.integers(-3, 10**6)
)
SCALARS = (
    NUMBERS
    | st.none()
    | st.text(max_size=8)
    | st.sampled_from(["NaN", "1", "qwen3-1.7b", "a\nb", "\x1b[31m"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def one_sentence(read: Callable[[], Any]) -> Any:
    """Return what is read, or ``None`` where it is refused in one line by an error of ours."""
    try:
        return read()
    except BatchsimError as error:
        text = str(error)
        assert text.strip(), "an error must say something"
        assert len(text.splitlines()) == 1, text
        assert text.isprintable(), ascii(text)
        return None


def places(tree: Any) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a JSON tree, its own first."""
    found: list[tuple[Any, ...]] = [()]
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        found += [(key, *path) for path in places(value)]
    return found


@st.composite
def mutated_trees(draw: st.DrawFn, tree: Any, most: int = 3) -> Any:
    """Return the tree with a few values replaced, left out, doubled or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(places(tree)))
        if not path:
            continue
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        last = path[-1]
        act = draw(
            st.sampled_from(
                ["near", "near", "near", "number", "value", "leave out", "double", "elsewhere", "add"]
            )
        )
        if act == "number":
            parent[last] = draw(NUMBERS)
        elif act == "near":
            parent[last] = draw(_near(parent[last]))
        elif act == "value":
            parent[last] = draw(VALUES)
        elif act == "leave out":
            del parent[last]
        elif act == "double" and isinstance(parent, list):
            parent.insert(last, copy.deepcopy(parent[last]))
        elif act == "elsewhere":
            parent[last] = copy.deepcopy(_at(tree, draw(st.sampled_from(places(tree)))))
        elif act == "add" and isinstance(parent, dict):
            parent[draw(st.text(max_size=6))] = draw(VALUES)
    return tree


def _near(value: Any) -> st.SearchStrategy[Any]:
    """Another value of the same kind, which may well do."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
        return st.just(value)
    return st.integers(value, value + 5) if isinstance(value, int) else st.floats(value / 9, value * 9)


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


@st.composite
def mutated_json(draw: st.DrawFn, tree: Any) -> bytes:
    """Return a damaged JSON file: mostly of a damaged tree, now and then with damaged bytes too."""
    content = json.dumps(draw(mutated_trees(tree))).encode("utf-8", "surrogatepass")
    return draw(mutated_bytes(content)) if draw(st.integers(0, 4)) == 0 else content


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Return the content cut, with bytes put in, or with a part of it twice."""
    start = draw(st.integers(0, len(content)))
    act = draw(st.sampled_from(["cut", "put in", "twice", "mark"]))
    if act == "cut":
        return content[:start]
    if act == "put in":
        return content[:start] + draw(st.binary(min_size=1, max_size=4)) + content[start:]
    if act == "mark":
        return content[:start] + "\ufeff".encode() + content[start:]
    end = draw(st.integers(start, len(content)))
    return content[:end] + content[start:]


#: Cells at which readers of CSV go wrong.
CELLS = (
    st.sampled_from(
        ["nan", "inf", "True", "1e308", "1e-320", "1e999", "-1", "0", "0.5", "1_000", "1e3", "+7."]
    )
    | st.sampled_from(["", " ", '"', '"a', "=1+1", "[red]", "oom", "0x10", "a\rb", "\N{FULLWIDTH DIGIT ONE}"])
    | st.sampled_from(["9" * 20, "9007199254740993", "0.30000000000000004"])
    | st.floats(allow_nan=False).map(repr)
    | st.integers(-3, 10**7).map(str)
    | st.text(max_size=5)
)


@st.composite
def mutated_csv(draw: st.DrawFn, content: str) -> bytes:
    """Return a CSV file with a few cells, rows or columns damaged, now and then with damaged bytes too."""
    rows = [line.split(",") for line in content.splitlines()]
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.integers(0, len(rows) - 1))
        act = draw(
            st.sampled_from(
                ["near", "near", "cell", "cell", "cell", "field", "no field", "row twice", "no row", "column"]
            )
        )
        if act == "near" and rows[row]:
            column = draw(st.integers(0, len(rows[row]) - 1))
            with suppress(ValueError):
                rows[row][column] = str(draw(_near(json.loads(rows[row][column]))))
        elif act == "cell" and rows[row]:
            rows[row][draw(st.integers(0, len(rows[row]) - 1))] = draw(CELLS)
        elif act == "field":
            rows[row].append(draw(CELLS))
        elif act == "no field":
            rows[row] = rows[row][:-1]
        elif act == "row twice":
            rows.insert(row, list(rows[row]))
        elif act == "no row" and len(rows) > 1:
            del rows[row]
        elif act == "column" and rows[0]:
            column, cell = draw(st.integers(0, len(rows[0]) - 1)), draw(CELLS)
            for one in rows[1:]:
                if column < len(one):
                    one[column] = cell
    damaged = ("\n".join(",".join(row) for row in rows) + "\n").encode("utf-8", "surrogatepass")
    return draw(mutated_bytes(damaged)) if draw(st.integers(0, 4)) == 0 else damaged
