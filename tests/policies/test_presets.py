from typing import Any

import numpy as np
import pytest

from batchsim.config import PolicyConfig
from batchsim.errors import ConfigError
from batchsim.policies import presets
from batchsim.policies.base import Setting
from batchsim.policies.batching import Greedy, Timer
from batchsim.policies.presets import PRESETS, Preset, describe
from batchsim.policies.queueing import Fifo, MultiBin, ShortestFirst
from batchsim.policies.routing import LeastLoaded
from batchsim.policies.sizing import FixedSize, MemoryAware, SloFeedback, Smallest
from tests.policies.worlds import Waiting

OF_A_USER = Preset(Fifo(), FixedSize(3), Greedy(), paper="nobody's")
NO_PRESET = 42


def build(preset: str = "static_fifo", **given: Any) -> presets.Policy:
    return presets.build(PolicyConfig(preset=preset, **given))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_its_paper_and_builds(name: str) -> None:
    policy = build(name)

    assert PRESETS[name].paper
    assert policy.describe().count(" x ") == 2 + PRESETS[name].is_iteration_level


def test_overrides_change_parameters_of_the_presets_answers() -> None:
    policy = build("multi_bin", batch_size=16, num_bins=2, queueing={"boundaries": "optimal"})

    assert policy.describe() == (
        "MultiBin(num_bins=2, boundaries='optimal', turn=8) x FixedSize(size=16) x "
        "FullBatch(leftovers='flush')"
    )


def test_kind_replaces_an_answer() -> None:
    policy = build(
        queueing={"kind": "ShortestFirst", "promote_after_s": 5.0},
        batching={"kind": "Timer", "max_wait_s": 0.5},
        routing={"kind": "LeastLoaded"},
    )

    assert (policy.queueing, policy.batching) == (ShortestFirst(promote_after_s=5.0), Timer(0.5))
    assert policy.routing == LeastLoaded()


def test_number_of_bins_and_their_edges_may_change_together() -> None:
    policy = build("multi_bin", num_bins=2, queueing={"boundaries": [50]})

    assert policy.queueing == MultiBin(2, [50])


def test_parts_of_a_combined_sizer_are_addressed_by_their_class() -> None:
    policy = build("dynamic_no_bins", sizing={"SloFeedback": {"target_s": 0.1}})

    assert policy.sizing == Smallest((MemoryAware(), SloFeedback(target_s=0.1)))


def test_batch_size_limits_every_part_of_a_combined_sizer() -> None:
    policy = build("dynamic_no_bins", batch_size=32)

    assert policy.sizing == Smallest((MemoryAware(max_batch_size=32), SloFeedback(max_batch_size=32)))


def test_combined_sizer_can_be_written_out() -> None:
    parts = [{"kind": "FixedSize", "size": 4}, {"kind": "MemoryAware"}]

    policy = build(sizing={"kind": "Smallest", "of": parts})

    assert policy.sizing == Smallest((FixedSize(4), MemoryAware()))


def test_preset_of_another_module_is_found_by_module_and_name() -> None:
    policy = build(f"{__name__}:OF_A_USER")

    assert policy.sizing == FixedSize(3)


def test_nothing_a_policy_learns_reaches_the_next() -> None:
    first, second = (build("multi_bin_dynamic", num_bins=1) for _ in range(2))
    setting = Setting(100, training_output_tokens=np.array([1]), training_prompt_tokens=np.array([1]))
    for policy in (first, second):
        policy.queueing.prepare(setting)

    first.queueing.push(Waiting(0))

    assert (first.queueing.waiting(0), second.queueing.waiting(0)) == (1, 0)


@pytest.mark.parametrize("name", PRESETS)
def test_answers_of_two_builds_share_no_state(name: str) -> None:
    first, second = build(name), build(name)

    assert first.queueing is not second.queueing
    assert first.queueing is not PRESETS[name].queueing
    for one, other in zip(_parts(first), _parts(second), strict=True):
        assert one is not other


def _parts(policy: presets.Policy) -> list[object]:
    return list(policy.sizing.of) if isinstance(policy.sizing, Smallest) else [policy.sizing]


def test_description_leaves_out_state() -> None:
    sizer = MemoryAware()
    before = describe(sizer)

    sizer.prepare(Setting(100, training_prompt_tokens=np.ones(50), training_output_tokens=np.ones(50)))

    assert describe(sizer) == before


@pytest.mark.parametrize(
    ("preset", "given", "message"),
    [
        ("static_fif", {}, "'static_fif' is unknown; did you mean static_fifo"),
        ("zzz", {}, "known: static_fifo, multi_bin"),
        ("no_such_module:NAME", {}, r"'no_such_module'\); .* on the Python path, e\.g\. PYTHONPATH"),
        (f"{__name__}:MISSING", {}, "cannot be imported"),
        (f"{__name__}:NO_PRESET", {}, "is a int"),
        ("static_fifo", {"num_bins": 4}, "only MultiBin has bins"),
        ("multi_bin", {"num_bins": 4, "queueing": {"kind": "Fifo"}}, "queues by Fifo"),
        ("static_fifo", {"sizing": {"sise": 4}}, r"policy\.sizing\.sise is no parameter of FixedSize.*size"),
        ("static_fifo", {"queueing": {"x": 4}}, "Fifo; there are none"),
        (
            "static_fifo",
            {"queueing": {"kind": "LIFO"}},
            r"policy\.queueing\.kind is 'LIFO'; did you mean Fifo|known",
        ),
        ("static_fifo", {"sizing": {"size": 0}}, "size is 0"),
        ("static_fifo", {"batching": {"kind": "Timer", "max_wait_s": "soon"}}, r"policy\.batching.*'soon'"),
        ("static_fifo", {"routing": {"seed": 3}}, r"policy\.routing needs a kind; known: RoundRobin"),
        (
            "multi_bin",
            {"queueing": {"boundaries": ["a", "b", "c"]}},
            r"policy\.queueing\.boundaries is .*numbers",
        ),
        (
            "dynamic_no_bins",
            {"sizing": {"SloFedback": {}}},
            "SloFedback is unknown; did you mean SloFeedback",
        ),
        ("dynamic_no_bins", {"sizing": {"SloFeedback": 3}}, r"sizing\.SloFeedback is 3; a table"),
        ("dynamic_no_bins", {"sizing": {"SloFeedback": {"beta": 1}}}, r"SloFeedback\.beta is no parameter"),
        ("static_fifo", {"sizing": {"kind": "Smallest", "of": [{}]}}, r"of\[0\] needs a kind"),
        ("static_fifo", {"sizing": {"kind": "Smallest", "of": [3]}}, r"of\[0\] is 3; a table"),
        ("static_fifo", {"sizing": {"kind": "Smallest", "off": []}}, "off is no parameter of Smallest"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(preset: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(preset, **given)
