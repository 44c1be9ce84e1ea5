"""The node and `inf_mllm replay` are one engine: on the same frames they give the same answers."""

import json
import subprocess
from pathlib import Path

import pictures
import yaml
from conftest import ROOT, Start
from inf_mllm.msg import Reasoning
from recording import NANOSECONDS, BagMessage

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


def replay(tmp_path: Path, frames: list[BagMessage]) -> list[dict]:
    """The lines that `inf_mllm replay` writes about the frames and QUESTIONS."""
    pictures.write_bag(tmp_path / "bag", frames)
    instructions = [{"id": f"q{i}", "at": at, "text": text} for i, (at, text) in enumerate(QUESTIONS)]
    script = tmp_path / "instructions.yaml"
    script.write_text(
        yaml.safe_dump({"bag": "part", "system_prompt": "You are a robot.", "instructions": instructions})
    )
    out = tmp_path / "answers.jsonl"
    command = ["inf_mllm", "replay", "--bag", tmp_path / "bag", "--instructions", script, "--out", out]
    command += ["--model", ROOT / "models" / "demo", "--budget", str(BUDGET)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


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
