"""Makes bags/demo (one long unseen run) and bags/eval (500 questions on short unseen runs) with their instructions."""

import argparse
import shutil
from pathlib import Path

import numpy as np
import yaml

from bag import write_bag
from questions import PAST, Asker, Question, visibility
from runs import Run
from scenes import CAMERA_SIZE, Studio
from tokenizer import SYSTEM_PROMPT

DEMO_SEED, EVAL_SEED = 900_001, 910_001  # training shards use 1000 and up, one per shard


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


def write(
    path: Path, name: str, frames: list[tuple[float, bytes, float]], resets: list[float], instructions: list[dict]
) -> None:
    """Writes the bag and, into its folder, instructions.yaml."""
    write_bag(path, frames, CAMERA_SIZE)
    content = {"bag": name, "system_prompt": SYSTEM_PROMPT, "resets": resets, "instructions": instructions}
    (path / "instructions.yaml").write_text(yaml.safe_dump(content, sort_keys=False, width=120))


def steady(run: Run, frame: int, states: np.ndarray, question: Question) -> bool:
    """Whether the question has the same answer 0.3 s earlier and later, so that a late frame does not change it."""
    for k in (frame - 3, frame + 3):
        other = Asker(np.random.default_rng(0)).options(run, k, states[: k + 1]).get(question.type, [])
        if not any(answer == question.answer and tuple(words.values()) == question.words for answer, words, _ in other):
            return False
    return True


def demo(out: Path, seconds: float, questions: int) -> None:
    """One drive at 10 Hz with instructions of every type spread over it."""
    studio = Studio(DEMO_SEED)
    times = np.arange(0, seconds, 0.1)
    run = studio.run(times, objects=(7, 8), keep_jpegs=True)
    states = np.stack([visibility(run, k) for k in range(len(times))])
    asker, instructions = Asker(studio.rng, slack=0), []
    spacing = (seconds - 6) / questions
    for i in range(questions):
        begin = int((4 + i * spacing) * 10)
        for frame in range(begin, min(begin + int(spacing * 8), len(times) - 4)):
            asked = {entry["text"] for entry in instructions[-4:]}
            question = asker.propose(asker.options(run, frame, states[: frame + 1]), asked)
            if question is None or not steady(run, frame, states, question):
                continue
            if asker.types[question.type] > min(asker.types.values()) or (
                question.type == "before" and not 4 <= question.age <= 60
            ):
                continue
            asker.count(question)
            instructions.append(entry(len(instructions) + 1, times[frame] + 0.05, question))
            break
    frames = [(float(t), jpeg, run.fovy) for t, jpeg in zip(times, run.jpegs)]
    write(out, "demo", frames, [0.0], instructions)


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
    write(out, "eval", frames, resets, instructions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bag", choices=["demo", "eval"])
    parser.add_argument("--out", type=Path, default=Path("../bags"))
    parser.add_argument("--seconds", type=float, default=75)
    args = parser.parse_args()
    shutil.rmtree(args.out / args.bag, ignore_errors=True)
    if args.bag == "demo":
        demo(args.out / "demo", args.seconds, 18)
    else:
        evaluation(args.out / "eval", 500, 12)


if __name__ == "__main__":
    main()
