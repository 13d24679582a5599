"""Every parameter of every shipped answer against values that no one should give."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import pytest

from batchsim.config import PolicyConfig
from batchsim.errors import BatchsimError, ConfigError
from batchsim.policies import batching, continuous, presets, queueing, routing, sizing
from batchsim.policies.base import Setting
from batchsim.policies.batching import Greedy
from batchsim.policies.parts.parameters import MOST
from batchsim.study.run import simulate
from tests.sim.worlds import workload

PARAMETERS = [
    (preset, question, kind, item.name)
    for question, preset, module in (
        ("queueing", "static_fifo", queueing),
        ("sizing", "static_fifo", sizing),
        ("batching", "static_fifo", batching),
        ("batching", "vllm_v1", continuous),
        ("routing", "static_fifo", routing),
    )
    for kind, made in presets._kinds(module).items()
    for item in fields(made)
    if item.init
]
NO_VALUES = [
    "soon",
    [1, "a"],
    {},
    {"kind": 3},
    float("nan"),
    10**400,
    -(10**400),
    [float("nan")],
    b"1",
    1 + 2j,
]
#: Parameters that are tables of names to numbers.
TABLES = ("weights", "class_slack_s", "class_priority")
EXTREMES = [MOST, 0, -1, 1.5, 1e308, float("inf"), float("-inf"), True, None, []]
TRAINED = Setting(100, np.arange(1, 9), np.arange(1, 9))


@pytest.mark.parametrize(("preset", "question", "kind", "name"), PARAMETERS)
def test_a_senseless_value_is_refused_by_name_in_one_sentence(
    preset: str, question: str, kind: str, name: str
) -> None:
    for value in NO_VALUES:
        if name in TABLES and isinstance(value, dict):
            continue  # the name of a tenant or class may be any
        given = PolicyConfig(preset=preset, **{question: {"kind": kind, name: value}})

        refusal = _refusal(lambda given=given: presets.build(given).queueing.prepare(TRAINED), ConfigError)

        assert name in refusal
        assert 0 < len(refusal) < 300
        assert "\n" not in refusal


def _refusal(attempt: Callable[[], object], *kinds: type[BatchsimError]) -> str:
    """What is said of an attempt that is refused; nothing if it is not."""
    try:
        attempt()
    except kinds as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("preset", "question", "kind", "name"), PARAMETERS)
def test_an_extreme_value_is_refused_or_runs(preset: str, question: str, kind: str, name: str) -> None:
    for value in EXTREMES:
        policy = {"preset": preset, question: {"kind": kind, name: value}}
        config = {"policy": policy, "workload": {"training_fraction": 0.5}}

        refusal = _refusal(lambda config=config: simulate(config, REQUESTS), BatchsimError)

        assert "\n" not in refusal
        assert len(refusal) < 400


REQUESTS = workload([0.0, 0.0, 0.01, 0.02, 0.03] * 2 + [1.0] * 6, [5, 40, 7, 9, 5] * 3 + [2], 10)


@dataclass
class Own:
    """A sizer that derives from none."""

    most: int = 4
    max_batch_size = 4
    adapts = False

    def prepare(self, setting: object) -> None: ...

    def batch_size(self, bin_: int, num_decoding: int = 0) -> int:
        return self.most

    def observe(self, report: object) -> tuple[()]:
        return ()

    observe_iterations = observe

    def iterations_to_decision(self) -> float:
        return 1


PRESET = presets.Preset(queueing.Fifo(), Own(3), Greedy())


def test_parameters_of_an_own_answer_are_held_to_their_types_too() -> None:
    def build(**given: object) -> presets.Policy:
        return presets.build(PolicyConfig(preset=f"{__name__}:PRESET", **given))

    with pytest.raises(ConfigError, match=r"policy\.sizing\.most is 'x'; a whole number"):
        build(sizing={"most": "x"})
    with pytest.raises(ConfigError, match=r"policy\.sizing\.mots is no parameter of Own; did you mean most"):
        build(sizing={"mots": 3})
    with pytest.raises(ConfigError, match="batch_size is 4, but Own has no parameter max_batch_size"):
        build(batch_size=4)
    assert build(sizing={"most": 2}).sizing.batch_size(0) == 2
