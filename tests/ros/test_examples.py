"""The programs of examples/ beside the real node, with frames of the demo bag."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator

import pictures
from client import ENDLESS, LONG, Client
from conftest import ROOT, Start
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Twist
from inf_mllm.msg import CacheStats, Reasoning, Watch
from inf_mllm.srv import ListWatches
from rclpy.qos import QoSProfile
from rosidl_parser.definition import BasicType
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

EXAMPLES = ROOT / "examples"
BALL, NO_BALL = range(500, 511), range(142, 153)
"""Frames of the demo bag: with a red ball before the camera at the end, and with none."""
COMPRESSED = {"image_transport": "compressed"}
COMMAND = r"forward (\S+) m/s, turn (\S+) rad/s"


class Example:
    """A program of examples/ that runs while the client's messages are handled."""

    def __init__(self, client: Client, name: str, *arguments: str) -> None:
        self._client = client
        self._files = [os.fdopen(os.memfd_create(stream), "rb", buffering=0) for stream in ("out", "err")]
        # What is started in the background begins with Ctrl-C ignored, and so do its children.
        command = ["env", "--default-signal=INT", sys.executable, str(EXAMPLES / name), *arguments]
        out, err = self._files
        self.process = subprocess.Popen(command, stdout=out, stderr=err)

    @property
    def printed(self) -> str:
        return self._read()[0]

    def wait(self, condition: Callable[[str], bool], what: str) -> str:
        """What it has printed when that fulfils a condition."""
        self._client.wait(lambda: condition(self.printed), what, timeout=60)
        return self.printed

    def end(self, by: signal.Signals | None = None) -> str:
        """What it has printed, once it has ended by itself or by a signal."""
        try:
            if by is not None:
                self.process.send_signal(by)
            self._client.wait(lambda: self.process.poll() is not None, "the example to end", timeout=60)
        finally:
            self.process.kill()
        out, err = self._read()
        assert (self.process.returncode, err) == (0, "")
        return out

    def _read(self) -> list[str]:
        return [os.pread(file.fileno(), 1 << 20, 0).decode() for file in self._files]


