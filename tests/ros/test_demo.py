"""The demo's player on the first seconds of its bag: how it ends, and what it says."""

import subprocess
import sys
from pathlib import Path

import pictures
import pytest
import yaml
from conftest import ROOT
from recording import NANOSECONDS

SECONDS = 4
QUESTIONS = [
    {"id": "early", "at": 1.5, "text": "What is in view?", "answer": "nothing that is ever answered", "memory": "view"},
    {"id": "late", "at": 3.5, "text": "What was seen just before?", "answer": "nor this", "memory": "past"},
]


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = pictures.demo_frames()
    end = frames[0].stamp_ns + SECONDS * NANOSECONDS
    folder = tmp_path_factory.mktemp("demo") / "bag"
    pictures.write_bag(folder, [frame for frame in frames if frame.stamp_ns <= end])
    (folder / "instructions.yaml").write_text(yaml.safe_dump({"resets": [0.0], "instructions": QUESTIONS}))
    return folder


def demo(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / "demo", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)


def test_a_run_ends_well_and_is_summed_up(bag: Path) -> None:
    done = demo("--bag", bag, "--budget", 128, "--evict-at-least", 2, "--policy", "window")
    assert done.returncode == 0, done.stderr
    for line in (
        "right answers        0 of 2 (0 %)",
        "in view            0 of 1 (0 %)",
        "seen before        0 of 1 (0 %)",
        "budgets of 128, in ",
        "compactions by window",
        "time to first token  median ",
    ):
        assert line in done.stdout, done.stdout
    for question in QUESTIONS:
        assert f"{question['text']}  ->  " in done.stdout
        assert f"truth: {question['answer']}" in done.stdout


def test_too_few_evictions_fail_the_run(bag: Path) -> None:
    done = demo("--bag", bag, "--evict-at-least", 100)
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
