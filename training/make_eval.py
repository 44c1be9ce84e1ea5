"""Makes bags/eval: 500 questions on short unseen runs."""

import argparse
from pathlib import Path

import numpy as np
import yaml

from bag import write_bag
from dataset import SYSTEM_PROMPT
from questions import PAST, Asker, Question, visibility
from scenes import CAMERA_SIZE, Studio

EVAL_SEED = 910_001  # training shards use 1000 and up, one per shard


def entry(number: int, at: float, question: Question) -> dict[str, object]:
    """One instruction of an instructions file."""
    return {
        "id": f"q{number:03d}",
        "at": round(float(at), 2),
        "text": question.text,
        "answer": question.answer,
        "type": question.type,
        "memory": "past" if question.type in PAST else "view",
    }


def evaluation(out: Path, questions: int, length: int) -> None:
    """Short drives at 2 to 5 Hz one after the other, memory reset before each."""
    studio = Studio(EVAL_SEED)
    rng, asker = studio.rng, Asker(studio.rng, slack=1)
    frames, resets, instructions, start = [], [], [], 0.0
    while len(instructions) < questions:
        times = np.round(np.cumsum(rng.uniform(0.2, 0.5, length)), 3)
        run = studio.run(times - times[0], objects=(3, 9), keep_jpegs=True)
        resets.append(round(max(0.0, start - 0.5), 3))
        states = np.stack([visibility(run, k) for k in range(length)])
        asked: set[str] = set()
        for k in range(length):
            at = start + float(run.times[k])
            frames.append((at, run.jpegs[k], run.fovy))
            found = asker.options(run, k, states[: k + 1])
            wanted = 1 if k in (2, 4, 6, 7, 8, 10) else 2 if k == length - 1 else 0
            for _ in range(wanted):
                question = asker.ask(found, asked)
                if question is not None and len(instructions) < questions:
                    asked.add(question.text)
                    instructions.append(entry(len(instructions) + 1, at + 0.05, question))
        start = round(frames[-1][0] + 2.0, 3)
    write_bag(out, frames, CAMERA_SIZE)
    content = {"bag": "eval", "system_prompt": SYSTEM_PROMPT, "resets": resets, "instructions": instructions}
    (out / "instructions.yaml").write_text(yaml.safe_dump(content, sort_keys=False, width=120))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("../bags/eval"))
    args = parser.parse_args()
    evaluation(args.out, 500, 12)


if __name__ == "__main__":
    main()
