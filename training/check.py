"""How a model does on rooms that it has never seen: exact answers by question type and by what is recalled before it is asked."""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cameras import CAMERA_KINDS
from cameras import LAYOUTS as OF_CAMERAS
from dataset import Codec
from finding import found, shows
from model import published
from pool import Batches, Pool, image_tokens
from streams import KINDS, RECALLED
from train import placed, stream_loss

LAYOUTS = ("plain", *RECALLED)
FRAMES, BEST = 2000, 8  # of so many frames, how many a search may bring
TOKENS = 4096


def finding(model: torch.nn.Module, tokens: torch.Tensor, pool: Pool, batches: Batches) -> dict[str, float]:
    """How questions find, among all frames of a batch, those that certainly show what they name: whether one is among the best, the share
    of the best that do, and of all frames."""
    _, _, pack, finds = stream_loss(model, tokens, batches.next(FRAMES * 35, 1.0))
    states = pool.states().to(tokens.device)
    _, match, kinds = found(pack, finds, 200)
    shown = shows(states[pack.frame], kinds) == 1
    asked = shown.any(1)
    best = shown[asked].gather(1, match[asked].topk(BEST, 1).indices).float()
    shares = (best.amax(1).mean(), best.mean(), shown[asked].float().mean())
    return {"frames": float(len(pack.frame)), **dict(zip(("one", "share", "chance"), (x.item() for x in shares)))}


def answered(
    model: torch.nn.Module, tokens: torch.Tensor, batches: Batches, count: int
) -> dict[tuple[str, str], list[bool]]:
    """By question type and layout, which answers of so many batches are right."""
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for _ in range(count):
        _, hits, pack, _ = stream_loss(model, tokens, batches.next(TOKENS, 0.4))
        for (kind, layout), hit in zip(pack.answers, hits.tolist()):
            for key in ((kind, layout), (kind, "all"), ("all", layout), ("all", "all")):
                right[key].append(hit)
    return right


def show(right: dict[tuple[str, str], list[bool]], kinds: Sequence[str], layouts: Sequence[str]) -> None:
    """Prints a table of percentages, with the number of questions."""
    print(f"{'':12}" + "".join(f"{layout:>15}" for layout in (*layouts, "all")))
    for kind in (*kinds, "all"):
        cells = [right.get((kind, layout), []) for layout in (*layouts, "all")]
        print(f"{kind:12}" + "".join(f"{100 * np.mean(c):8.1f} ({len(c):4})" if c else f"{'-':>15}" for c in cells))


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
    model = placed(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    pool = Pool(args.data, held_out=True, most=args.shards)
    tokens = image_tokens(model, pool, 512).to(model.device)
    table, told = {}, {}
    for name, share, kinds, layouts in (("one", 0.0, KINDS, LAYOUTS), ("several", 1.0, CAMERA_KINDS, OF_CAMERAS)):
        batches = Batches(codec, pool, np.random.default_rng(7), 0.75, (0.4, 0.4, 0.2), cameras=share)
        right = answered(model, tokens, batches, args.batches)
        print(f"streams of {name} camera{'s' * (share > 0)}")
        show(right, kinds, layouts)
        table[name] = {f"{kind} {layout}": [sum(hits), len(hits)] for (kind, layout), hits in sorted(right.items())}
        told = told or finding(model, tokens, pool, batches)
    print(
        "the best {:.0f} of {:.0f} frames: one shows what the question names {:.3f}, share that do {:.3f}; by chance {:.3f}".format(
            BEST, *told.values()
        )
    )
    if args.out:
        args.out.write_text(json.dumps({**table, "finding": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
