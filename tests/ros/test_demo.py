"""The demo on a few seconds of its bag: how it ends, what it says, and what it says of the answers without memory."""

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Iterable
from itertools import count
from pathlib import Path

import pictures
import pytest
import yaml
from conftest import ROOT
from node_process import EXECUTABLE
from recording import IMAGE_TYPE, NANOSECONDS, BagMessage

RATE = 10
FRAME_TOKENS = 19
"""Slots that a frame takes in the middle of a turn."""
QUESTIONS = [
    {"id": "early", "at": 1.5, "text": "What is in view?", "answer": "nothing that is ever answered", "memory": "view"},
    {"id": "late", "at": 3.5, "text": "What was seen just before?", "answer": "nor this", "memory": "past"},
]
BALL, NO_BALL = range(120, 138), range(142, 172)
"""Frames of the demo bag: with a red ball well in view, and with none of it."""
GONE = [
    {"id": "now", "at": 4.74, "text": "Is a red ball in view?", "answer": "no", "memory": "view"},
    {"id": "gone", "at": 4.75, "text": "Have you seen a red ball?", "answer": "yes", "memory": "past", "age": 3.05},
]


def write(folder: Path, numbers: Iterable[int], questions: list[dict], **content: object) -> Path:
    """Frames of the demo bag, one behind the other, with other questions."""
    frames = pictures.demo_frames()
    stamps = (frames[0].stamp_ns + i * NANOSECONDS // RATE for i in count())
    messages = [BagMessage(IMAGE_TYPE, frames[i].with_stamp(stamp)) for i, stamp in zip(numbers, stamps, strict=False)]
    pictures.write_bag(folder, messages)
    script = {"system_prompt": "You are a mobile robot. Answer briefly.", **content, "instructions": questions}
    (folder / "instructions.yaml").write_text(yaml.safe_dump(script))
    return folder


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("demo") / "bag", range(4 * RATE), QUESTIONS, resets=[0.0])


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second with one question."""
    return write(tmp_path_factory.mktemp("brief") / "bag", range(RATE), [{**QUESTIONS[1], "at": 0.5}])


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red ball leaves the view, and then the cache."""
    return write(tmp_path_factory.mktemp("ball") / "bag", [*BALL, *NO_BALL], GONE)


def command(*arguments: object) -> list[str]:
    return [str(part) for part in (sys.executable, ROOT / "scripts" / "demo", *arguments)]


def demo(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )


def rows(output: str) -> list[str]:
    """The lines of an output, with single spaces."""
    return [" ".join(line.split()) for line in output.splitlines()]


def test_a_run_ends_well_and_is_summed_up_in_two_columns(bag: Path) -> None:
    done = demo("--bag", bag, "--budget", 128, "--evict-at-least", 2, "--policy", "window")
    assert done.returncode == 0, done.stderr
    for row in (
        "right answers this run without memory",
        "about now 0 of 1 0 of 1",
        "seen before 0 of 1 0 of 1",
        "all 0 of 2 0 of 2",
    ):
        assert row in rows(done.stdout), done.stdout
    for part in (
        "without memory  every frame again through inf_mllm replay --policy last_frames, ",
        " budgets of 128, in ",
        " compactions by window",
        "first token     after ",
    ):
        assert part in done.stdout, done.stdout
    for question in QUESTIONS:
        assert f"{question['text']}  ->  " in done.stdout
        assert f"truth: {question['answer']}" in done.stdout


def test_what_has_left_the_view_is_known_by_frames_of_that_time_and_unknown_without_memory(ball: Path) -> None:
    # A budget is what the frames with the ball have to leave behind; on a busy machine the node uses fewer of the frames after them.
    done = demo("--bag", ball, "--budget", 256, "--evict-at-least", 1)
    assert done.returncode == 0, done.stderr
    for row in ("about now 1 of 1 1 of 1", "seen before 1 of 1 0 of 1", "all 2 of 2 1 of 2"):
        assert row in rows(done.stdout), done.stdout
    told = next(row for row in rows(done.stdout) if row.startswith("Have you seen a red ball? "))
    ages = told.removeprefix("Have you seen a red ball? 3 s ago yes ✓ yes ✗ no ")
    # The ball was in view from 4.75 to 3.05 s before the question.
    assert re.fullmatch(r"[345](–[45])?(, 5)?", ages), told
    assert "Have you seen a red ball? -> yes, right (" in "\n".join(rows(done.stdout))
    assert f"; recalled from {ages} s ago)" in done.stdout


