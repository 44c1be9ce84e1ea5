"""How the model does on single frames that it has never seen, by question type and by how many objects are in view."""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from dataset import Codec, Stream
from model import published
from packed import pack
from pool import Pool
from questions import PAST, TYPES, Asker, visibility
from tokenizer import SYSTEM_PROMPT
from train import stream_loss

MANY = 4  # objects from which frames are counted together


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("../models/demo"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="of which only the shards held out are used")
    parser.add_argument("--frames", type=int, default=400)
    args = parser.parse_args()
    model, codec = published(args.model).eval(), Codec(args.model)
    pool = Pool(args.data, held_out=True, images=False)
    pool.load_tokens(model)
    rng = np.random.default_rng(5)
    asker, kinds = Asker(rng, slack=1), [kind for kind in TYPES if kind not in PAST]
    by_type, by_crowd = defaultdict(list), defaultdict(list)
    for _ in range(args.frames):
        number = int(rng.integers(len(pool.runs)))
        run = pool.runs[number]
        frame = int(rng.integers(len(run.times)))
        state = visibility(run, frame)
        stream, asked = Stream(codec), set()
        stream.begin(SYSTEM_PROMPT)
        stream.add_frame((number, frame), run.times[frame])
        found = asker.options(run, frame, state[None])
        while len(asked) < 4 and (question := asker.ask(found, asked, kinds)):
            asked.add(question.text)
            stream.add_aside(question.text, question.answer, question.type)
        for kind, _, hit in stream_loss(model, pool, pack([stream]))[1] if stream.answers else []:
            by_type[kind].append(hit)
            by_crowd[min(int((state >= 0).sum()), MANY)].append(hit)
    for name, shares in {**by_type, **dict(sorted(by_crowd.items()))}.items():
        label = name if isinstance(name, str) else f"{name}{' or more' if name == MANY else ''} in view"
        print(f"{label:17} {100 * np.mean(shares):5.1f} % of {len(shares)}")


if __name__ == "__main__":
    main()
