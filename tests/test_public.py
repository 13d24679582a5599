"""What users import: the package and its rooms offer names without loading what is behind them."""

import ast
import importlib
import inspect
from types import ModuleType

import pytest

import batchsim
from batchsim import latency, policies, workload

ROOMS = [batchsim, policies, latency, workload]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.__name__))
def test_every_public_name_is_there_and_listed(room: ModuleType) -> None:
    assert sorted(set(room.__all__)) == sorted(room.__all__)
    assert set(room.__all__) <= set(dir(room))
    for name in room.__all__:
        assert getattr(room, name) is not None


@pytest.mark.parametrize("room", ROOMS[1:], ids=lambda room: str(room.__name__))
def test_what_is_imported_from_a_room_is_what_its_module_defines(room: ModuleType) -> None:
    imported = [
        (name.name, line.module)
        for line in ast.walk(ast.parse(inspect.getsource(room)))
        if isinstance(line, ast.ImportFrom) and line.module and line.module.startswith(f"{room.__name__}.")
        for name in line.names
    ]

    assert sorted(name for name, _ in imported) == sorted(room.__all__)
    for name, module in imported:
        assert getattr(room, name) is getattr(importlib.import_module(module), name)


def test_every_answer_of_a_scheduler_is_public() -> None:
    from batchsim.policies import admission, batching, continuous, eviction, queueing, routing, sizing
    from batchsim.policies.presets import _kinds

    answers = {
        name
        for module in (queueing, sizing, batching, continuous, routing, admission, eviction)
        for name in _kinds(module)
    }

    assert answers <= set(policies.__all__)


def test_unknown_names_are_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'batchsim' has no attribute 'simulte'"):
        batchsim.simulte  # noqa: B018 -- the look-up is the test
    with pytest.raises(ImportError, match="cannot import name 'Fifoo'"):
        from batchsim.policies import Fifoo  # noqa: F401
