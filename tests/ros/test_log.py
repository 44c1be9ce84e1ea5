"""The log is that of any ROS node: rcl's lines, levels and file, and /rosout."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pictures
import pytest
import rclpy
from client import Client
from conftest import START_SECONDS, Start
from node_process import PARAMETER_FILE, NodeProcess
from rcl_interfaces.msg import Log
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile

LINE = re.compile(r"\[(DEBUG|INFO|WARN|ERROR)\] \[\d+\.\d{9}\] \[([\w.]+)\]: \S")
"""rcl's line: level, time and logger."""
QUESTION = "What is in view?"

Rosout = Callable[[], list[Log]]


@pytest.fixture
def rosout(domain: int) -> Iterator[Rosout]:
    """What has come on /rosout, from before the listener came too."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = rclpy.create_node("listener", context=context, enable_rosout=False)
    said: list[Log] = []
    node.create_subscription(
        Log, "/rosout", said.append, QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    )
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def heard() -> list[Log]:
        executor.spin_once(timeout_sec=0.01)
        return said

    yield heard
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)


def wait_for_rosout(client: Client, rosout: Rosout, text: str) -> Log:
    """The first message of /rosout that holds a text."""
    found: list[Log] = []

    def seen() -> bool:
        found.extend(message for message in rosout() if text in message.msg)
        return bool(found)

    client.wait(seen, f"{text!r} on /rosout")
    return found[0]


@pytest.mark.parametrize("namespace", ["", "/robot/left"])
def test_every_line_is_rcls_and_has_the_nodes_name(start: Start, namespace: str) -> None:
    process, client = start(
        {},
        ("-r", f"__ns:={namespace or '/'}"),
        name=f"{namespace}/inf_mllm",
        image=f"{namespace}/image",
        instruction=f"{namespace}/instruction",
        instruction_text=f"{namespace}/instruction_text",
    )
    client.ask(QUESTION)
    client.wait(lambda: "not answered: no frame has been seen yet" in process.log, "the refusal")
    matches = [LINE.match(line) for line in process.lines]
    assert all(matches), process.log
    logger = "robot.left.inf_mllm" if namespace else "inf_mllm"
    assert {match[2] for match in matches if match} == {logger}
    levels = {match[1]: line for match, line in zip(matches, process.lines, strict=True) if match}
    assert "not answered" in levels["WARN"]


def test_lines_are_published_on_rosout_with_level_and_origin(start: Start, rosout: Rosout) -> None:
    process, client = start()
    ready = wait_for_rosout(client, rosout, "ready ")
    assert (ready.name, ready.level) == ("inf_mllm", Log.INFO)
    assert ready.file.endswith("lifecycle.rs")
    assert ready.line > 0
    client.ask(QUESTION)
    refused = wait_for_rosout(client, rosout, "not answered: no frame has been seen yet")
    assert refused.level == Log.WARN
    assert client.reset().success
    assert wait_for_rosout(client, rosout, "reset: memory is empty").level == Log.INFO
    assert any(line.endswith("[inf_mllm]: reset: memory is empty") for line in process.lines)


def test_an_answer_is_said_at_debug_only(start: Start) -> None:
    process, client = start()
    client.show(pictures.raw())
    client.ask(QUESTION, id="asked")
    assert client.reset().success
    assert "asked" not in process.log


@pytest.mark.parametrize("level", [("debug",), ("inf_mllm:=debug",), ("error", "inf_mllm:=DEBUG")])
def test_the_level_debug_shows_answers(start: Start, level: tuple[str, ...]) -> None:
    arguments = [argument for given in level for argument in ("--log-level", given)]
    process, client = start(arguments=tuple(arguments))
    client.show(pictures.raw())
    answer = client.ask(QUESTION, id="asked")
    client.wait(lambda: "answer: " in process.log, "the answer in the log")
    line = next(line for line in process.lines if "answer: " in line)
    assert line.startswith("[DEBUG] ")
    assert f"answer: {answer.text}" in line
    assert "id=asked" in line


@pytest.mark.usefixtures("domain")
def test_the_level_error_leaves_only_errors() -> None:
    process = NodeProcess({"model": "nowhere"}, ("--log-level", "error"))
    assert process.wait_end(START_SECONDS) == 1
    assert len(process.lines) == 1, process.log
    assert process.lines[0].startswith("[ERROR] ")
    assert "parameter model is" in process.lines[0]


@pytest.mark.usefixtures("domain")
def test_a_level_that_does_not_exist_ends_the_node() -> None:
    process = NodeProcess({}, ("--log-level", "loud"))
    assert process.wait_end(START_SECONDS) == 1
    assert process.lines[-1].startswith("[ERROR] ")
    assert "--log-level loud" in process.log


def test_the_format_and_the_log_file_are_those_of_ros(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path))
    monkeypatch.setenv("RCUTILS_CONSOLE_OUTPUT_FORMAT", "{name} {severity}: {message}")
    process, _ = start(parameter_file=PARAMETER_FILE)
    assert any(line.startswith("inf_mllm INFO: ready ") for line in process.lines), process.log
    status, _ = process.stop()
    assert status == 0
    (file,) = tmp_path.glob("inf_mllm_node_*.log")
    written = file.read_text()
    assert "inf_mllm INFO: ready " in written
    assert written.rstrip().endswith("inf_mllm INFO: ended")


@pytest.mark.usefixtures("domain")
def test_a_log_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "file"
    place.write_text("in the way")
    monkeypatch.setenv("ROS_LOG_DIR", str(place / "log"))
    process = NodeProcess({})
    assert process.wait_end(START_SECONDS) == 1
    assert f"{place}/log" in process.log
    assert "panicked" not in process.log


def test_what_would_steer_a_terminal_is_not_in_the_log(start: Start) -> None:
    process, client = start()
    client.show(pictures.raw())
    client.instruct("What is in view?", id="\x1b[2Jtwin", max_new_tokens=300)
    client.instruct("", id="\x1b[2Jempty")
    client.wait(lambda: "instruction text is empty" in process.log, "the refusal")
    assert "\x1b" not in process.log
    assert "[2Jempty" in process.log
