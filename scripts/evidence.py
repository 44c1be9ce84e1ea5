"""Counts how often the frames that answers name as evidence show what was asked about.

Takes the answers of `inf_mllm replay` about drives that have their truth beside them (`truth.npz`, training/make_video.py). Of the
questions that ask for one named object that has been in view: whether a frame of its last sighting is among the first three of the
evidence, and whether it is the first. A sighting are the frames that show any of the object, with no more than 3 s between them.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

SHAPES = ["box", "ball", "cone", "pillar"]
COLORS = ["red", "green", "blue", "yellow", "purple", "black"]
NAMES = [f"{color} {shape}" for shape in SHAPES for color in COLORS]
FIRST = 3  # of the evidence
GAP_S = 3.0


@dataclass
class Case:
    """A question for one object, and the ranks (from 0) in its evidence of frames of the object's last sighting."""

    cell: str
    once: bool
    """That sighting is the only one."""
    ranks: list[int]
    correct: bool | None
    """None where the question has no known answer."""


def sightings(times: np.ndarray, visible: np.ndarray) -> list[list[float]]:
    """The times of the frames of each sighting, the newest one last."""
    found: list[list[float]] = []
    for time in times[visible].tolist():
        if found and time - found[-1][-1] < GAP_S:
            found[-1].append(time)
        else:
            found.append([time])
    return found


def cases(bag: Path, questions: Path, answers: Path) -> list[Case]:
    with np.load(bag / "truth.npz") as file:
        times, state = file["times"], file["state"]
    entries = {entry["id"]: entry for entry in yaml.safe_load(questions.read_text())["instructions"]}
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    lines = [line for line in lines if "id" in line]
    begin_ns = min(line["newest_frame_stamp_ns"] for line in lines) - round(
        1e9 * max(time for time in times if time <= min(line["at"] for line in lines))
    )
    found = []
    for line in lines:
        entry = entries[line["id"]]
        asked = [kind for kind, name in enumerate(NAMES) if name in entry["text"]]
        before = times <= entry["at"]
        if len(asked) != 1 or entry.get("answer") == "no" or not (state[before, asked[0]] >= 0).any():
            continue
        seen = sightings(times[before], state[before, asked[0]] >= 0)
        stamps = [1e-9 * (frame["stamp_ns"] - begin_ns) for frame in line.get("evidence", [])]
        ranks = [rank for rank, stamp in enumerate(stamps) if min(abs(stamp - time) for time in seen[-1]) < 0.01]
        found.append(Case(entry["cell"], len(seen) == 1, ranks, line["correct"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bag", type=Path, nargs="+", help="folders of bags with instructions.yaml and truth.npz")
    parser.add_argument(
        "--answers", type=Path, nargs="+", required=True, help="of each the answers, JSON lines of replay"
    )
    parser.add_argument("--questions", type=Path, nargs="+", help="of each the questions, if not those of its folder")
    args = parser.parse_args()
    questions = args.questions or [bag / "instructions.yaml" for bag in args.bag]
    if not len(args.bag) == len(args.answers) == len(questions):
        parser.error(
            f"{len(args.bag)} bags, {len(questions)} files of questions and {len(args.answers)} of answers, "
            "expected as many"
        )
    all_cases = [case for files in zip(args.bag, questions, args.answers) for case in cases(*files)]
    groups = {"all": all_cases, "seen once": [case for case in all_cases if case.once]}
    if any(case.correct is not None for case in all_cases):
        groups["answered rightly"] = [case for case in all_cases if case.correct]
    for cell in dict.fromkeys(case.cell for case in all_cases):
        groups[cell] = [case for case in all_cases if case.cell == cell]
    print(f"| questions | among the first {FIRST} | the first |\n| --- | ---: | ---: |")
    for name, group in groups.items():
        among = sum(any(rank < FIRST for rank in case.ranks) for case in group)
        first = sum(0 in case.ranks for case in group)
        share = 100 * among / max(len(group), 1)
        print(f"| {name} ({len(group)}) | {among} ({share:.0f} %) | {first} |")


if __name__ == "__main__":
    main()
