"""The same questions without a memory: the bag once more, through `inf_mllm replay` and the policy that knows only the last frames."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from recording import Question, Recording

POLICY = "last_frames"
COMMAND = "inf_mllm"
ANSWERED = ("stop", "length")
"""The finish reasons of an answer that is one."""


class ReplayFailed(Exception):
    """There are no answers without memory; says why."""


@dataclass
class Comparison:
    """What is answered without a memory, or why that is not known."""

    answers: dict[str, str | None] = field(default_factory=dict)
    """By the question's id; none: it failed."""
    seconds: float = 0.0
    """How long it took."""
    missing: str = ""
    """Why there is none; empty: there is."""

    def right(self, question: Question) -> bool | None:
        """Whether the answer is right; none where that is not known."""
        answer = self.answers.get(question.id)
        return None if answer is None else question.is_right(answer)

    def tally(self, questions: list[Question], memory: str | None = None) -> tuple[int, int]:
        """Right answers, and questions with a known truth; of one memory only if one is given."""
        known = [q for q in questions if q.truth is not None and memory in (None, q.memory)]
        return sum(self.right(question) is True for question in known), len(known)


def replay(recording: Recording, model: Path, budget: int | None) -> Comparison:
    """Plays the bag into the command line, in lock-step and every frame of it. Its progress and complaints go to stderr."""
    executable = shutil.which(COMMAND)
    if executable is None:
        raise ReplayFailed(f"{COMMAND} is not on the PATH: build first, and run this through scripts/ros-run")
    started = time.monotonic()
    with TemporaryDirectory(prefix="demo") as folder:
        out = Path(folder) / "answers.jsonl"
        command = [executable, "replay", "--bag", recording.bag, "--instructions", recording.instructions]
        command += ["--model", model, "--policy", POLICY, "--out", out]
        if budget is not None:
            command += ["--budget", budget]
        try:
            done = subprocess.run(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False
            )
        except KeyboardInterrupt:
            raise ReplayFailed("interrupted") from None
        if done.returncode != 0:
            raise ReplayFailed(f"{COMMAND} replay ended with exit code {done.returncode}; what it said stands above")
        try:
            lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
            answers = {
                line["id"]: line["text"] if line["finish_reason"] in ANSWERED else None
                for line in lines
                if "id" in line
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ReplayFailed(f"the answers of {COMMAND} replay: {type(error).__name__}: {error}") from error
    return Comparison(answers, time.monotonic() - started)
