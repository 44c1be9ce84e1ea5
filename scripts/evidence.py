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
    ranks: list[int]
    correct: bool


def last_sighting(times: np.ndarray, visible: np.ndarray) -> list[float]:
    """The times of the frames of the newest sighting."""
    seen: list[float] = []
    for time in times[visible][::-1]:
        if seen and seen[-1] - time >= GAP_S:
            break
        seen.append(float(time))
    return seen


def cases(bag: Path, answers: Path) -> list[Case]:
    with np.load(bag / "truth.npz") as file:
        times, state = file["times"], file["state"]
    entries = {entry["id"]: entry for entry in yaml.safe_load((bag / "instructions.yaml").read_text())["instructions"]}
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
        if len(asked) != 1 or entry["answer"] == "no" or not (state[before, asked[0]] >= 0).any():
            continue
        seen = last_sighting(times[before], state[before, asked[0]] >= 0)
        stamps = [1e-9 * (frame["stamp_ns"] - begin_ns) for frame in line.get("evidence", [])]
        ranks = [rank for rank, stamp in enumerate(stamps) if min(abs(stamp - time) for time in seen) < 0.01]
        found.append(Case(entry["cell"], ranks, line["correct"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bag", type=Path, nargs="+", help="folders of bags with instructions.yaml and truth.npz")
    parser.add_argument(
        "--answers", type=Path, nargs="+", required=True, help="of each the answers, JSON lines of replay"
    )
    args = parser.parse_args()
    if len(args.bag) != len(args.answers):
        parser.error(f"{len(args.bag)} bags and {len(args.answers)} files of answers, expected as many")
    all_cases = [case for bag, answers in zip(args.bag, args.answers) for case in cases(bag, answers)]
    groups = {"all": all_cases, "answered rightly": [case for case in all_cases if case.correct]}
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