def frames(second: int, indices: Iterable[int]) -> Iterator[CompressedImage]:
    """Frames of the demo bag, a tenth of a second apart."""
    for i, index in enumerate(indices):
        message = pictures.jpeg(sec=second + i // 10, index=index)
        message.header.stamp.nanosec = i % 10 * 100_000_000
        yield message


def show(client: Client, second: int, indices: Iterable[int]) -> None:
    for message in frames(second, indices):
        client.show(message)


def watches(client: Client) -> list[str]:
    """Ids of the watches that stand."""
    response = client.call(ListWatches, "/inf_mllm/watches", ListWatches.Request())
    return [watch.instruction.id for watch in response.watches]


def commands(printed: str) -> list[tuple[float, float]]:
    """Forward and turning speeds."""
    return [(float(forward), float(turn)) for forward, turn in re.findall(COMMAND, printed)]


def drives(printed: str) -> bool:
    """Whether the last command is to go on to what is seen, which the watch has to allow."""
    stops = re.findall("stop: (.*)", printed)
    forward, turn = (commands(printed) or [(0.0, 0.0)])[-1]
    return stops[-1:] == ["no"] and forward > 0.0 and abs(turn) < 0.3


def test_the_planner_looks_around_and_drives_to_what_it_sees_and_ends_its_watch(start: Start) -> None:
    _, client = start(COMPRESSED, compressed=True)
    show(client, 10, NO_BALL)
    twists: list[Twist] = []
    example = Example(client, "planner.py", "red ball")
    client.subscribe(Twist, "/cmd_vel", twists.append, QoSProfile(depth=100))
    example.wait(lambda out: commands(out)[-1:] == [(0.0, 0.3)], "it to look around while nothing is to be seen")
    show(client, 20, BALL)
    example.wait(drives, "it to drive to what it sees")
    client.wait(lambda: watches(client) == ["planner stop"], "its watch")
    out = example.end(signal.SIGINT)
    assert set(re.findall("stop: (.*)", out)) <= {"yes", "no"}, out
    client.wait(lambda: twists[-1] == Twist(), "it to stop in the end")
    assert watches(client) == []


def test_a_planner_takes_over_from_one_that_was_killed(start: Start) -> None:
    _, client = start(COMPRESSED, compressed=True)
    show(client, 10, BALL)
    first = Example(client, "planner.py", "red ball")
    try:
        first.wait(drives, "the one to be killed to drive")
    finally:
        first.process.kill()
    assert watches(client) == ["planner stop"]
    second = Example(client, "planner.py", "red ball")
    second.wait(drives, "the other one to drive")
    assert watches(client) == ["planner stop"]
    out = second.end(signal.SIGINT)
    assert set(re.findall("stop: (.*)", out)) <= {"yes", "no"}, out
    assert watches(client) == []


def test_the_planner_goes_through_the_demo_bag(start: Start) -> None:
    _, client = start(COMPRESSED, compressed=True)
    example = Example(client, "planner.py", "red ball")
    for message in frames(10, range(420, 560)):
        client.publish(message)
        client.spin(0.1)
    out = example.end(signal.SIGINT)
    assert "not answered" not in out
    # The ball comes into view and leaves it again: it neither turned all the time nor never.
    searching = [turn == 0.3 for _, turn in commands(out)]
    assert 0 < sum(searching) < len(searching)
    failed = [answer for answer in client.answers if answer.finish_reason == Reasoning.FINISH_ERROR]
    assert all("no frame" in answer.error for answer in failed), [answer.error for answer in failed]


def test_the_behaviour_tree_goes_on_or_looks_around_as_the_answers_say(start: Start) -> None:
    _, client = start(COMPRESSED, compressed=True)
    show(client, 10, NO_BALL)
    out = Example(client, "behaviour_tree.py", "red ball", "--rounds", "2").end()
    told = [line for line in out.splitlines() if not line.startswith("waiting for")]
    assert told[:2] == ["Do you see a red ball? no", "forward +0.00 m/s, turn +0.30 rad/s: done"]
    show(client, 20, BALL)
    client.answers.clear()
    out = Example(client, "behaviour_tree.py", "red ball", "--rounds", "1").end()
    lines = [line for line in out.splitlines() if not line.startswith("waiting for")]
    assert lines[0] == "Do you see a red ball? yes"
    free = lines[1] == "Do you need to stop? no"
    expected = "forward +0.20 m/s, turn +0.00 rad/s: done" if free else "forward +0.00 m/s, turn +0.30 rad/s: done"
    assert lines[2:] == [expected]
    client.wait(lambda: len(client.answers) == 2, "both answers on the topic")
    assert [answer.text for answer in client.answers] == ["yes", "no" if free else "yes"]


def test_a_leaf_that_is_halted_cancels_its_goal(start: Start) -> None:
    _, client = start({**LONG, **COMPRESSED}, compressed=True)
    show(client, 10, NO_BALL)
    for number in range(4):
        client.instruct(f"Tell me everything, {number}.", **ENDLESS)
    client.wait(lambda: bool(client.deltas), "the first piece")
    out = Example(client, "behaviour_tree.py", "red ball", "--rounds", "1", "--patience", "0.5").end()
    told = [line for line in out.splitlines() if not line.startswith("waiting for")]
    assert told == ["Do you see a red ball? halted", "forward +0.00 m/s, turn +0.30 rad/s: done"]
    client.wait(lambda: bool(client.answers), "the answer of the cancelled goal")
    [cancelled] = client.answers
    assert (cancelled.finish_reason, cancelled.error) == (Reasoning.FINISH_CANCELLED, "cancelled while it waited")


LAYOUT = json.loads((EXAMPLES / "foxglove_layout.json").read_text())
OTHERS = {"/camera/image/compressed": CompressedImage, "/cmd_vel": Twist}
"""Topics of the layout that are not the node's: the camera of launch/demo.launch.py, and the commands of a planner."""
TYPES = {
    kind: message
    for message, kind in (
        (CacheStats, "inf_mllm/CacheStats"),
        (Reasoning, "inf_mllm/Reasoning"),
        (Watch, "inf_mllm/Watch"),
        (CompressedImage, "sensor_msgs/CompressedImage"),
        (DiagnosticArray, "diagnostic_msgs/DiagnosticArray"),
        (String, "std_msgs/String"),
    )
}


def panels(layout: object) -> Iterator[str]:
    """Names of the panels in a part of a layout."""
    if isinstance(layout, str):
        yield layout
        if layout.startswith("Tab!"):
            for tab in LAYOUT["configById"][layout]["tabs"]:
                yield from panels(tab["layout"])
    else:
        assert layout["direction"] in ("row", "column")
        assert 0 < layout["splitPercentage"] < 100
        yield from panels(layout["first"])
        yield from panels(layout["second"])


def test_the_layout_shows_every_panel_once() -> None:
    assert sorted(panels(LAYOUT["layout"])) == sorted(LAYOUT["configById"])


def uses(config: dict) -> Iterator[tuple[str, bool]]:
    """Message paths of a panel, and whether they are to lead to numbers."""
    for key in ("topicPath", "topicToRender", "topicName"):
        if key in config:
            yield config[key], False
    if "imageMode" in config:
        yield config["imageMode"]["imageTopic"], False
    for path in config.get("paths", []):
        yield path["value"], True


def walk(message: type, path: list[str]) -> object:
    """The type at the end of a message path."""
    kinds = dict(zip(message.get_fields_and_field_types(), message.SLOT_TYPES, strict=True))
    name, is_slice = re.fullmatch(r"(\w+)(\[:\])?", path[0]).groups()
    assert name in kinds, f"{message.__name__} has no {name}"
    kind = kinds[name]
    assert hasattr(kind, "value_type") == bool(is_slice), path
    kind = kind.value_type if is_slice else kind
    if len(path) == 1:
        return kind
    return walk(type(getattr(message(), name)), path[1:])


def test_every_topic_and_message_path_of_the_layout_exists(start: Start) -> None:
    _, client = start(COMPRESSED, compressed=True)
    named = {path.split(".")[0] for config in LAYOUT["configById"].values() for path, _ in uses(config)}
    client.wait(lambda: named <= {*client.interface(), *OTHERS}, "the topics of the layout")
    topics = {
        name: TYPES.get(re.sub("/(msg|srv|action)/", "/", kind)) for name, kind in client.interface().items()
    } | OTHERS
    found = set()
    for config in LAYOUT["configById"].values():
        for path, number in uses(config):
            topic, *fields = path.split(".")
            message = topics[topic]
            assert message is not None, topic
            found.add(topic)
            kind = walk(message, fields) if fields else None
            assert not number or (isinstance(kind, BasicType) and kind.typename != "boolean"), path
    for topic in ("reasoning", "evidence_image", "cache_stats", "watch"):
        assert f"/inf_mllm/{topic}" in found
    publish = next(config for config in LAYOUT["configById"].values() if "topicName" in config)
    assert publish["datatype"] == "std_msgs/msg/String"
    assert set(json.loads(publish["value"])) == set(String.get_fields_and_field_types())
