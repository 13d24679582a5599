"""The page says of each workload whether it is identical, and where it first differs if not."""

from dataclasses import replace

from tests.conformance.report import Outcome, page

SAME = Outcome("0.1", "calm", "plain", 10, 100, 1)
OTHER = Outcome("0.1", "wild", "plain", 20, 2000, 3)


def rows(outcomes: list[Outcome]) -> list[str]:
    return [line for line in page(outcomes).splitlines() if line.startswith(("| calm", "| wild"))]


def test_numbers_of_all_ways_are_added_up() -> None:
    outcomes = [SAME, Outcome("0.1", "calm", "asynchronous", 10, 101, 0), OTHER]

    assert rows(outcomes) == [
        "| calm | 10 | 201 | 1 | identical |",
        "| wild | 20 | 2,000 | 3 | identical |",
    ]


def test_differences_are_told_with_the_reason_where_it_is_known() -> None:
    difference = "iteration 3: nobody waits"
    differs = Outcome("0.1", "wild", "asynchronous", 20, 2001, 3, difference, known="they count from two")

    (row,) = rows([OTHER, differs])

    told = "identical in 1 of 2 ways; asynchronous: iteration 3: nobody waits. Known: they count from two"
    assert row == f"| wild | 20 | 4,001 | 6 | {told} |"
    assert not differs.is_unknown
    assert replace(differs, known=None).is_unknown


def test_workload_that_was_left_out_says_why() -> None:
    (row,) = rows([Outcome("0.1", "wild", "", reason="the trace is absent")])

    assert row == "| wild | 0 | 0 | 0 | not run: the trace is absent |"


def test_each_version_has_a_table() -> None:
    text = page([SAME, Outcome("0.2", "calm", "plain", 10, 100, 1)])

    assert text.count("| calm |") == 2
    assert text.index("## vLLM 0.1") < text.index("## vLLM 0.2")
