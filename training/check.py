"""How a model does on rooms that it has never seen: exact answers by question type and by what is recalled before it is asked."""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from dataset import Codec
from model import published
from pool import Batches, Pool
from streams import KINDS
from train import stream_loss

LAYOUTS = ("plain", "before", "after")
TOKENS = 4096


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("../models/demo"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="of which only the shards held out are used")
    parser.add_argument("--batches", type=int, default=40, help=f"of about {TOKENS} tokens each")
    parser.add_argument("--shards", type=int, default=2, help="how many shards to read")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, codec = published(args.model).eval(), Codec(args.model)
    if torch.cuda.is_available():
        model = model.cuda()
    pool = Pool(args.data, held_out=True, images=False, most=args.shards)
    pool.load_tokens(model)
    batches = Batches(codec, pool, np.random.default_rng(7), recall=0.7, after=0.5)
    found: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for _ in range(args.batches):
        for kind, layout, hit in stream_loss(model, pool, batches.next(TOKENS, 0.4))[1]:
            for key in ((kind, layout), (kind, "all"), ("all", layout), ("all", "all")):
                found[key].append(hit)
    print(f"{'':12}" + "".join(f"{layout:>15}" for layout in (*LAYOUTS, "all")))
    for kind in (*KINDS, "all"):
        cells = [found[kind, layout] for layout in (*LAYOUTS, "all")]
        print(f"{kind:12}" + "".join(f"{100 * np.mean(c):8.1f} ({len(c):4})" if c else f"{'-':>15}" for c in cells))
    if args.out:
        table = {f"{kind} {layout}": [sum(hits), len(hits)] for (kind, layout), hits in sorted(found.items())}
        args.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
