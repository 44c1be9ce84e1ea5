"""Checks the questions of long drives against the truth that lies beside them, and counts what can be had without memory.

Reads files only, and shares nothing with what chose the questions: each answer is worked out again, frame by frame.
"""

import argparse
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import yaml

SHAPES = ["box", "ball", "cone", "pillar"]
COLORS = ["red", "green", "blue", "yellow", "purple", "black"]
NAMES = [f"{color} {shape}" for shape in SHAPES for color in COLORS]
# Seconds since the answer was last in view, at least and at most, by cell.
BANDS = {
    "5s": (3, 8),
    "30s": (20, 45),
    "2min": (90, 180),
    "10min": (480, 780),
    "30min": (1560, 2100),
    "60min": (3420, 3780),
}
DEMO_BANDS = {"10-40s": (10, 40), "40-100s": (40, 100)}
CLOSED = {"past_seen": 2, "past_side": 3, "so_far": 4, "position": 3, "distance": 2, "exists": 2, "stop": 2, "count": 4}
FRAMES = 4, 24  # newest frames that last_frames sees: its default, and all that a budget of 512 tokens has room for
Truth = dict[str, np.ndarray]


def load(folder: Path) -> tuple[list[dict], Truth]:
    """A bag's instructions and truth."""
    with np.load(folder / "truth.npz") as file:
        truth = dict(file)
    return yaml.safe_load((folder / "instructions.yaml").read_text())["instructions"], truth


def last_sighting(truth: Truth, kind: int, now: int) -> list[int]:
    """The frames of the newest sighting of a kind up to frame `now`, newest first: those that show any of it, with no more
    than 3 s between them."""
    frames: list[int] = []
    for frame in range(now, -1, -1):
        if truth["state"][frame, kind] >= 0:
            if frames and truth["times"][frames[-1]] - truth["times"][frame] >= 3:
                break
            frames.append(frame)
    return frames


def side(centre: float) -> str:
    """A side of the view."""
    return "left" if centre < 0.35 else "right" if centre > 0.65 else "center"


def label(seconds: float) -> str:
    """The stream's label of a frame."""
    return f"{int(seconds) % 3600 // 60:02}:{int(seconds) % 60:02}"


def right_answers(entry: dict, truth: Truth, now: int) -> set[str]:
    """Every right answer to a question about the past after frame `now`."""
    state, times = truth["state"][: now + 1], truth["times"]
    if entry["type"] == "so_far":
        shape = next(i for i, name in enumerate(SHAPES) if name in entry["text"])
        seen = (state[:, shape * 6 : shape * 6 + 6] >= 0).any(0)
        sure = (state[:, shape * 6 : shape * 6 + 6] == 1).any(0)
        return {str(seen.sum())} if (seen == sure).all() else set()
    kind = next(i for i, name in enumerate(NAMES) if name in entry["text"])
    frames = last_sighting(truth, kind, now)
    if entry["type"] == "past_seen":
        return {"yes" if frames else "no"}
    if entry["type"] == "past_side":
        return {side(truth["centre"][frame, kind]) for frame in frames if state[frame, kind] == 1}
    if entry["type"] == "past_color":
        asked = SHAPES.index(re.search(r"(\w+) (with|have)|of the (\w+)", entry["text"].replace("the ", ""))[1])
        return {NAMES[k].split()[0] for k in range(asked * 6, asked * 6 + 6) if (state[frames, k] >= 0).any()}
    if entry["type"] == "past_before":
        for frame in range(min(frames) - 1, -1, -1):
            others = np.flatnonzero(state[frame] >= 0)
            if len(others):
                return {NAMES[k] for k in others if k != kind and (state[frames, k] < 0).all()}
        return set()
    newest, oldest = times[max(frames)] + 2, times[min(frames)] - 2
    return {label(t) for t in times if oldest <= t <= newest}


def in_band(entry: dict) -> bool:
    """Whether the answer was in view as long before as the cell says; where nothing was, and no age is told, the frame shown."""
    low, high = {**BANDS, **DEMO_BANDS}[entry["cell"]]
    untold = entry["at"] - entry["shown"][0] if entry["answer"] == "no" else -1
    return low <= entry.get("age", untold) <= high


