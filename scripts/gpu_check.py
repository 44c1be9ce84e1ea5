"""Runs the command line on the GPU and on the CPU and says how far they are apart: `python3 scripts/gpu_check.py EXECUTABLE [--device cuda]`.

Golden files first (every family's scenes against what transformers computed), then one turn with compactions on both devices,
then the demo bag; `--part` runs one of these, `--jobs` several checks at a time. Needs numpy and safetensors. Exit code 1 if a number is
out of its bounds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ROOT / "tests/golden/families"
DTYPES = ("f32", "f16", "bf16")
TOLERANCE = 1e-4
"""Of logits in f32: their distance from transformers' on the CPU, relative to their length."""
HALF = 1.5
"""In 16 bits they may be so many times as far off as transformers' own in that type."""


PARTS = ("families", "turns", "demo")


class Check:
    def __init__(self, executable: Path, device: str):
        self.executable, self.device = executable, device
        self.half = json.loads((ROOT / "tests/golden/half_precision.json").read_text())
        self.lock = Lock()
        self.checked = self.failed = 0
        self.largest: dict[str, float] = {}
        """Largest distance of logits found, relative to their length, by type."""

    def run(self, *args: str) -> str:
        done = subprocess.run([self.executable, *args], check=False, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, args[:3]))}: {done.stderr.strip().splitlines()[-1:]}")
        return done.stdout

    def say(self, right: bool, text: str) -> None:
        with self.lock:
            self.checked += 1
            self.failed += not right
        print(f"{'ok  ' if right else 'FAIL'} {text}", flush=True)

    def guarded(self, name: str, check, *args) -> None:
        try:
            check(*args)
        except (RuntimeError, OSError, KeyError, ValueError) as error:
            self.say(False, f"{name}: {error}")

    def scene(self, family: Path, scene: str, dtype: str) -> None:
        expected = load_file(family / "golden" / f"{scene}.expected.safetensors")
        with tempfile.TemporaryDirectory() as out:
            written = Path(out) / "out.safetensors"
            inputs = family / "golden" / f"{scene}.inputs.safetensors"
            frames = ["--frames"] if scene == "frames" else []
            self.run(
                *("forward", "--model", str(family), "--inputs", str(inputs), "--out", str(written)),
                *("--device", self.device, "--dtype", dtype, *frames),
            )
            got = load_file(written)
        wanted = expected["logits"].reshape(-1).astype(np.float64)
        off = float(np.linalg.norm(got["logits"].reshape(-1) - wanted) / np.linalg.norm(wanted))
        with self.lock:
            # Where one is not a number, it stays.
            self.largest[dtype] = float(np.maximum(self.largest.get(dtype, 0.0), off))
        most = TOLERANCE if dtype == "f32" else HALF * self.half[family.name][scene][dtype]
        text = f"{family.name:16} {scene:7} {dtype:5} logits off by {off:.1e} of their length, {most:.1e} allowed"
        self.say(off <= most, text)

    def turn(self, family: Path) -> None:
        """Greedy tokens of one turn whose budget makes the cache evict, on both devices."""
        images = [a for png in sorted((family / "golden").glob("*.png"))[:2] for a in ("--image", str(png))]
        ids = {}
        for device in ("cpu", self.device):
            answer = self.run(
                *("generate", "--model", str(family), *images, "--prompt", "What is in view?", "--json"),
                *("--policy", "inf_mllm", "--budget", "64", "--dtype", "f32", "--device", device),
            )
            ids[device] = json.loads(answer)["generated_ids"]
        self.say(ids["cpu"] == ids[self.device], f"{family.name:16} {len(ids['cpu'])} greedy tokens with evictions")

    def demo(self, policy: str, dtype: str) -> None:
        lines, seconds = {}, {}
        for device in ("cpu", self.device):
            with tempfile.TemporaryDirectory() as out:
                file = Path(out) / "answers.jsonl"
                started = time.monotonic()
                summary = self.run(
                    *("replay", "--bag", "bags/demo", "--instructions", "bags/demo/instructions.yaml"),
                    *("--model", "models/demo", "--out", str(file), "--device", device),
                    *("--policy", policy, "--dtype", dtype if device == self.device else "f32"),
                )
                seconds[device] = time.monotonic() - started
                answers = map(json.loads, file.read_text().splitlines())
                lines[device] = [answer["text"] for answer in answers if "text" in answer]
        same = sum(a == b for a, b in zip(lines["cpu"], lines[self.device], strict=True))
        text = f"demo bag, {policy}, {dtype}: {same} of {len(lines['cpu'])} answers equal"
        self.say(
            same == len(lines["cpu"]) or dtype != "f32",
            f"{text}; {seconds[self.device]:.1f} s, cpu {seconds['cpu']:.1f} s",
        )
        print("     " + summary.strip().replace("\n", "\n     "))


Task = tuple[str, Callable, tuple]
"""What a check is called, and how it is run."""


def family_tasks(check: Check, families: list[Path], dtypes: list[str]) -> list[Task]:
    tasks = []
    for family in families:
        scenes = json.loads((family / "golden/forward.json").read_text())["scenes"]
        named = [(dtype, scene) for dtype in dtypes for scene in scenes]
        tasks += [(f"{family.name} {scene} {dtype}", check.scene, (family, scene, dtype)) for dtype, scene in named]
    return tasks


def turn_tasks(check: Check, families: list[Path]) -> list[Task]:
    seeing = [family for family in families if any((family / "golden").glob("*.png"))]
    return [(f"{family.name} turn", check.turn, (family,)) for family in seeing]


def demo_tasks(check: Check) -> list[Task]:
    policies = ("inf_mllm", "inf_mllm_plus", "streaming_llm", "h2o")
    tasks = [(f"demo {policy}", check.demo, (policy, "f32")) for policy in policies]
    return [*tasks, ("demo f16", check.demo, ("inf_mllm", "f16"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("executable", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--family", nargs="+", help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="checks at a time")
    parser.add_argument("--json", action="store_true", help="say at the end in one line of JSON what was found")
    args = parser.parse_args()
    check = Check(args.executable.resolve(), args.device)
    families = sorted(path.parent for path in FAMILIES.glob("*/tokenizer.json"))
    families = [family for family in families if not args.family or family.name in args.family]
    tasks = {
        "families": lambda: family_tasks(check, families, args.dtypes),
        "turns": lambda: turn_tasks(check, families),
        "demo": lambda: demo_tasks(check),
    }
    wanted = [task for part in PARTS if part in args.part for task in tasks[part]()]
    if not wanted:
        sys.exit(f"nothing to check: --family is {args.family}")
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda task: check.guarded(task[0], task[1], *task[2]), wanted))
    print(f"{check.failed} failed")
    if args.json:
        found = {
            "part": " ".join(args.part),
            "checked": check.checked,
            "failed": check.failed,
            "largest": check.largest,
        }
        print(json.dumps(found))
    sys.exit(check.failed > 0)


if __name__ == "__main__":
    main()
