"""Watches: instructions that stand, through the real node."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pictures
import pytest
from builtin_interfaces.msg import Duration, Time
from client import Client
from conftest import Start
from inf_mllm.msg import Instruction, Reasoning, Watch
from inf_mllm.srv import Cancel, ListWatches
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage
from test_diagnostics import values

PERIOD = Duration(nanosec=100_000_000)
FRAMES = pictures.WIDTH
"""More than a test shows."""


def watch(client: Client, text: str = "What is in view?", **fields: Any) -> None:
    client.instruct(text, mode=Instruction.MODE_WATCH, **fields)


def standing(client: Client) -> dict[str, Watch]:
    response = client.call(ListWatches, "/inf_mllm/watches", ListWatches.Request())
    return {watch.instruction.id: watch for watch in response.watches}


def late_subscriber(client: Client) -> list[Watch]:
    """What somebody hears who begins to listen now."""
    heard: list[Watch] = []
    latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    client.subscribe(Watch, "/inf_mllm/watch", heard.append, latched)
    return heard


def test_a_watch_speaks_with_every_so_many_frames_and_on_change_only(start: Start) -> None:
    _, client = start()
    watch(client, id="every", watch_frames=2)
    watch(client, id="change", watch_frames=1, watch_on_change=True)
    client.wait(lambda: len(standing(client)) == 2, "two watches")
    for i in range(1, 9):
        # The same picture all the time: there is no other answer to it.
        client.show(pictures.raw(sec=i, seed=5))
        # What is asked late is asked once for all frames that have come by then.
        client.wait(lambda i=i: standing(client)["change"].asked >= i, f"asking {i}")

    def answers_of(id: str) -> list[Reasoning]:
        return [answer for answer in client.answers if answer.instruction_id == id]

    def all_answered() -> bool:
        found = standing(client)
        # What is being asked has been counted and not published, and what is published may be on its way.
        settled = found["every"].published == found["every"].asked >= 4
        return settled and all(len(answers_of(id)) == watch.published for id, watch in found.items())

    client.wait(all_answered, "the askings")
    found = standing(client)
    assert found["every"].asked <= 5
    texts = [answer.text for answer in answers_of("change")]
    assert len(texts) == found["change"].published < found["change"].asked
    assert all(one != other for one, other in pairwise(texts))
    answers = answers_of("every")
    assert [answer.watch_asked for answer in answers] == list(range(1, len(answers) + 1))
    assert all(answer.watch and not answer.watch_ended for answer in answers)
    assert found["every"].last.text == answers[-1].text
    assert found["every"].instruction.watch_frames == 2
    # The memory holds the frames and nothing that was asked.
    assert client.fresh_stats().archive_turns == 0


def test_a_watch_by_time_goes_on_without_frames_and_is_cancelled_by_its_id(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw())
    begun = time.monotonic()
    watch(client, id="beat", watch_period=PERIOD, watch_min_interval=Duration(nanosec=350_000_000))
    client.wait(lambda: "beat" in standing(client), "the watch")
    client.wait(lambda: standing(client)["beat"].asked >= 12, "a dozen beats")
    found = standing(client)["beat"]
    assert 2 <= found.published <= 1 + (time.monotonic() - begun) / 0.35

    def told() -> bool:
        statuses = [status for array in client.diagnostics for status in array.status]
        watches = [values(status) for status in statuses if status.name == "/inf_mllm: watches"]
        return any(found["standing"] == "1" and "published" in found["beat"] for found in watches)

    client.forget_diagnostics()
    client.wait(told, "the watch in /diagnostics")
    response = client.call(Cancel, "/inf_mllm/cancel", Cancel.Request(id="beat"))
    assert (response.success, response.message) == (True, "cancelled: 1 watch")
    client.wait(lambda: client.answers[-1].watch_ended, "the last answer")
    last = client.answers[-1]
    assert (last.finish_reason, last.error) == (Reasoning.FINISH_CANCELLED, "the watch was cancelled")
    count = len(client.answers)
    client.spin(0.5)
    assert (standing(client), len(client.answers)) == ({}, count)
    response = client.call(Cancel, "/inf_mllm/cancel", Cancel.Request(id="beat"))
    assert not response.success


def test_who_comes_late_finds_the_last_state_of_every_watch(start: Start) -> None:
    _, client = start({"watches_limit": 3})
    client.show(pictures.raw(sec=1))
    watch(client, id="seldom", watch_frames=1000)
    watch(client, "Where?", id="often", watch_period=Duration(nanosec=20_000_000))
    client.wait(lambda: len([a for a in client.answers if a.instruction_id == "often"]) > 30, "many answers")
    heard = late_subscriber(client)

    client.wait(lambda: {state.instruction.id for state in heard} == {"seldom", "often"}, "the states of both")
    last = {state.instruction.id: state for state in heard}
    assert last["seldom"].published == last["seldom"].asked == 1
    assert last["seldom"].last.text
    assert last["often"].published > 20


def test_a_reset_ends_the_watches_that_do_not_survive_it(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw(sec=1))
    watch(client, id="ends", watch_frames=1)
    watch(client, id="survives", watch_frames=1, watch_survives_reset=True)
    client.wait(lambda: len(client.answers) == 2, "both answers")
    assert client.reset().success
    client.wait(lambda: any(answer.watch_ended for answer in client.answers), "the last answer of one")
    last = client.answers[-1]
    assert (last.instruction_id, last.error) == ("ends", "the memory was reset")
    assert list(standing(client)) == ["survives"]
    client.show(pictures.raw(sec=2))
    client.wait(lambda: client.answers[-1].instruction_id == "survives", "the answer of the other")
    assert client.answers[-1].frames_seen == 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "watch_period and watch_frames are 0, expected one of them to be more"),
        ({"watch_period": PERIOD, "watch_frames": 3}, "watch_frames is 3, expected one of them to be 0"),
        ({"watch_period": Duration(sec=-1)}, "instruction watch_period is -1 s, expected 0 or more"),
        ({"watch_frames": 1, "watch_min_interval": Duration(sec=-1)}, "instruction watch_min_interval is -1 s"),
        ({"watch_frames": 1, "watch_hysteresis": 1.5}, "watch_hysteresis is 1.5, expected 0 to 1"),
        ({"watch_frames": 1, "watch_hysteresis": float("nan")}, "watch_hysteresis is NaN, expected 0 to 1"),
        ({"watch_frames": 1, "mode": 7}, "instruction mode is 7, expected 0 (ask) or 1 (watch)"),
    ],
)
def test_a_watch_that_cannot_stand_is_refused(start: Start, fields: dict[str, Any], expected: str) -> None:
    _, client = start()
    client.show(pictures.raw())
    answer = client.ask("What is in view?", **{"mode": Instruction.MODE_WATCH, **fields})
    assert answer.finish_reason == Reasoning.FINISH_ERROR
    assert expected in answer.error
    # Who waits for the end of a watch sees it, unless it never was one.
    assert answer.watch == answer.watch_ended == (fields.get("mode") is None)
    assert standing(client) == {}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"choices": ["yes", ""]}, "choice 1 is empty"),
        ({"choices": ["yes", "no ", " no"]}, "choices 1 and 2 are the same text"),
        ({"choices": ["yes", "no " * 5000]}, "choice 1 is "),
        ({"grammar_kind": Instruction.GRAMMAR_REGEX, "grammar": "(left"}, "grammar (regex) cannot be compiled"),
        ({"grammar_kind": Instruction.GRAMMAR_LARK, "grammar": "start: start"}, "no text of the rule start"),
        (
            {"images": [CompressedImage(format="jpeg", data=b"none")]},
            "picture 1 of 1 of the instruction cannot be shown",
        ),
        ({"max_new_tokens": 100_000}, "max_new_tokens is 100000, expected at most 1024"),
        ({"recall_from": Time(sec=5), "recall_to": Time(sec=3)}, "the range ends before it begins"),
        ({"text": " "}, "instruction text is empty"),
        ({"text": "far " * 5000}, "tokens long, expected at most"),
    ],
)
def test_a_watch_that_can_never_be_answered_is_refused_before_it_is_asked(
    start: Start, fields: dict[str, Any], expected: str
) -> None:
    _, client = start()
    # There is no frame yet: what is wrong is wrong whatever will be seen.
    given = {"text": "What is in view?", "mode": Instruction.MODE_WATCH, "watch_frames": 1, **fields}
    answer = client.ask(**given)
    assert (answer.finish_reason, answer.watch_ended) == (Reasoning.FINISH_ERROR, True)
    assert expected in answer.error
    assert standing(client) == {}


def test_of_a_hundred_watches_as_many_stand_as_may(start: Start) -> None:
    _, client = start()
    client.show(pictures.raw())
    for i in range(100):
        watch(client, f"Question {i}?", id=f"watch {i}", watch_frames=FRAMES)
    client.wait(lambda: len(client.answers) >= 100, "the refusals and first answers")
    refused = [answer for answer in client.answers if answer.error]
    assert len(refused) == 84
    assert all("16 watches stand, expected fewer than 16 (watches_limit)" in answer.error for answer in refused)
    assert set(standing(client)) == {f"watch {i}" for i in range(16)}
    # The node goes on.
    assert client.ask("What is in view?", id="after").error == ""
    response = client.call(Cancel, "/inf_mllm/cancel", Cancel.Request())
    assert response.message == "cancelled: 16 watches"
