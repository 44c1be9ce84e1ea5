"""The node and `inf_mllm replay` are one engine: on the same frames they give the same answers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pictures
import pytest
import yaml
from conftest import ROOT, Start
from inf_mllm.msg import Reasoning
from recording import NANOSECONDS, BagMessage
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

BUDGET = 192
"""Small enough that frames are evicted between the questions."""
SECONDS = 11
EVERY = 5
QUESTIONS = [
    (2.2, "What is in view?"),
    (5.1, "How many objects are there?"),
    (5.1, "Should the robot stop?"),
    (9.7, "What was seen just before?"),
]
FINISH = {"stop": Reasoning.FINISH_STOP, "length": Reasoning.FINISH_LENGTH}


def replay(
    folder: Path,
    frames: list[BagMessage],
    storage: StoragePlugin = StoragePlugin.MCAP,
    mode: CompressionMode = CompressionMode.NONE,
) -> list[dict]:
    """The lines that `inf_mllm replay` writes about the frames and QUESTIONS."""
    folder.mkdir(exist_ok=True)
    pictures.write_bag(folder / "bag", frames, storage, mode)
    done = subprocess.run(
        replay_command(folder, folder / "bag"), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def replay_command(folder: Path, bag: Path) -> list[str | Path]:
    """What replays a bag with QUESTIONS; the answers go to answers.jsonl in `folder`."""
    instructions = [{"id": f"q{i}", "at": at, "text": text} for i, (at, text) in enumerate(QUESTIONS)]
    script = folder / "instructions.yaml"
    script.write_text(
        yaml.safe_dump({"bag": "part", "system_prompt": "You are a robot.", "instructions": instructions})
    )
    command: list[str | Path] = ["inf_mllm", "replay", "--bag", bag, "--instructions", script]
    command += ["--out", folder / "answers.jsonl"]
    return [*command, "--model", ROOT / "models" / "demo", "--budget", str(BUDGET)]


@pytest.mark.parametrize(
    ("storage", "mode"),
    [
        (StoragePlugin.MCAP, CompressionMode.STORAGE),
        (StoragePlugin.MCAP, CompressionMode.MESSAGE),
        (StoragePlugin.MCAP, CompressionMode.FILE),
        (StoragePlugin.SQLITE3, CompressionMode.NONE),
        (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
        (StoragePlugin.SQLITE3, CompressionMode.FILE),
    ],
)
def test_what_recorders_write_gives_the_same_answers(
    tmp_path: Path, storage: StoragePlugin, mode: CompressionMode
) -> None:
    frames = pictures.demo_frames()[: 10 * EVERY : EVERY]
    plain = replay(tmp_path / "plain", frames)
    assert replay(tmp_path / "other", frames, storage, mode) == plain
    assert plain[-1]["summary"]["frames"] == len(frames)


PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Runs a command and prints the most memory that it held, KiB."""


def test_a_bag_larger_than_the_memory_that_it_may_take(tmp_path: Path) -> None:
    """Bags of 83 MB, which is more than is kept of decompressed chunks, and of 310 MB: the rest is no more memory."""

    def peak(frames: int) -> int:
        folder = tmp_path / f"{frames}"
        writer = Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        with writer:
            connection = writer.add_connection("/camera/image", RAW_TYPE, typestore=pictures.STORE)
            for i in range(frames):
                writer.write(connection, i * NANOSECONDS // 20, raw_image(i))
        command = [*replay_command(tmp_path, folder), "--frame-rate", "1"]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *map(str, command)], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return 1024 * int(done.stdout)

    few, many = peak(90), peak(340)
    assert many - few < 50_000_000, f"{few} and {many} bytes"


RAW_TYPE = "sensor_msgs/msg/Image"


def raw_image(number: int) -> bytes:
    """A serialised image of 640 x 480, twenty of them per second."""
    types = pictures.STORE.types
    sec, nanosec = divmod(number * NANOSECONDS // 20 + NANOSECONDS, NANOSECONDS)
    header = types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](sec, nanosec), "camera")
    pixels = np.full(640 * 480 * 3, number % 256, np.uint8)
    message = types[RAW_TYPE](header, 480, 640, "rgb8", 0, 640 * 3, pixels)
    return bytes(pictures.STORE.serialize_cdr(message, RAW_TYPE))


def test_the_node_answers_as_replay_does(start: Start, tmp_path: Path) -> None:
    frames = pictures.demo_frames()
    first = frames[0].stamp_ns
    frames = [frame for frame in frames[::EVERY] if frame.stamp_ns <= first + SECONDS * NANOSECONDS]
    *expected, total = replay(tmp_path, frames)
    assert len(expected) == len(QUESTIONS)
    assert total["summary"]["compactions"] > 0

    _, client = start(
        {"image_transport": "compressed", "budget": BUDGET, "system_prompt": "You are a robot.", "stats_period": 0.02},
        compressed=True,
    )
    left = list(enumerate(QUESTIONS))
    outcomes = []
    for frame in frames:
        while left and first + left[0][1][0] * NANOSECONDS < frame.stamp_ns:
            index, (_, text) = left.pop(0)
            outcomes.append((client.ask(text, id=f"q{index}"), client.fresh_stats()))
        client.show(frame.data)
    for index, (_, text) in left:
        outcomes.append((client.ask(text, id=f"q{index}"), client.fresh_stats()))

    for line, (answer, stats) in zip(expected, outcomes, strict=True):
        stamp = answer.header.stamp.sec * NANOSECONDS + answer.header.stamp.nanosec
        oldest = answer.oldest_frame_stamp.sec * NANOSECONDS + answer.oldest_frame_stamp.nanosec
        assert {
            "id": answer.instruction_id,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "vision_tokens": answer.vision_tokens,
            "output_tokens": answer.output_tokens,
            "frames_seen": answer.frames_seen,
            "newest_frame_stamp_ns": stamp,
            "oldest_frame_stamp_ns": oldest,
            "cache_used": stats.used,
            "tokens_evicted": stats.tokens_evicted,
        } == {
            "finish_reason": FINISH[line["finish_reason"]],
            **{
                name: line[name]
                for name in (
                    "id",
                    "text",
                    "prompt_tokens",
                    "vision_tokens",
                    "output_tokens",
                    "frames_seen",
                    "newest_frame_stamp_ns",
                    "oldest_frame_stamp_ns",
                    "cache_used",
                    "tokens_evicted",
                )
            },
        }
    stats = client.fresh_stats()
    assert stats.frames_used == total["summary"]["frames"]
    assert stats.bytes == total["summary"]["bytes"]
