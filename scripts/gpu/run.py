"""Checks and measures a GPU in one run: python3 scripts/gpu/run.py --out FOLDER, with what scripts/gpu/pack.sh packed in .gpu/.

Needs python3 with torch, transformers, numpy and safetensors; no cargo, no network. Every step has a time limit of its own, and one that
fails or is not reached is told and ends nothing. FOLDER gets results.jsonl (scripts/gpu/results.py says what of), table.md and log.txt;
`scripts/gpu/report.py FOLDER/results.jsonl` puts them into docs/measurements/gpu.md.

    --dry --device cpu     a small part of everything at a tiny shape, to see that it runs
"""

import argparse
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import results
from plan import ROOT, Step, Tools, plan

PACKED = ROOT / ".gpu"
LEAST = 5
"""Seconds that a step is begun with."""


def libraries() -> list[str]:
    """Folders in which CUDA's libraries may lie: those of Python's nvidia packages, and the system's."""
    code = "import nvidia; print(*nvidia.__path__, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    folders = [folder for path in done.stdout.split() for folder in sorted(Path(path).glob("*/lib"))]
    return [str(folder) for folder in [*folders, Path("/usr/local/cuda/lib64")] if folder.is_dir()]


def unpack(scratch: Path) -> tuple[Path | None, Path | None, Path | None]:
    """The executable, that of earlier code, and the folder of llama.cpp."""
    found: list[Path | None] = []
    for name in ("inf_mllm", "baseline"):
        packed = PACKED / f"{name}.xz"
        if packed.exists():
            with lzma.open(packed) as source, (scratch / name).open("wb") as out:
                shutil.copyfileobj(source, out)
            (scratch / name).chmod(0o755)
        found.append(scratch / name if packed.exists() else None)
    llama = PACKED / "llama.tar.xz"
    if llama.exists():
        with tarfile.open(llama) as archive:
            archive.extractall(scratch, filter="data")
    return found[0], found[1], scratch / "llama" if llama.exists() else None


def machine(device: str) -> dict:
    """What the run is on."""
    about = {"kind": "machine", "device": "cpu"}
    if device == "cpu":
        return about
    query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        raise SystemExit("nvidia-smi finds no GPU; --dry --device cpu tries the scripts out")
    name, driver, memory, sm, mem = (part.strip() for part in done.stdout.splitlines()[0].split(","))
    return about | {"device": name, "driver": driver, "memory": memory, "clocks": f"SM {sm}, memory {mem}"}


class Run:
    """Steps one after the other, until the time is up."""

    def __init__(self, out: Path, limit: float, common: dict):
        self.out, self.common = out, common
        self.started, self.limit = time.monotonic(), limit
        self.records: list[dict] = []
        self.environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        known = [*libraries(), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        self.environment["LD_LIBRARY_PATH"] = ":".join(known)
        for name in ("results.jsonl", "log.txt"):
            (out / name).write_text("")

    @property
    def left(self) -> float:
        return self.limit - (time.monotonic() - self.started)

    def note(self, record: dict) -> None:
        record = record | self.common
        self.records.append(record)
        with (self.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def fail(self, step: Step, why: str, seconds: float = 0) -> None:
        self.note({"kind": "failure", "step": step.name, "why": why, "seconds": seconds})

    def log(self, text: str) -> None:
        with (self.out / "log.txt").open("a") as file:
            file.write(text)

    def step(self, step: Step) -> None:
        if self.left < LEAST:
            return self.fail(step, "not reached: the time was up")
        if step.needs and not shutil.which(step.needs, path=self.environment["PATH"]):
            return self.fail(step, f"{step.needs} is not there")
        started = time.monotonic()
        limit = min(step.limit, self.left)
        # A session of its own, so that what it has started ends with it.
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        late = False
        try:
            output, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            late = True
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
        seconds = time.monotonic() - started
        self.log(
            f"\n== {step.name}: {' '.join(step.command)}\n{output}{errors}\n== {process.returncode}, {seconds:.1f} s\n"
        )
        found = results.records_of(step.kind, output + errors if step.kind == "sanitizer" else output)
        for record in found:
            self.note(record | step.about | {"step": step.name, "seconds": round(seconds, 1)})
        lines = [line for line in errors.splitlines() if line.strip()]
        if late:
            self.fail(step, f"stopped after {limit:.0f} s", seconds)
        elif process.returncode:
            why = lines[-1] if lines else f"exit code {process.returncode}"
            self.fail(step, why[:300], seconds)
        elif not found:
            self.fail(step, "nothing was measured", seconds)
        print(
            f"{time.monotonic() - self.started:6.1f} s  {step.name}: {summary(found) or self.records[-1]['why']}",
            flush=True,
        )


def summary(records: list[dict]) -> str:
    """A few words of each."""
    words = []
    for record in records:
        if "ms" in record:
            over = f", {record['over_floor']:.2f} x floor" if "over_floor" in record else ""
            words.append(f"{record.get('peer', '')} {record['ms']['median']:.3f} ms{over}".strip())
        elif "frames_per_s" in record:
            words.append(f"{record['frames_per_s']:.1f} frames/s")
        elif "errors" in record:
            words.append(f"{record['errors']} errors")
        elif "checked" in record:
            words.append(f"{record['checked'] - record['failed']} of {record['checked']} right")
    return "; ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dry", action="store_true", help="a small part of everything at a tiny shape")
    parser.add_argument("--limit", type=float, default=520, help="seconds for everything (default %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="the one with torch and transformers")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="steps whose name has one of these words")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    out = args.out.resolve()
    about = machine(args.device)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory() as scratch:
        executable, baseline, llama = unpack(Path(scratch))
        if not executable:
            raise SystemExit(f"{PACKED}/inf_mllm.xz is missing: scripts/gpu/pack.sh makes it")
        tools = Tools(executable, baseline, llama, args.python, args.device, args.dry)
        common = {"device": about["device"], "date": now, "run": now}
        run = Run(out, args.limit, common | ({"dry": True} if args.dry else {}))
        run.note(about)
        for step in plan(tools):
            if not args.only or any(word in step.name for word in args.only):
                run.step(step)
    # What the executable says of its code goes for the steps that do not.
    commits = {record["commit"] for record in run.records if record.get("commit") and record.get("role") != "baseline"}
    for record in run.records:
        record.setdefault("commit", next(iter(commits), None))
    (out / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in run.records))
    text = results.tables(results.newest(run.records))
    failed = results.failures(run.records)
    text += f"\n### Not measured\n\n{failed}\n" if failed else ""
    (out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
