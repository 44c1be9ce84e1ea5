"""The frames that an answer rests on are named, and shown side by side in one picture."""

import struct

import pictures
from client import Client
from conftest import Start
from inf_mllm.msg import Instruction, Reasoning
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage

SMALL = {"budget": 256, "nothing_new": 1.0}
"""Room for a dozen frames."""
FRAMES = 20
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def show_many(client: Client) -> None:
    for sec in range(1, FRAMES + 1):
        client.show(pictures.raw(sec=sec))


def check(answer: Reasoning, most: int) -> list[int]:
    """What must hold of any evidence; returns its seconds."""
    stamps, weights = answer.evidence_stamps, list(answer.evidence_weights)
    assert answer.error == ""
    assert 0 < len(stamps) == len(weights) == len(answer.evidence_cameras) <= most
    assert weights == sorted(weights, reverse=True)
    assert 0 <= min(weights) <= sum(weights) <= 1 + 1e-5
    assert all(stamp.nanosec == 0 and 1 <= stamp.sec <= FRAMES for stamp in stamps)
    seconds = [stamp.sec for stamp in stamps]
    assert len(set(seconds)) == len(seconds)
    return seconds


def weight(answer: Reasoning, seconds: set[int]) -> float:
    """Of the frames of these seconds together."""
    pairs = zip(answer.evidence_stamps, answer.evidence_weights)
    return sum(weight for stamp, weight in pairs if stamp.sec in seconds)


def size_of(jpeg: bytes) -> tuple[int, int]:
    """Width and height that the frame header of a baseline jpeg tells."""
    assert jpeg[:2] == b"\xff\xd8" and jpeg[-2:] == b"\xff\xd9"
    at = 2
    while jpeg[at + 1] != 0xC0:
        at += 2 + struct.unpack_from(">H", jpeg, at + 2)[0]
    height, width = struct.unpack_from(">HH", jpeg, at + 5)
    return width, height


def shown(client: Client, name: str = "evidence_image") -> CompressedImage:
    """The last evidence image, as who comes after the answer sees it."""
    images: list[CompressedImage] = []
    client.subscribe(CompressedImage, f"{client.name}/{name}", images.append, LATCHED)
    client.wait(lambda: bool(images), "an evidence image")
    return images[-1]


def test_an_answer_names_frames_that_were_sent_and_those_that_were_recalled(start: Start) -> None:
    _, client = start({**SMALL, "recall_share": 0.0, "recall_units": 2, "evidence_frames": 32})
    show_many(client)
    without = client.ask("Where did you last see the red ball?", recall=Instruction.RECALL_NEVER, ephemeral=True)
    check(without, 32)
    answer = client.ask("Where did you last see the red ball?", recall=Instruction.RECALL_ALWAYS, ephemeral=True)
    recalled = {stamp.sec for stamp in answer.recalled_stamps}
    assert recalled
    assert recalled <= set(check(answer, 32))
    # What is left of them in the cache is single tokens.
    assert weight(answer, recalled) > weight(without, recalled)
    # The same question on the same memory rests on the same frames.
    again = client.ask("Where did you last see the red ball?", recall=Instruction.RECALL_ALWAYS, ephemeral=True)
    assert (again.evidence_stamps, again.evidence_weights) == (answer.evidence_stamps, answer.evidence_weights)
    refused = client.ask("What was in view?", recall=7)
    assert (refused.evidence_stamps, list(refused.evidence_weights)) == ([], [])


def test_a_late_viewer_sees_the_frames_of_the_last_answer(start: Start) -> None:
    _, client = start(SMALL)
    show_many(client)
    answer = client.ask("What is in view?", ephemeral=True)
    count = len(check(answer, 4))
    image = shown(client)
    assert image.header == answer.header
    assert image.format == "jpeg"
    # image_transport, and with it rqt and rviz, takes the last part of the name for the transport.
    assert shown(client, "evidence_image/compressed") == image
    # The pictures are 64 pixels wide, narrower than their texts; two lines of these are below them.
    assert size_of(bytes(image.data)) == (count * (112 + 6) + 6, 48 + 2 * 15 + 12)
    # It is a picture as cameras send them.
    options = {key: f"/viewer/{key}" for key in ("image", "instruction", "instruction_text")}
    arguments = ("-r", "__ns:=/viewer")
    _, viewer = start({"image_transport": "compressed"}, arguments, compressed=True, name="/viewer/inf_mllm", **options)
    viewer.show(image)
    assert viewer.fresh_stats().frames_used == 1


def set_frames(client: Client, count: int) -> None:
    value = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=count)
    request = SetParameters.Request(parameters=[Parameter(name="evidence_frames", value=value)])
    [result] = client.call(SetParameters, f"{client.name}/set_parameters", request).results
    assert result.successful, result.reason


def test_evidence_can_be_left_out_while_the_node_runs(start: Start) -> None:
    _, client = start({**SMALL, "thumbnail_side": 0})
    show_many(client)
    assert len(check(client.ask("What is in view?", ephemeral=True), 4)) == 4
    set_frames(client, 0)
    assert client.ask("What is in view?", ephemeral=True).evidence_stamps == []
    set_frames(client, 1)
    assert len(check(client.ask("What is in view?", ephemeral=True), 1)) == 1
    images: list[CompressedImage] = []
    client.subscribe(CompressedImage, f"{client.name}/evidence_image", images.append, LATCHED)
    client.spin(1.0)
    assert images == []
