"""What stands before an answer from outside the package: what all kinds of guards share.

A fault ends the run with one sentence that names the policy, the answer's class and method, and the request.
"""

from __future__ import annotations

import math
import reprlib
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from batchsim.errors import BatchsimError, PlanError
from batchsim.policies import base
from batchsim.policies.base import Setting

_PACKAGE = Path(base.__file__).parents[1]


def is_foreign(kind: type) -> bool:
    """Whether a class comes from outside the package."""
    return kind.__module__.partition(".")[0] != "batchsim"


def kind_of(answer: object) -> str:
    """The name of an answer's class, guarded or not."""
    return type(unguarded(answer)).__name__


def unguarded(answer: Any) -> Any:
    """The answer itself."""
    return answer.guarded if isinstance(answer, Guard) else answer


class Guard:
    """What all guards share: ask, and turn what is raised or senseless into one sentence.

    It passes for the answer where somebody looks at its class or its parameters.
    """

    def __init__(self, answer: Any, policy: str) -> None:
        self.guarded = answer
        self._policy = policy

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # what `isinstance` looks at
        return type(self.guarded)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["guarded"], name)

    def prepare(self, setting: Setting) -> None:
        """Called once."""
        self._ask("prepare", setting)

    def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        try:
            return getattr(self.guarded, method)(*arguments, **named)
        except (Exception, SystemExit) as error:
            raise self._explained(error, method, arguments) from error

    def _read(self, name: str, fits: Callable[[Any], bool], needed: str) -> Any:
        try:
            value = getattr(self.guarded, name)
        except (Exception, SystemExit) as error:
            raise self._explained(error, name, ()) from error
        return value if fits(value) else self._refuse(name, value, needed)

    def _name(self, method: str) -> str:
        return f"policy {self._policy}: {kind_of(self)}.{method}"

    def _explained(self, error: BaseException, method: str, arguments: Sequence[Any]) -> BatchsimError:
        name = self._name(method)
        if isinstance(error, BatchsimError):
            if str(error).startswith("policy "):
                return error  # by the guard of another answer, which this one asked
            return type(error)(f"{name}: {error}")
        text = " ".join(_text(error).split())[:200]
        raised = f"{type(error).__name__}: {text}" if text else type(error).__name__
        return PlanError(f"{name} raised {raised}{_for(arguments)}{_place(error)}")

    def _whole(self, method: str, answered: Any, low: int, high: float, needed: str, *about: Any) -> int:
        if not is_whole(answered, low) or answered > high:
            self._refuse(method, answered, needed, *about)
        return int(answered)

    def _seconds(self, method: str, answered: Any) -> float:
        if not is_number(answered):
            self._refuse(method, answered, "a time in seconds, infinity if never,")
        return float(answered)

    def _iterations(self, answered: Any) -> float:
        if not is_number(answered):
            self._refuse("iterations_to_decision", answered, "a number of iterations, infinity if never,")
        return float(answered)

    def _refuse(self, method: str, answered: Any, needed: str, *about: Any) -> NoReturn:
        said = f"request {answered.request_id}" if is_request(answered) else reprlib.repr(answered)
        raise PlanError(f"{self._name(method)} answered {said}{_for(about)}; {needed} is needed")


def is_whole(value: Any, least: int) -> bool:
    """Whether it is a whole number, and large enough."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def is_number(value: Any) -> bool:
    """Whether it is a number, infinity too."""
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def are_numbers(values: Any, num: int) -> bool:
    """Whether these are so many numbers."""
    if not isinstance(values, Sequence | np.ndarray):
        return False
    return len(values) == num and all(map(is_number, values))


def is_bool(value: Any) -> bool:
    """Whether it is True or False."""
    return isinstance(value, bool | np.bool_)


def is_request(value: Any) -> bool:
    """Whether it looks like one."""
    return hasattr(value, "request_id")


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # its own fault, and the other one is worth telling
        return ""


def _for(about: Sequence[Any]) -> str:
    """Which request it is about, if any."""
    return next((f" for request {one.request_id}" for one in about if is_request(one)), "")


def _place(error: BaseException) -> str:
    """Where it was raised, as far as that is outside the package."""
    frames = [
        (Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    for path, line in reversed(frames):
        if _PACKAGE not in path.parents:
            return f" ({path.name}, line {line})"
    return ""
