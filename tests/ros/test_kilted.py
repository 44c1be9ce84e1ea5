"""A camera and a user of ROS 2 Kilted beside the node, which is built with the ROS 2 in use (Jazzy, if it is the private one)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pytest
from client import Client
from conftest import ROOT, Start
from inf_mllm.msg import Reasoning
from sensor_msgs.msg import CompressedImage, Image

PYTHON = ROOT / ".kilted" / "bin" / "python"
PEER = Path(__file__).parent / "kilted_peer.py"
ENVIRONMENT = ("HOME", "PATH", "ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE", "FASTDDS_DEFAULT_PROFILES_FILE")
"""All that the other distribution gets of this one's environment."""
QUESTION = "What is in view?"
ONE_FRAME = {"min_change": 0.01}
"""Of equal pictures only the first one is taken."""

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="Kilted's wheels exist for x86_64 only")


class Kilted:
    """The other process; what is asked of it is a method of kilted_peer.Peer."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.version: str = self._answer("looked for the node")

    def request(self, name: str, *arguments: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer(f"was asked to {name}")

    def _answer(self, doing: str) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the Kilted process ended when it {doing}; its standard error says why"
        return json.loads(line)


@contextmanager
def kilted() -> Iterator[Kilted]:
    assert PYTHON.exists(), f"{PYTHON} is missing: scripts/kilted.sh installs it"
    process = subprocess.Popen(
        [PYTHON, PEER],
        env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Kilted(process)
    finally:
        process.kill()
        process.communicate()


def large() -> Image:
    """An Image larger than what a socket holds by default."""
    pixels = np.kron(pictures.picture(), np.ones((10, 10, 1), np.uint8))
    height, width, _ = pixels.shape
    message = Image(height=height, width=width, encoding="rgb8", step=width * 3, data=pixels.tobytes())
    return pictures.stamped(message, sec=1)


def show(peer: Kilted, client: Client, picture: Image | CompressedImage, folder: Path) -> None:
    """The Kilted camera publishes the picture until the node has taken it."""
    file = folder / "picture"
    file.write_bytes(bytes(picture.data))
    compressed = isinstance(picture, CompressedImage)
    size = ("jpeg", 0, 0) if compressed else (picture.encoding, picture.height, picture.width)

    def used() -> bool:
        peer.request("show", str(file), *size)
        return client.stats[-1].frames_used == 1

    client.wait(used, "the frame of the Kilted camera")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_camera_and_a_user_of_kilted(start: Start, tmp_path: Path, compressed: bool) -> None:
    _, client = start({**ONE_FRAME, "image_transport": "compressed" if compressed else "raw"}, compressed=compressed)
    picture = pictures.jpeg() if compressed else large()
    with kilted() as peer:
        assert peer.version.startswith("9."), "Kilted has rclpy 9"
        show(peer, client, picture, tmp_path)
        text = peer.request("ask", QUESTION)
        client.wait(lambda: bool(client.answers), "the answer on this side")
        theirs = client.answers[-1]
        assert (theirs.text, theirs.finish_reason) == (text, Reasoning.FINISH_STOP)
        assert peer.request("reset")
    # The same picture and question from this side: nothing was changed on the way.
    client.show(pictures.stamped(picture, *divmod(time.time_ns(), 10**9)))
    ours = client.ask(QUESTION)
    assert (ours.text, ours.vision_tokens, ours.mean_logprob) == (text, theirs.vision_tokens, theirs.mean_logprob)
    assert (client.stats[-1].frames_used, client.stats[-1].frames_rejected) == (2, 0)


def test_services_parameters_and_diagnostics_from_kilted(start: Start) -> None:
    _, client = start()
    with kilted() as peer:
        for paused in (True, False):
            assert peer.request("pause", paused)
            client.wait(lambda paused=paused: client.stats[-1].paused == paused, f"paused to be {paused}")
        assert peer.request("set_parameter", "frame_rate", 2.5) == ""
        assert peer.request("get_parameter", "frame_rate") == 2.5
        assert "expected" in peer.request("set_parameter", "frame_rate", -1.0)
        assert peer.request("get_parameter", "frame_rate") == 2.5
        assert "/inf_mllm: camera" in peer.request("diagnostics")
