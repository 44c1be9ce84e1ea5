"""How the model does on single frames that it has never seen, by question type and by how many objects are in view."""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from transformers import SmolVLMForConditionalGeneration

from dataset import Codec, Stream
from model import frame_features, pixels, stream_hidden
from pool import Pool
from questions import PAST, TYPES, Asker, visibility
from tokenizer import SYSTEM_PROMPT

MANY = 4  # objects from which frames are counted together


@torch.no_grad()
def right(model: SmolVLMForConditionalGeneration, stream: Stream, image: np.ndarray) -> list[tuple[str, bool]]:
    """The stream's question types, and whether each answer would be given word by word; one image [96, 96, 3]."""
    hidden = stream_hidden(model, [stream], frame_features(model, pixels(image[None])), [0])
    given = model.lm_head(hidden[0]).argmax(-1).tolist()
    return [(kind, given[start - 1 : end - 1] == stream.ids[start:end]) for kind, start, end in stream.answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("../models/demo"))
    parser.add_argument("--data", type=Path, default=Path("data2"), help="its last two shards are never trained on")
    parser.add_argument("--frames", type=int, default=400)
    args = parser.parse_args()
    model = SmolVLMForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    codec, runs = Codec(args.model), Pool(args.data, held_out=True).runs
    rng = np.random.default_rng(5)
    asker, kinds = Asker(rng, slack=1), [kind for kind in TYPES if kind not in PAST]
    by_type, by_crowd = defaultdict(list), defaultdict(list)
    for _ in range(args.frames):
        run = runs[rng.integers(len(runs))]
        frame = int(rng.integers(len(run.times)))
        state = visibility(run, frame)
        stream, asked = Stream(codec), set()
        stream.begin(SYSTEM_PROMPT)
        stream.add_frame(frame, run.times[frame])
        found = asker.options(run, frame, state[None])
        while len(asked) < 4 and (question := asker.ask(found, asked, kinds)):
            asked.add(question.text)
            stream.add_aside(question.text, question.answer, question.type)
        for kind, hit in right(model, stream, run.images[frame].copy()) if stream.answers else []:
            by_type[kind].append(hit)
            by_crowd[min(int((state >= 0).sum()), MANY)].append(hit)
    for name, shares in {**by_type, **dict(sorted(by_crowd.items()))}.items():
        label = name if isinstance(name, str) else f"{name}{' or more' if name == MANY else ''} in view"
        print(f"{label:17} {100 * np.mean(shares):5.1f} % of {len(shares)}")


if __name__ == "__main__":
    main()
