"""A case that differs becomes as small as what makes it differ."""

from tests.conformance.shrink import shrink
from tests.conformance.workloads import Case, make_case, prompt_tokens, request


def test_what_does_not_matter_goes_away() -> None:
    requests = [request(number / 4, 10 + number, 20, (3, 5), priority=number % 3) for number in range(40)]

    def differs(case: Case) -> bool:
        """A long answer comes before a long prompt."""
        are_long = [one["output_tokens"] >= 7 for one in case["requests"]]
        return (
            any(prompt_tokens(one) > 30 for one in case["requests"][are_long.index(True) + 1 :])
            if any(are_long)
            else False
        )

    small = shrink(make_case("many", requests, num_blocks=5), differs)

    assert small["engine"]["num_blocks"] == 5
    first, second = small["requests"]
    assert (first["output_tokens"], first["arrival_s"], prompt_tokens(first)) == (7, 0.0, 1)
    assert (second["output_tokens"], second["arrival_s"], prompt_tokens(second)) == (1, 0.0, 31)
    assert not first["priority"]
    assert not second["priority"]


def test_case_of_one_request_stays_one() -> None:
    small = shrink(make_case("one", [request(0.0, 8, 3)]), lambda case: True)

    assert [prompt_tokens(one) for one in small["requests"]] == [1]
