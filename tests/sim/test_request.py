import simpy

from batchsim.records import FINISHED
from batchsim.sim.mailbox import ProcessGen
from batchsim.sim.request import Request


def test_request_is_an_event_whose_value_is_how_it_ended() -> None:
    env = simpy.Environment()
    request = Request(env, 0, 0.0, 10, 20)
    endings = []

    def client() -> ProcessGen:
        endings.append((yield request))

    env.process(client())
    env.run()
    request.end(FINISHED)
    env.run()

    assert endings == [FINISHED]


def test_ending_that_nobody_waits_for_costs_no_event_and_is_still_told_later() -> None:
    env = simpy.Environment()
    request = Request(env, 0, 0.0, 10, 20)
    endings = []

    def late_client() -> ProcessGen:
        endings.append((yield request))

    request.end(FINISHED)
    num_scheduled = len(env._queue)
    env.process(late_client())
    env.run()

    assert num_scheduled == 0
    assert endings == [FINISHED]


def test_request_carries_its_predicted_length_and_no_other() -> None:
    request = Request(simpy.Environment(), 0, 0.0, 10, 20)

    names = [name for name in dir(request) if "token" in name or "output" in name]

    assert [name for name in names if "output" in name] == ["predicted_output_tokens"]
    assert {name for name in names if getattr(request, name, None)} == {
        "predicted_output_tokens",
        "prompt_tokens",
        "remaining_tokens",
    }
    assert request.remaining_tokens == request.prompt_tokens
