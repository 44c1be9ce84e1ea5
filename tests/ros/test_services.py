"""The node's services when many ask at the same time."""

import pictures
from conftest import Start
from rcl_interfaces.srv import GetParameters, ListParameters
from std_srvs.srv import SetBool, Trigger

MANY = 60


def test_every_one_of_many_requests_at_once_is_answered(start: Start) -> None:
    """More than the ROS library's queue of ten: dashboards and launch files ask for everything at once."""
    _, client = start()
    names = client.call(ListParameters, "/inf_mllm/list_parameters", ListParameters.Request()).result.names
    asked = [GetParameters.Request(names=[names[i % len(names)], "budget"]) for i in range(MANY)]
    answers = client.call_at_once(GetParameters, "/inf_mllm/get_parameters", asked)
    assert [answer.values[1].integer_value for answer in answers] == [512] * MANY

    pauses = [SetBool.Request(data=i % 2 == 0) for i in range(MANY)]
    answers = client.call_at_once(SetBool, "/inf_mllm/pause", pauses)
    # Each one is the answer to its own request, in their order.
    assert [answer.message for answer in answers] == ["paused", "running"] * (MANY // 2)
    assert not client.fresh_stats().paused

    client.show(pictures.raw(sec=1))
    answers = client.call_at_once(Trigger, "/inf_mllm/reset", [Trigger.Request()] * MANY)
    assert all(answer.success for answer in answers), answers
    assert "no frame has been seen yet" in client.ask("What is in view?").error
