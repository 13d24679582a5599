import simpy
from hypothesis import given
from hypothesis import strategies as st

from batchsim.sim.decoding import Decoding
from batchsim.sim.request import Request


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.booleans()), max_size=30)
)
def test_longest_is_the_one_with_most_tokens_whoever_leaves_and_comes_back(
    joins: list[tuple[int, int, int, bool]],
) -> None:
    env, decoding = simpy.Environment(), Decoding(4, follows_longest=True)
    stored: dict[Request, int] = {}
    for number, (tokens, num_left, steps, comes_back) in enumerate(joins):
        request = Request(env, number, 0.0, tokens, 1)
        request.admission = number
        request.blocks = -(-tokens // 4)
        decoding.join(request, tokens, num_left)
        stored[request] = tokens
        if comes_back:
            first = next(iter(stored))
            decoding.leave(first)
            stored[first] = max(1, stored[first] - 7)
            first.blocks = -(-stored[first] // 4)
            decoding.join(first, stored[first], num_left)
        assert decoding.longest_tokens() == max(stored.values())

        steps = min(steps, decoding.iterations_to_change())
        decoding.advance(steps)
        stored = {one: held + steps for one, held in stored.items()}
        for finished in decoding.take_finished():
            del stored[finished]
        assert decoding.longest_tokens() == max(stored.values(), default=0)


def test_longest_is_kept_only_where_somebody_asks() -> None:
    decoding = Decoding(4)
    request = Request(simpy.Environment(), 0, 0.0, 8, 1)
    request.admission, request.blocks = 0, 2

    decoding.join(request, 8, 3)

    assert decoding.longest_tokens() == 0
