"""Boxes and points in the answers of the families that write them, on ~/detections, in pixels of the camera's picture."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pictures
import pytest
import saying
from client import Client
from conftest import ROOT, Start
from diagnostic_msgs.msg import DiagnosticStatus
from inf_mllm.msg import Instruction, Reasoning
from pictures import HEIGHT, WIDTH
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from test_diagnostics import values, wait_for
from vision_msgs.msg import Detection2DArray

FAMILIES = ROOT / "tests" / "golden" / "families"
DETECTIONS = "/inf_mllm/detections"


def listen(client: Client) -> list[Detection2DArray]:
    arrays: list[Detection2DArray] = []
    client.subscribe(Detection2DArray, DETECTIONS, arrays.append, QoSProfile(depth=10))
    return arrays


def begin(start: Start, model: Path, **parameters: object) -> tuple[Client, list[Detection2DArray]]:
    """A node with a tiny checkpoint that has seen two frames, and what it publishes."""
    settings = {"model": str(model), "budget": 256, "system_prompt": "", "max_new_tokens": 200, **parameters}
    _, client = start(settings)
    arrays = listen(client)
    for sec in (6, 7):
        client.show(pictures.raw(sec=sec))
    return client, arrays


def say(client: Client, text: str, **fields: object) -> Reasoning:
    """An answer that can be nothing but this text."""
    grammar = {"grammar_kind": Instruction.GRAMMAR_REGEX, "grammar": re.escape(text).replace("\\ ", " ")}
    answer = client.ask("Where is the cup?", **grammar, **fields)
    assert (answer.text, answer.error) == (text, "")
    return answer


def tower_size(family: str) -> tuple[float, float]:
    """Width and height that the published image processor of Qwen-VL scales the camera's picture to: multiples of a merged patch, as
    many pixels as are allowed at most."""
    config = json.loads((FAMILIES / family / "preprocessor_config.json").read_text())
    side, most = config["patch_size"] * config["merge_size"], config["max_pixels"]
    assert WIDTH * HEIGHT > most
    shrink = math.sqrt(WIDTH * HEIGHT / most)
    width, height = (side * math.floor(length / shrink / side) for length in (WIDTH, HEIGHT))
    return width, height


def boxes(array: Detection2DArray) -> list[tuple[str, list[float]]]:
    """Labels, and left, top, right and bottom edges."""
    found = []
    for detection in array.detections:
        [result], box = detection.results, detection.bbox
        (x, y), (width, height) = (box.center.position.x, box.center.position.y), (box.size_x, box.size_y)
        assert box.center.theta == 0
        edges = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        found.append((result.hypothesis.class_id, edges))
    return found


def counts(client: Client) -> tuple[int, int]:
    """Boxes in the answers so far, and those that were left out."""
    status = values(wait_for(client, "instructions", DiagnosticStatus.OK))
    return int(status["detections"]), int(status["detections_dropped"])


def written(*objects: dict[str, object]) -> str:
    return json.dumps(objects)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_boxes_and_points_are_published_in_pixels_of_the_picture(family: str, start: Start) -> None:
    client, arrays = begin(start, FAMILIES / family)
    # Pixels of the scaled picture in one family, thousandths in the other.
    width, height = tower_size(family) if family == "qwen2_5_vl" else (1000, 1000)
    box, point, outside = [3, 6, 21, 29], [30, 1.5], [0, 0, width + 1, 10]
    objects = (
        {"bbox_2d": box, "label": "red cup"},
        {"bbox_2d": outside, "label": "a wall"},
        {"point_2d": point, "label": "its handle"},
        {"bbox_2d": box[::-1], "label": "reversed"},
    )
    answer = say(client, written(*objects))
    client.wait(lambda: bool(arrays), "detections")
    [array] = arrays
    assert (array.header, array.header.stamp.sec, array.header.frame_id) == (answer.header, 7, pictures.FRAME_ID)
    scale = [WIDTH / width, HEIGHT / height] * 2
    expected = [("red cup", box), ("its handle", [*point, *point])]
    for (label, edges), (wanted, numbers) in zip(boxes(array), expected, strict=True):
        assert label == wanted
        assert edges == pytest.approx([number * by for number, by in zip(numbers, scale)])
    for detection in array.detections:
        assert (detection.header, detection.id) == (array.header, "")
        assert detection.results[0].hypothesis.score == pytest.approx(math.exp(answer.mean_logprob), rel=1e-5)
        assert 0 < detection.results[0].hypothesis.score < 1
    assert counts(client) == (2, 2)
    # Another picture, twice as wide and high, is scaled to the same size.
    pixels = pictures.picture(seed=8).repeat(2, axis=0).repeat(2, axis=1)
    image = Image(height=2 * HEIGHT, width=2 * WIDTH, encoding="rgb8", step=6 * WIDTH, data=pixels.tobytes())
    client.show(pictures.stamped(image, sec=8))
    say(client, written(objects[0]), ephemeral=True)
    client.wait(lambda: len(arrays) == 2, "detections of another picture")
    [(_, once), _], [(_, twice)] = (boxes(array) for array in arrays)
    assert twice == pytest.approx([2 * edge for edge in once])


def test_what_is_no_box_publishes_nothing_and_an_empty_list_says_so(start: Start) -> None:
    client, arrays = begin(start, FAMILIES / "qwen3_vl")
    box = {"bbox_2d": [0, 0, 500, 500], "label": "cup"}
    say(client, "The cup is at [0, 0, 500, 500].")
    say(client, written({**box, "bbox_2d": [0, 0, 1500, 500]}))
    say(client, written({"cup": [0, 0, 500, 500]}))
    # Its text does not say in which picture.
    say(client, written(box), images=[pictures.png()])
    whole = written(box, box)
    cut = client.ask("Where?", grammar_kind=Instruction.GRAMMAR_REGEX, grammar=re.escape(whole), max_new_tokens=60)
    assert (cut.finish_reason, cut.text) == (Reasoning.FINISH_LENGTH, whole[: len(cut.text)])
    say(client, "[]")
    client.wait(lambda: bool(arrays), "detections")
    assert [(array.header.stamp.sec, len(array.detections)) for array in arrays] == [(7, 0)]
    say(client, f"```json\n{written(box)}\n```")
    client.wait(lambda: len(arrays) == 2, "detections")
    assert boxes(arrays[1]) == [("cup", [0, 0, WIDTH / 2, HEIGHT / 2])]
    assert counts(client) == (1, 1)


def test_a_watch_publishes_boxes_with_its_answers(start: Start) -> None:
    client, arrays = begin(start, FAMILIES / "qwen3_vl")
    form = {"grammar_kind": Instruction.GRAMMAR_REGEX, "grammar": re.escape(written({"point_2d": [500, 500]}))}
    client.instruct("Where is the cup?", id="cup", mode=Instruction.MODE_WATCH, watch_frames=1, **form)
    client.wait(lambda: bool(arrays), "the first answer's point")
    client.show(pictures.raw(sec=8))
    client.wait(lambda: len(arrays) == 2, "the second answer's point")
    assert [array.header.stamp.sec for array in arrays] == [7, 8]
    centre = [WIDTH / 2, HEIGHT / 2]
    assert [boxes(array) for array in arrays] == [[("", [*centre, *centre])]] * 2


def test_control_tokens_hold_the_boxes_of_a_qwen2_vl(start: Start, tmp_path: Path) -> None:
    pieces = {
        "Look: ": False,
        "<|object_ref_start|>": True,
        "the red cup": False,
        "<|object_ref_end|>": True,
        "<|box_start|>": True,
        "(125,250),(500,1000)": False,
        "<|box_end|>": True,
    }
    client, arrays = begin(start, saying.make(tmp_path / "saying", pieces))
    answer = client.ask("Where is the cup?")
    assert (answer.finish_reason, answer.text) == (Reasoning.FINISH_STOP, "Look: the red cup(125,250),(500,1000)")
    client.wait(lambda: bool(arrays), "detections")
    assert boxes(arrays[0]) == [("the red cup", [WIDTH / 8, HEIGHT / 4, WIDTH / 2, HEIGHT])]
    assert arrays[0].header == answer.header
    assert arrays[0].detections[0].results[0].hypothesis.score == pytest.approx(1, abs=0.01)


def test_a_family_that_writes_no_boxes_publishes_none(start: Start) -> None:
    _, client = start()
    arrays = listen(client)
    client.show(pictures.raw())
    say(client, written({"bbox_2d": [0, 0, 10, 10], "label": "cup"}), max_new_tokens=200)
    client.spin(1.0)
    assert arrays == []
    assert counts(client) == (0, 0)
