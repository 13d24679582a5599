import numpy as np

from batchsim.figures.engines import continuous_vs_static, memory_controller, tbt_controller
from batchsim.figures.results import SweepResults
from batchsim.figures.schedulers import RATE
from batchsim.figures.style import looks_of
from tests.figures.swept import results


def of_two_worlds() -> SweepResults:
    """A policy of each world at two rates; each world has a column of its own."""
    return results(
        {RATE: [1.0, 2.0]},
        **{RATE: [1.0, 2.0] * 2, "policy": ["static_fifo"] * 2 + ["vllm_v1"] * 2},
        num_batches=[5, 5, np.nan, np.nan],
        iterations_total=[np.nan, np.nan, 90, 95],
        e2e_mean_s=[4.0, 5.0, 1.0, 2.0],
    )


def controlled() -> SweepResults:
    rate = "workload.request_rate"
    return results(
        {rate: [1.0]},
        **{rate: [1.0, 1.0], "policy": ["vllm_v0", "dynamic_batching"], "case": ["at most 96", "controller"]},
        itl_mean_s=[0.06, 0.05],
    )


def test_where_both_worlds_meet_the_lines_and_the_legend_tell_them_apart() -> None:
    figure, _ = continuous_vs_static(of_two_worlds())

    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["static_fifo", "vllm_v1", "dashed: runs to completion"]
    for axes in figure.axes:
        styles = [line.get_linestyle() for line in axes.lines]
        assert [style for style in styles if style != "None"] == ["--", "-"]


def test_a_figure_of_one_world_has_no_dashes_to_explain() -> None:
    swept = of_two_worlds()
    one_world = SweepResults(swept.folder, swept.sweep, swept.runs.iloc[2:])

    figure, _ = continuous_vs_static(one_world)

    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["vllm_v1"]


def test_a_policy_looks_the_same_whatever_else_is_drawn() -> None:
    alone = looks_of(results({}, policy=["sarathi"]).runs, "policy")
    second = looks_of(results({}, policy=["orca", "sarathi"]).runs, "policy")

    assert alone["sarathi"][:3] == second["sarathi"][:3] != second["orca"][:3]


def test_cases_have_a_line_each_with_looks_in_their_order() -> None:
    swept = controlled()

    figure, table = tbt_controller(swept)

    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["at most 96", "controller"]
    assert table[["case", "itl_mean_s"]].to_numpy().tolist() == [["at most 96", 0.06], ["controller", 0.05]]
    assert list(looks_of(swept.runs, "case").values()) != list(looks_of(swept.runs, "policy").values())


def test_a_case_named_like_a_policy_looks_like_it() -> None:
    runs = results({}, policy=["vllm_v1"] * 3, case=["vllm_v1", "vllm_v1, blocks by prompt", "other"]).runs

    looks = looks_of(runs, "case")

    assert looks["vllm_v1"][:3] == looks_of(runs, "policy")["vllm_v1"][:3]
    assert len({look[:3] for look in looks.values()}) == 3


def test_the_target_that_a_controller_steers_to_is_drawn_across_the_gaps() -> None:
    figure, _ = tbt_controller(controlled())

    assert figure.axes[0].get_ylabel() == "ITL mean (s)"
    assert figure.axes[0].lines[-1].get_ydata() == [0.05, 0.05]


def test_an_axis_of_nothing_but_zeros_is_drawn_all_the_same() -> None:
    limit = "policy.batch_size"
    swept = results(
        {limit: [8, 16]},
        **{limit: [8, 16], "policy": ["vllm_v0"] * 2},
        running_mean=[8.0, 16.0],
        preemptions_per_request=[0.0, 0.0],
    )

    figure, _ = memory_controller(swept)

    assert figure.axes[-1].get_ylim() == (0, 1)
