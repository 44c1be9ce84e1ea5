"""Runs of an executable with the feature cuda on libraries that stand in for the driver and the toolkit (stand_in/libraries.c)."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BAG = ROOT / "bags/demo"
FAMILIES = ROOT / "tests/golden/families"
STAND_IN = ROOT / "target/stand-in"
EXECUTABLE = STAND_IN / "cuda/release/inf_mllm"
LIBRARIES = STAND_IN / "run"
PROMPT = "What is in view?"


@dataclass(frozen=True)
class Counts:
    """What the host asked of the driver and of the toolkit's libraries."""

    launches: int = 0
    uploads: int = 0
    allocations: int = 0
    downloads: int = 0
    calls: int = 0
    """All of these and everything else."""

    @staticmethod
    def of(calls: dict[str, list[int]]) -> "Counts":
        number = {name: count for name, (count, _) in calls.items()}
        return Counts(
            launches=sum(
                count for name, count in number.items() if name.startswith("kernel:") or name == "cuGraphLaunch"
            ),
            uploads=number.get("cuMemcpyHtoDAsync_v2", 0),
            allocations=number.get("cuMemAllocAsync", 0) + number.get("cuMemAlloc_v2", 0),
            downloads=number.get("cuMemcpyDtoHAsync_v2", 0),
            calls=sum(number.values()),
        )


@dataclass(frozen=True)
class Run:
    """A process that has ended."""

    code: int
    said: str
    errors: str
    events: list[dict] = field(default_factory=list)

    def downloads(self) -> list[int]:
        """Bytes of each copy to the host."""
        return [event["bytes"] for event in self.events if event["event"] == "download"]

    def steps(self, event: str = "download") -> Iterator[Counts]:
        """What was asked for between one copy to the host, or one launch of a graph (`graph`), and the next."""
        return (Counts.of(line["calls"]) for line in self.events if line["event"] == event)

    def captured(self) -> int:
        """Launches that graphs were recorded of."""
        calls = (calls for event in self.events for calls in event["calls"].items())
        return sum(count for name, (count, _) in calls if name.startswith("captured:"))


def run(log: Path, *args: str, libraries: str = str(LIBRARIES), **settings: str) -> Run:
    """`inf_mllm ARGS` with nothing but `libraries` to find libraries in beside the system's; `settings` are of the stand-in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STAND_IN")}
    env = kept | settings | {"LD_LIBRARY_PATH": libraries, "STAND_IN_LOG": str(log)}
    done = subprocess.run([EXECUTABLE, *args], check=False, capture_output=True, text=True, env=env, cwd=ROOT)
    events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return Run(done.returncode, done.stdout, done.stderr, events)


def generate(model: Path, *args: str) -> list[str]:
    """The arguments of an answer in which nothing is evicted."""
    return ["generate", "--model", str(model), "--prompt", PROMPT, "--max-new-tokens", "8", *args]


def random_checkpoint(name: str) -> Path:
    """A checkpoint of a published model's size, made if it is not there."""
    folder = STAND_IN / name
    if not folder.exists():
        subprocess.run([sys.executable, ROOT / "scripts/random_checkpoint.py", name, folder], check=True)
    return folder


def replay(folder: Path, instructions: Path, *more: str, **settings: str) -> tuple[Run, list[dict]]:
    """A replay of the demo bag with a model that evicts, and the lines of its answers, as far as they have come."""
    out = folder / "answers.jsonl"
    ran = run(
        folder / "log",
        *(
            "replay",
            "--device",
            "cuda",
            "--model",
            str(FAMILIES / "idefics3"),
            "--policy",
            "inf_mllm",
            "--budget",
            "512",
        ),
        *("--bag", str(BAG), "--instructions", str(instructions), "--out", str(out), *more),
        **settings,
    )
    return ran, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
