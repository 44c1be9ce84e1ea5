"""How the model does on single frames that it has never seen, by question type and by how many objects are in view."""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from dataset import SYSTEM_PROMPT, Codec, Stream
from model import published
from packed import pack
from pool import Pool, image_tokens
from questions import PAST, TYPES, Asker, visibility
from train import placed, stream_loss

MANY = 4  # objects from which frames are counted together


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("../models/demo"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="of which only the shards held out are used")
    parser.add_argument("--frames", type=int, default=400)
    args = parser.parse_args()
    model, codec = published(args.model).eval(), Codec(args.model)
    model = placed(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    pool = Pool(args.data, held_out=True)
    tokens = image_tokens(model, pool).to(model.device)
    rng = np.random.default_rng(5)
    asker, kinds = Asker(rng, slack=1), [kind for kind in TYPES if kind not in PAST]
    right = defaultdict(list)
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
        if not stream.answers:
            continue
        _, hits, packed, _ = stream_loss(model, tokens, pack([stream], pool.starts))
        many = int((state >= 0).sum())
        crowd = f"{MANY} or more in view" if many >= MANY else f"{many} in view"
        for (kind, _), hit in zip(packed.answers, hits.tolist()):
            right[kind].append(hit)
            right[crowd].append(hit)
    for name, hits in sorted(right.items()):
        print(f"{name:17} {100 * np.mean(hits):5.1f} % of {len(hits)}")


if __name__ == "__main__":
    main()
