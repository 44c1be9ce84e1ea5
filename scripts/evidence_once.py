"""Writes questions about the objects that a drive has shown once until then, for `inf_mllm replay` and scripts/evidence.py.

Each object that comes into view is asked for some seconds after it has left, as long as it has not come again: no question has another
sighting to find. The questions leave no trace.
"""

import argparse
from pathlib import Path

import numpy as np
import yaml
from evidence import NAMES, sightings

DELAYS_S = [5, 10, 15, 20, 30, 45, 60, 80, 100]
"""From the last frame that showed an object to a question."""
BEFORE_S = 0.02
"""Questions come so long before the next frame."""
FORMS = [
    "Where did you last see the {}?",
    "When was the {} seen last?",
    "Where was the {} last?",
    "On which side was the {} last?",
]


def questions(bag: Path) -> list[dict[str, object]]:
    with np.load(bag / "truth.npz") as file:
        times, state = file["times"], file["state"]
    found = []
    for kind, name in enumerate(NAMES):
        seen = sightings(times, state[:, kind] >= 0)
        if not seen:
            continue
        end, again = seen[0][-1], seen[1][0] if len(seen) > 1 else times[-1]
        for i, delay in enumerate(DELAYS_S):
            form = FORMS[(kind + i) % len(FORMS)]
            if end + delay < again:
                at = round(end + delay - BEFORE_S, 3)
                found.append({"at": at, "text": form.format(name), "cell": f"once, {delay} s ago"})
    found.sort(key=lambda question: question["at"])
    return [{"id": f"{bag.name}-{i:03}", **question} for i, question in enumerate(found, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bag", type=Path, help="folder of a bag with truth.npz")
    parser.add_argument("--out", type=Path, required=True, help="the questions, YAML")
    args = parser.parse_args()
    asked = questions(args.bag)
    args.out.write_text(yaml.safe_dump({"aside": True, "instructions": asked}, sort_keys=False))
    print(f"{len(asked)} questions about {args.bag}")


if __name__ == "__main__":
    main()
