"""Random use: whatever comes between what, every instruction has its one answer, the budget holds, and nothing is left behind."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fine_tunes
import pictures
import pytest
from client import Client
from conftest import ROOT, Advertise, Start
from inf_mllm.action import Ask
from inf_mllm.msg import Instruction, Reasoning, ReasoningDelta
from inf_mllm.srv import Cancel, ListWatches
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool, Trigger
from test_action import ASK
from test_cameras import FRONT, REAR, TWO, connected
from test_thoughts import OPENED, PARAMETERS, never_end

STEPS = 150
PATIENCE = 60.0
"""Seconds within which all must have come to an end."""
QUESTIONS = ("What is in view?", "Where is the red ball?", "")
FORMS = (
    {},
    {},
    {"max_new_tokens": 200},
    {"max_new_tokens": 5000},
    {"max_thought_tokens": 3},
    {"ephemeral": True},
    {"choices": ["yes", "no"]},
    {"choices": ["yes", "yes"]},
    {"grammar_kind": Instruction.GRAMMAR_REGEX, "grammar": "[a-z]{1,200}"},
    {"grammar_kind": Instruction.GRAMMAR_REGEX, "grammar": "("},
    {"recall": Instruction.RECALL_ALWAYS},
    {"recall": 9},
)
VALUES = {
    "frames_during_answers": (0, 1, 64),
    "recall_units": (0, 8),
    "evidence_frames": (0, 4, -1),
    "max_new_tokens": (40, 0),
}
CYCLE = (
    Transition.TRANSITION_DEACTIVATE,
    Transition.TRANSITION_CLEANUP,
    Transition.TRANSITION_CONFIGURE,
    Transition.TRANSITION_ACTIVATE,
)


class User:
    """Does one thing after another to the node, as its random numbers have it, and keeps what is still to be answered."""

    def __init__(self, client: Client, cameras: list[Any], chance: random.Random) -> None:
        self.client, self.cameras, self.chance = client, cameras, chance
        self.asked: list[str] = []
        self.watched: list[str] = []
        self.called: list[Any] = []
        self.results: list[Any] = []
        self._action = client.action(Ask, ASK, QoSProfile(depth=1000))
        services = {"reset": Trigger, "pause": SetBool, "cancel": Cancel, "change_state": ChangeState}
        services["set_parameters"] = SetParameters
        self._services = {name: (kind, f"{client.name}/{name}") for name, kind in services.items()}
        self._clients = {
            name: client._node.create_client(kind, topic, qos_profile=QoSProfile(depth=1000))
            for name, (kind, topic) in self._services.items()
        }
        client.wait(lambda: all(service.service_is_ready() for service in self._clients.values()), "the services")

    def call(self, name: str, **fields: Any) -> None:
        self.called.append(self._clients[name].call_async(self._services[name][0].Request(**fields)))

    def _fields(self) -> dict[str, Any]:
        chance = self.chance
        fields = {
            "id": f"{len(self.asked) + len(self.watched)}",
            "text": chance.choice(QUESTIONS),
            **chance.choice(FORMS),
        }
        return fields | {"priority": chance.choice((0, 0, 0, 1, 2))}

    def ask(self) -> None:
        fields = self._fields()
        self.asked.append(fields["id"])
        self.client.instruct(**fields)

    def watch(self) -> None:
        fields = self._fields()
        self.watched.append(fields["id"])
        self.client.instruct(
            **fields, mode=Instruction.MODE_WATCH, watch_frames=2, watch_survives_reset=self.chance.random() < 0.5
        )

    def goal(self) -> None:
        fields = self._fields()
        self.asked.append(fields["id"])
        cancelled = self.chance.random() < 0.5

        def accepted(sent: Any) -> None:
            assert sent.result().accepted
            self.results.append(sent.result().get_result_async())
            if cancelled:
                sent.result().cancel_goal_async()

        sent = self._action.send_goal_async(Ask.Goal(instruction=Instruction(**fields)))
        self.called.append(sent)
        sent.add_done_callback(accepted)

    def cancel(self) -> None:
        self.call("cancel", id=self.chance.choice([*self.asked[-4:], *self.watched[-2:], "nobody"]))

    def reset(self) -> None:
        self.call("reset")

    def pause(self) -> None:
        self.call("pause", data=True)
        self.call("pause", data=False)

    def cycle(self) -> None:
        for transition in CYCLE:
            self.call("change_state", transition=Transition(id=transition))

    def set(self) -> None:
        name, values = self.chance.choice(list(VALUES.items()))
        value = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=self.chance.choice(values))
        self.call("set_parameters", parameters=[Parameter(name=name, value=value)])

    def step(self) -> None:
        weights = {self.ask: 12, self.goal: 6, self.watch: 2, self.cancel: 5, self.set: 3, self.reset: 1, self.pause: 2}
        [action] = self.chance.choices([*weights, self.cycle], [*weights.values(), 1])
        action()
        for camera in self.cameras:
            if self.chance.random() < 0.5:
                camera.publish(pictures.now(seed=self.chance.randrange(100)))
        self.client.spin(self.chance.choice((0.0, 0.0, 0.02, 0.1)))

    def open(self) -> list[str]:
        """Ids that have not had their last answer."""
        ended = {answer.instruction_id for answer in self.client.answers if answer.watch_ended or not answer.watch}
        return [name for name in (*self.asked, *self.watched) if name not in ended]


def demo(_: Path) -> dict[str, object]:
    return {"model": str(ROOT / "models" / "demo"), "budget": 256}


def thinking(folder: Path) -> dict[str, object]:
    """Its thoughts end by their limits alone."""
    never_end(fine_tunes.fine_tune(OPENED, folder))
    return {"model": str(folder), "frame_max_pixels": 1920} | PARAMETERS


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("model", [demo, thinking])
def test_every_instruction_has_its_one_answer(
    start: Start, advertise: Advertise, tmp_path: Path, model: Callable[[Path], dict[str, object]], seed: int
) -> None:
    limits = {"max_new_tokens": 40, "max_new_tokens_limit": 1000}
    _, client = start(TWO | model(tmp_path) | limits, image=FRONT, reliable_images=True)
    # However late they are read, none is lost.
    pieces: list[ReasoningDelta] = []
    client.subscribe(ReasoningDelta, "/inf_mllm/reasoning_delta", pieces.append, QoSProfile(depth=100_000))
    user = User(
        client, [client._image, connected(client, advertise(Image, REAR, QoSProfile(depth=1000)))], random.Random(seed)
    )
    for _ in range(STEPS):
        user.step()
    client.wait(lambda: all(future.done() for future in user.called), "all responses", PATIENCE)
    # Whatever state it is in, it is active in the end.
    for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        request = ChangeState.Request(transition=Transition(id=transition))
        client.call(ChangeState, "/inf_mllm/change_state", request)
    deadline = time.monotonic() + PATIENCE
    while user.open():
        assert time.monotonic() < deadline, f"no last answers of {user.open()}"
        # A watch may have been on its way when the others were cancelled.
        client.call(Cancel, "/inf_mllm/cancel", Cancel.Request(id=""))
        client.spin(0.1)
    client.wait(lambda: all(future.done() for future in user.results), "the results of the goals", PATIENCE)
    client.wait(
        lambda: set(user.asked) <= {piece.instruction_id for piece in pieces if piece.done}, "all pieces", PATIENCE
    )

    answers = [answer for answer in client.answers if not answer.watch]
    ids = [answer.instruction_id for answer in answers if answer.instruction_id in user.asked]
    assert sorted(ids) == sorted(user.asked)
    last = {answer.instruction_id: answer for answer in client.answers}
    assert all(last[name].watch_ended or not last[name].watch for name in user.watched)
    for answer in (answer for answer in answers if answer.instruction_id in user.asked):
        own = [piece for piece in pieces if piece.instruction_id == answer.instruction_id]
        assert [piece.done for piece in own] == [False] * (len(own) - 1) + [True], answer.error
        assert "".join(piece.text for piece in own if not piece.thought) == answer.text
    assert all(stats.used <= stats.budget for stats in client.stats)
    assert client.call(ListWatches, "/inf_mllm/watches", ListWatches.Request()).watches == []
    client.show(pictures.now())
    assert client.ask("What is in view?", max_new_tokens=4).finish_reason != Reasoning.FINISH_ERROR
