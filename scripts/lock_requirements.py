"""Locks scripts/*-requirements.in: writes exact versions with the hashes of every supported Python into *-requirements.txt.

Run by hand to move to newer versions: python3 scripts/lock_requirements.py (needs pip and the package index).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
"""The first one decides the versions, so that one lock serves all of them."""

SOURCE_ONLY = ["empy"]
"""Packages without a wheel; pip must build them."""

SCRIPTS = Path(__file__).resolve().parent


def pip_report(arguments: list[str]) -> list[dict]:
    """What pip would install: the `install` list of its report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", str(report), *arguments], check=True)
        return json.loads(report.read_text())["install"]


def lock(inputs: list[Path], wheels: str) -> dict[str, tuple[str, set[str]]]:
    """Package name to version and sha256 hashes, for the given requirement files together."""
    target = ["--only-binary=:all:", "--find-links", wheels, "--target", wheels]
    files = [argument for path in inputs for argument in ("-r", str(path))]
    locked: dict[str, tuple[str, set[str]]] = {}
    for python in PYTHONS:
        if locked:
            wanted = [f"{name}=={version}" for name, (version, _) in locked.items()]
            found = pip_report([*target, "--python-version", python, "--no-deps", *wanted])
        else:
            found = pip_report([*target, "--python-version", python, *files])
        for item in found:
            name, version = item["metadata"]["name"], item["metadata"]["version"]
            if name in SOURCE_ONLY:
                item = pip_report(["--no-deps", "--no-binary", name, f"{name}=={version}"])[0]
            sha256 = item["download_info"]["archive_info"]["hashes"]["sha256"]
            locked.setdefault(name, (version, set()))[1].add(sha256)
    return locked


def write(path: Path, locked: dict[str, tuple[str, set[str]]]) -> None:
    lines = ["# Made by lock_requirements.py from the .in file of the same name; do not edit."]
    for name in sorted(locked, key=str.lower):
        version, hashes = locked[name]
        lines.append(" \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{value}" for value in sorted(hashes))]))
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    with tempfile.TemporaryDirectory() as wheels:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels]
        subprocess.run([*build, *SOURCE_ONLY], check=True)
        tools = lock([SCRIPTS / "tool-requirements.in"], wheels)
        write(SCRIPTS / "tool-requirements.txt", tools)
        everything = lock([SCRIPTS / "tool-requirements.in", SCRIPTS / "ros-requirements.in"], wheels)
        write(SCRIPTS / "ros-requirements.txt", {name: everything[name] for name in everything if name not in tools})
        write(SCRIPTS / "cuda-requirements.txt", lock([SCRIPTS / "cuda-requirements.in"], wheels))
        kilted = lock([SCRIPTS / "kilted-requirements.in"], wheels)
        # What would have to be built serves the generation of messages, which nobody does there.
        write(SCRIPTS / "kilted-requirements.txt", {name: kilted[name] for name in kilted if name not in SOURCE_ONLY})


if __name__ == "__main__":
    main()
