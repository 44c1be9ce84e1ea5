"""Cameras that are not there, that die, and that come back; and the example program beside them."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pictures
import pytest
from conftest import ROOT, Advertise, Start
from diagnostic_msgs.msg import DiagnosticStatus
from inf_mllm.msg import Reasoning
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from test_diagnostics import said_of_silence, wait_for, wait_for_message

ASK = ROOT / "examples" / "ask.py"


@contextmanager
def camera_process() -> Iterator[subprocess.Popen]:
    """A camera that is killed without a word in the end."""
    process = subprocess.Popen([sys.executable, Path(__file__).parent / "camera_process.py"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ask(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ASK, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_a_camera_that_dies_is_missed_and_another_takes_over(start: Start) -> None:
    _, client = start()
    client.stop_camera()
    with camera_process():
        client.wait(lambda: client.stats[-1].frames_used > 5, "the first camera's frames")
        # Before it came, another warning was right.
        wait_for(client, "camera", DiagnosticStatus.OK)
    status = wait_for(client, "camera", DiagnosticStatus.WARN)
    assert said_of_silence(status)
    used = client.fresh_stats().frames_used
    # What was seen is still there.
    assert client.ask("What is the closest object?").finish_reason == Reasoning.FINISH_STOP
    with camera_process():
        client.wait(lambda: client.stats[-1].frames_used > used + 5, "the second camera's frames")
        wait_for(client, "camera", DiagnosticStatus.OK)
    stats = client.fresh_stats()
    assert (stats.time_jumps, stats.frames_rejected) == (0, 0)


def test_without_a_camera_the_node_says_so_and_waits(start: Start, advertise: Advertise) -> None:
    _, client = start()
    client.stop_camera()
    wait_for_message(client, "camera", DiagnosticStatus.WARN, "no image has come on /image: nobody publishes it")
    answer = client.ask("What is the closest object?")
    assert answer.finish_reason == Reasoning.FINISH_ERROR
    reason = (
        "no frame has been seen yet, expected at least one before an instruction: no image has come on /image: nobody"
    )
    assert answer.error.startswith(reason)
    late = advertise(Image, "/image", qos_profile_sensor_data)

    def used() -> bool:
        late.publish(pictures.raw())
        return client.stats[-1].frames_used > 0

    client.wait(used, "the late camera's frame")
    assert client.ask("What is the closest object?").finish_reason == Reasoning.FINISH_STOP


def test_the_example_asks_a_node_in_a_namespace(start: Start) -> None:
    _, client = start(
        arguments=("-r", "__ns:=/robot"),
        name="/robot/inf_mllm",
        image="/robot/image",
        instruction="/robot/instruction",
        instruction_text="/robot/instruction_text",
    )
    where = ("--node", "/robot/inf_mllm", "--instruction", "/robot/instruction")
    early = ask("What is the closest object?", *where)
    assert early.returncode == 1
    assert "not answered: no frame has been seen yet" in early.stderr
    client.show(pictures.raw())
    answered = ask("What is the closest object?", *where)
    assert answered.returncode == 0, answered.stderr
    client.wait(lambda: len(client.answers) == 2, "both answers")
    assert answered.stdout.startswith(f"{client.answers[-1].text} (from an image ")


@pytest.mark.usefixtures("domain")
def test_the_example_says_when_nobody_listens() -> None:
    lonely = ask("What is the closest object?", "--timeout", "1")
    assert lonely.returncode == 1
    assert "no node listens on /instruction" in lonely.stderr
