import simpy
from hypothesis import given
from hypothesis import strategies as st

from batchsim.sim.mailbox import LateTimeout, Mailbox, ProcessGen, delay_until


def test_mailbox_delivers_to_whoever_waits_in_order() -> None:
    env = simpy.Environment()
    mailbox = Mailbox(env)
    received = []

    def consumer() -> ProcessGen:
        for _ in range(3):
            received.append((yield mailbox.get()))

    env.process(consumer())
    mailbox.deliver("a")
    mailbox.deliver_all(["b", "c"])
    env.run()

    assert received == ["a", "b", "c"]


def test_mailbox_works_as_any_store_with_put_and_get() -> None:
    env = simpy.Environment()
    mailbox = Mailbox(env)

    mailbox.put("a")
    got = mailbox.get()
    env.run()

    assert got.value == "a"
    assert mailbox.items == []


def test_several_items_at_once_serve_several_who_wait() -> None:
    env = simpy.Environment()
    mailbox = Mailbox(env)
    first, second = mailbox.get(), mailbox.get()

    mailbox.deliver_all(["a", "b"])
    env.run()

    assert (first.triggered, second.triggered) == (True, True)


def test_when_fires_without_taking() -> None:
    env = simpy.Environment()
    mailbox = Mailbox(env)
    arrival = mailbox.when()

    mailbox.deliver("a")
    env.run(until=arrival)

    assert mailbox.items == ["a"]


def test_when_fires_for_a_plain_put_as_well() -> None:
    env = simpy.Environment()
    mailbox = Mailbox(env)
    arrival = mailbox.when()

    mailbox.put("a")
    env.run()

    assert arrival.triggered


def test_when_fires_at_once_where_something_waits() -> None:
    env = simpy.Environment()
    mailbox = Mailbox(env)
    mailbox.deliver("a")

    assert mailbox.when().triggered


def test_when_waits_where_nothing_is_there() -> None:
    env = simpy.Environment()
    mailbox = Mailbox(env)
    mailbox.deliver("a")
    mailbox.take_all()

    arrival = mailbox.when()
    env.run()

    assert not arrival.triggered


def test_take_all_hands_over_everything_once() -> None:
    mailbox = Mailbox(simpy.Environment())
    mailbox.deliver_all(["a", "b"])

    taken = [mailbox.take_all(), mailbox.take_all()]

    assert taken == [["a", "b"], []]


def test_an_abandoned_watch_does_not_hold_up_the_next() -> None:
    env = simpy.Environment()
    mailbox = Mailbox(env)
    woken = []

    def impatient() -> ProcessGen:
        yield mailbox.when() | env.timeout(1.0)
        woken.append(env.now)
        yield mailbox.when()
        woken.append(env.now)

    def late() -> ProcessGen:
        yield env.timeout(2.0)
        mailbox.deliver("a")

    env.process(impatient())
    env.process(late())
    env.run()

    assert woken == [1.0, 2.0]


def test_late_timeout_fires_after_ordinary_events_of_its_instant() -> None:
    env = simpy.Environment()
    order = []

    def wait(event: simpy.Event, name: str) -> ProcessGen:
        yield event
        order.append((env.now, name))

    env.process(wait(LateTimeout(env, 1.0), "late"))
    env.process(wait(env.timeout(1.0), "ordinary"))
    env.run()

    assert order == [(1.0, "ordinary"), (1.0, "late")]


@given(st.floats(0, 1e7), st.floats(0, 1e7))
def test_delay_until_reaches_the_instant_and_overshoots_by_rounding_at_most(
    one_s: float, other_s: float
) -> None:
    now_s, at_s = sorted([one_s, other_s])

    delay_s = delay_until(now_s, at_s)

    assert at_s <= now_s + delay_s <= at_s * (1 + 1e-15)


def test_a_nudge_wakes_one_who_sleeps_until_something_is_due() -> None:
    env = simpy.Environment()
    box = Mailbox(env)
    box.bring, box.next_s = (lambda: None), 5.0
    woken: list[float] = []

    def sleeper() -> ProcessGen:
        for _ in range(2):
            yield box.when()
            woken.append(env.now)

    def nudger() -> ProcessGen:
        yield env.timeout(2.0)
        box.nudge()

    env.process(sleeper())
    env.process(nudger())
    env.run(until=10.0)
    assert woken == [2.0, 5.0]