def problem(entry: dict, truth: Truth) -> str | None:
    """What is wrong with a question about the past."""
    times = truth["times"]
    now = int(np.searchsorted(times, entry["at"], "right")) - 1
    right = right_answers(entry, truth, now)
    if right != set(entry.get("accept", [entry["answer"]])) or entry["answer"] not in right:
        return f"the answers {sorted(right)} are right, not {entry['answer']!r} alone"
    shown = [int(np.argmin(abs(times - t))) for t in entry["shown"]]
    if any(abs(times[f] - t) > 1e-6 for f, t in zip(shown, entry["shown"])):
        return "a frame shown is none of the bag's"
    if entry["cell"] != "so_far" and not in_band(entry):
        return f"the age {entry.get('age')} is not in the cell"
    subject = [i for i, name in enumerate(NAMES) if name in entry["text"]]
    if subject and (truth["state"][now - FRAMES[0] + 1 : now + 1, subject] >= 0).any():
        return "what is asked about is in one of the last frames"
    if entry["type"] == "so_far" or entry["answer"] == "no":
        wanted = int(entry["answer"]) if entry["type"] == "so_far" else 1
        good = (truth["state"][shown] == 1).any(0).sum() >= wanted
    else:
        good = truth["state"][shown[-1], subject[0]] == 1
    return None if good else "a frame shown does not show the answer"


def problems(folder: Path) -> list[str]:
    """What is wrong with a bag's questions, each with its id."""
    entries, truth = load(folder)
    found = []
    for entry in entries:
        what = problem(entry, truth) if entry["memory"] == "past" else None
        found += [f"{entry['id']} {entry['text']!r}: {what}"] if what else []
    if len({entry["id"] for entry in entries}) < len(entries):
        found.append("an id occurs twice")
    return found


def seen_in_last(entry: dict, truth: Truth, number: int) -> bool:
    """Whether all that shows the answer lies within the last frames."""
    now = int(np.searchsorted(truth["times"], entry["at"], "right")) - 1
    return min(entry["shown"]) >= truth["times"][max(0, now - number + 1)]


def newest_of_shape(entry: dict, truth: Truth) -> str:
    """Who knows the newest object of each shape only would answer with its color."""
    now = int(np.searchsorted(truth["times"], entry["at"], "right")) - 1
    subject = next(name for name in NAMES if name in entry["text"])
    shape = SHAPES.index(next(s for s in SHAPES if s in entry["text"].replace(subject, "")))
    seen = np.argwhere(truth["state"][: now + 1, shape * 6 : shape * 6 + 6] == 1)
    return COLORS[seen[-1][1]] if len(seen) else ""


def report(folders: list[Path]) -> None:
    """Prints how many questions there are of each type in each cell, what the best constant answer gets, and what the last
    frames show."""
    entries = [(entry, truth) for folder in folders for asked, truth in [load(folder)] for entry in asked]
    there = {entry["cell"] for entry, _ in entries}
    cells = [cell for cell in [*BANDS, *DEMO_BANDS, "so_far", "now"] if cell in BANDS or cell in there]
    groups: dict[str, list[tuple[dict, Truth]]] = defaultdict(list)
    for entry, truth in entries:
        groups[entry["type"]].append((entry, truth))
    print(f"{'type':12}" + "".join(f"{cell:>8}" for cell in cells) + "    all  best constant answer")
    for kind, asked in sorted(groups.items(), key=lambda item: (item[1][0][0]["memory"], item[0])):
        count = Counter(entry["cell"] for entry, _ in asked)
        answers = Counter(a for entry, _ in asked for a in entry.get("accept", [entry["answer"]]))
        answer, times = answers.most_common(1)[0]
        told = ", ".join(f"{a} {n}" for a, n in sorted(answers.items())) if kind in CLOSED else f"{answer} {times}"
        row = "".join(f"{count[cell] or '':>8}" for cell in cells)
        print(f"{kind:12}{row}{len(asked):7}  {100 * times / len(asked):.0f} % ({told})")
    for name, test in (
        ("all", lambda e, t: True),
        *((f"in last {n}", lambda e, t, n=n: e["memory"] == "past" and seen_in_last(e, t, n)) for n in FRAMES),
    ):
        count = Counter(entry["cell"] for entry, truth in entries if test(entry, truth))
        print(f"{name:12}" + "".join(f"{count[cell] or '':>8}" for cell in cells) + f"{sum(count.values()):7}")
    colors = groups["past_color"]
    guessed = sum(newest_of_shape(entry, truth) == entry["answer"] for entry, truth in colors)
    print(f"past_color by the newest object of the shape: {guessed} of {len(colors)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bags", type=Path, nargs="+")
    args = parser.parse_args()
    for bag in args.bags:
        for line in problems(bag):
            print(f"{bag.name}: {line}")
    report(args.bags)
