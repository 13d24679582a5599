from batchsim.figures.clusters import PROMPT, disaggregation
from batchsim.figures.schedulers import RATE
from tests.figures.swept import results


def test_each_length_of_prompts_has_a_row_of_panels_and_a_part_of_the_title() -> None:
    swept = results(
        {PROMPT: [1024, 4096], RATE: [1.0, 2.0]},
        **{PROMPT: [1024, 1024, 4096, 4096] * 2, RATE: [1.0, 2.0] * 4},
        policy=["vllm_v1"] * 8,
        case=["together"] * 4 + ["1P1D"] * 4,
        slo_attainment=[1.0, 0.8, 1.0, 0.8, 1.0, 0.8, 1.0, 1.0],
        ttft_p99_s=[1.0] * 8,
        tpot_mean_s=[0.01] * 8,
    )

    figure, table = disaggregation(swept)

    assert [axes.get_title("left") for axes in figure.axes[::3]] == [
        "prompts of 1,024 tokens",
        "prompts of 4,096 tokens",
    ]
    assert len(table) == 8
    title = " ".join(figure.texts[0].get_text().split())
    assert title == (
        "Load with 90 % within the limit, beside together: prompts of 1,024 tokens, nobody 5 % more; prompts "
        "of 4,096 tokens, 1P1D at least 1.3x"
    )