def test_a_run_without_memory_is_compared_with_nothing(ball: Path) -> None:
    done = demo("--bag", ball, "--policy", "last_frames", "--evict-at-least", 0)
    assert done.returncode == 0, done.stderr
    assert "without memory  nothing to compare with: policy last_frames is without memory itself" in done.stdout
    assert "right answers this run" in rows(done.stdout)
    assert "seen before 0 of 1" in rows(done.stdout)


def test_the_replay_can_be_left_out(brief: Path) -> None:
    done = demo("--bag", brief, "--evict-at-least", 0, "--no-replay")
    assert done.returncode == 0, done.stderr
    assert "without memory  not asked for (--no-replay)" in done.stdout
    assert "seen before 0 of 1" in rows(done.stdout)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (None, "inf_mllm is not on the PATH: build first"),
        ("echo out of luck >&2; exit 3", "inf_mllm replay ended with exit code 3; what it said stands above"),
        ("echo { >${@: -1}", "the answers of inf_mllm replay: JSONDecodeError: "),
    ],
)
def test_a_replay_that_fails_is_told_beside_what_the_run_came_to(
    brief: Path, tmp_path: Path, program: str | None, why: str
) -> None:
    node = shutil.which(EXECUTABLE)
    assert node is not None
    (tmp_path / EXECUTABLE).symlink_to(node)
    if program is not None:
        (tmp_path / "inf_mllm").write_text(f"#!/bin/bash\n{program}\n")
        (tmp_path / "inf_mllm").chmod(0o755)
    done = demo("--bag", brief, "--evict-at-least", 0, PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 1
    assert f"demo: no answers without memory: {why}" in done.stderr
    assert ("out of luck" in done.stderr) == ("luck" in (program or ""))
    assert f"without memory  not known: {why}" in done.stdout
    assert "right answers this run" in rows(done.stdout)
    assert "seen before 0 of 1" in rows(done.stdout)


def test_a_terminal_of_80_columns_has_room_for_all_of_it(brief: Path) -> None:
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        command("--bag", brief, "--evict-at-least", 0),
        stdin=there,
        stdout=there,
        stderr=there,
        # The size that counts is the terminal's.
        env={
            **{name: os.environ[name] for name in os.environ if name not in ("COLUMNS", "LINES")},
            "TERM": "xterm-256color",
        },
    )
    os.close(there)
    output = b""
    # Reading fails when the last process has closed the other end.
    try:
        while piece := os.read(here, 65536):
            output += piece
    except OSError:
        pass
    os.close(here)
    assert process.wait(timeout=60) == 0, output.decode()
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode()).replace("\r", "\n")
    assert "inf_mllm follows a robot's camera" in printed
    summary = printed[printed.rindex("The same questions without memory") :]
    assert "seen before 0 of 1 0 of 1" in rows(summary)
    assert max(map(len, printed.splitlines())) <= 80


def test_accepted_answers_are_right_and_asides_leave_no_trace(tmp_path: Path) -> None:
    question = {"id": "a", "at": 0.5, "text": "Is a red ball in view?", "answer": "perhaps", "accept": ["yes", "no"]}
    asked = [{**question, "memory": "view"}, {**question, "id": "b", "at": 0.9, "memory": "view"}]
    beside_frames = []
    for aside in (False, True):
        folder = write(tmp_path / f"{aside}", range(RATE), asked, aside=aside)
        done = demo("--bag", folder, "--evict-at-least", 0)
        assert done.returncode == 0, done.stderr
        assert "about now 2 of 2 2 of 2" in rows(done.stdout), done.stdout
        slots, frames = (int(re.search(rf"(\d+) {what}", done.stdout)[1]) for what in ("of 512 slots", "used of"))
        # How many of the frames a busy machine drops is nobody's business here.
        beside_frames.append(slots - FRAME_TOKENS * frames)
    assert beside_frames[1] < beside_frames[0]


def test_too_few_evictions_fail_the_run(brief: Path) -> None:
    done = demo("--bag", brief, "--evict-at-least", 100, "--no-replay")
    assert done.returncode == 1
    assert "times the budget of 512; expected at least 100 times" in done.stderr


def test_a_node_that_cannot_start_fails_the_run(bag: Path) -> None:
    done = demo("--bag", bag, "--policy", "lru")
    assert done.returncode == 1
    assert 'parameter policy is "lru", expected one of: ' in done.stderr


def test_a_missing_bag_fails_the_run(tmp_path: Path) -> None:
    done = demo("--bag", tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path} is no bag, expected a folder with metadata.yaml" in done.stderr
