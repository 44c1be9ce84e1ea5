"""Trains the demo model from what is published, in stages of fixed wall-clock time: `tower` on single frames, then `streams`, the
decoder on streams of a tower that stays as it is. `run` is both, and writes what came of it in the published format."""

import argparse
import math
import os
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from ahead import Shelf
from dataset import Codec
from finding import finding_loss
from grow import Size, grown
from model import new_model, published, save_checkpoint, tower_hidden
from optimize import Optimizers, optimizer_for, step
from packed import Pack, Padded, packed_hidden
from pool import CAMERAS, Batches, Frames, Pool, augment, image_tokens, share_of
from streams import RECALLED
from tower import Heads, split_rows

BEGAN = time.time()
HEADS_ALONE = 0.1  # of the tower's time, in which new heads learn to read it before it follows them
EXPORT = 10.0  # seconds kept for writing the model
FIRST = "1000"  # number of the first shard that a run renders: the ones before were trained on
Report = dict[str, torch.Tensor]  # by name, how many are right and how many there are


class Clock:
    """A stage's wall-clock budget in seconds: learning rate by the share of it that is spent, over restarts."""

    def __init__(self, total: float, rate: float, spent: float = 0.0):
        self.total, self.rate, self.spent, self.last = total, rate, spent, time.time()

    def tick(self) -> float:
        """Counts the time since the last call; returns the learning rate to use, or 0 when the budget is spent. The first
        process's counts for all."""
        now = time.time()
        self.spent, self.last = self.spent + now - self.last, now
        share = self.spent / self.total if self.total > 0 else 1.0
        warm, cooled = min(1.0, share / 0.02 + 0.05), 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        value = torch.tensor(0.0 if share >= 1 else self.rate * warm * cooled)
        if dist.is_initialized():
            dist.broadcast(value, 0)
        return value.item()


def lower_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where it is faster: on GPUs, and on CPUs with instructions for it."""
    cpus = Path("/proc/cpuinfo")
    fast = device.type == "cuda" or (cpus.exists() and "avx512_bf16" in cpus.read_text())
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def report(title: str, tally: Report) -> None:
    """Prints the shares right so far, and forgets them."""
    if not share_of()[0]:
        shares = {key: value.tolist() for key, value in tally.items()}
        told = (f"{key} {right / max(count, 1):.3f}" for key, (right, count) in shares.items())
        print(f"{time.time() - BEGAN:.0f} s: {title}", " ".join(told), flush=True)
    tally.clear()


def add(tally: Report, found: Report) -> None:
    """Adds (right, count) pairs to those so far."""
    for key, value in found.items():
        tally[key] = tally[key] + value if key in tally else value


def save(
    path: Path, model: torch.nn.Module, heads: Heads | None, optimizer: Optimizers, clock: Clock, steps: int
) -> None:
    """Writes a training checkpoint; only the first process does."""
    if share_of()[0]:
        return
    state = {
        "config": model.config.to_dict(),
        "model": model.state_dict(),
        "heads": heads.state_dict() if heads else None,
        "optimizer": optimizer.state_dict(),
        "spent": clock.spent,
        "steps": steps,
    }
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def placed(model: SmolVLMForConditionalGeneration, device: torch.device) -> SmolVLMForConditionalGeneration:
    """The model on a device, with the attention that is fast there."""
    if device.type == "cuda":
        model.set_attn_implementation("sdpa")
    return model.to(device)


def start(args: argparse.Namespace, codec: Codec, stage: str) -> tuple[SmolVLMForConditionalGeneration, dict | None]:
    """The model to go on with, and the stage's checkpoint that it is from, if it resumes one: else what the stage before left in
    the folder, else `--init`, grown, or a new one."""
    own, before = args.out / f"{stage}.pt", args.out / "tower.pt"
    path = own if args.resume and own.exists() else before
    if path.exists() and (path == before) <= (args.resume or stage != "tower"):
        saved = torch.load(path, weights_only=True, map_location="cpu")
        model = SmolVLMForConditionalGeneration(SmolVLMConfig.from_dict(saved["config"]))
        model.set_attn_implementation("plain")
        model.load_state_dict(saved["model"])
        return placed(model, args.device), saved if path == own else None
    torch.manual_seed(args.seed)  # new weights are the same in all processes
    model = new_model(codec, args.seed) if args.scratch else published(args.init)
    model = grown(model, Size(args.kv_heads, args.layers, args.mlp, args.tower_layers))
    torch.manual_seed(args.seed + share_of()[0])
    return placed(model, args.device), None


@cache
def frames_of(folder: Path, held_out: bool, device: torch.device, labels: bool) -> Frames:
    """A pool's frames on a device, read once."""
    return Frames(Pool(folder, held_out), device, labels)


def train_tower(args: argparse.Namespace, codec: Codec, share: float) -> None:
    """Tower, connector and throw-away heads on single frames, for this share of the time that is left."""
    model, saved = start(args, codec, "tower")
    vision, text = model.config.vision_config, model.config.text_config
    heads = Heads(vision.hidden_size, text.hidden_size).to(args.device)
    parts = [*model.model.vision_model.parameters(), *model.model.connector.parameters()]
    tables = [model.model.vision_model.embeddings.position_embedding.weight, *heads.parameters()]
    optimizer, steps, spent = optimizer_for(tables, [*parts, *heads.parameters()]), 0, 0.0
    if saved:
        heads.load_state_dict(saved["heads"])
        optimizer.load_state_dict(saved["optimizer"])
        spent, steps = saved["spent"], saved["steps"]
    frames, unseen = (frames_of(args.data, out, args.device, True) for out in (False, True))
    print(f"{time.time() - BEGAN:.0f} s: {len(frames.images)} frames, {len(unseen.images)} held out", flush=True)
    states_of = torch.compile(tower_hidden, dynamic=False) if args.compile else tower_hidden
    tally: Report = {}

    def loss_on(frames: Frames, rows: torch.Tensor, learning: bool) -> tuple[torch.Tensor, Report]:
        values = frames.values(rows)
        values = augment(values) if learning else values
        labels = split_rows(frames.labels[rows])
        with lower_precision(args.device):
            with torch.set_grad_enabled(learning and clock.spent > HEADS_ALONE * clock.total):
                states = (states_of if learning else tower_hidden)(model, values)
                tokens = model.model.connector(states)
            return heads.loss(states, tokens, labels)

    clock = Clock(spent + share * (args.minutes * 60 - EXPORT - time.time() + BEGAN), args.tower_rate, spent)
    while rate := clock.tick():
        loss, right = loss_on(frames, frames.some(args.batch), True)
        step(optimizer, loss, rate)
        steps += 1
        add(tally, {"loss": torch.stack([loss.detach(), torch.ones_like(loss)]), **right})
        if steps % args.every == 0:
            report(f"tower {steps} {clock.spent / 60:.1f} min", tally)
            save(args.out / "tower.pt", model, heads, optimizer, clock, steps)
    save(args.out / "tower.pt", model, heads, optimizer, clock, steps)
    with torch.no_grad():
        for _ in range(4):
            add(tally, loss_on(unseen, unseen.some(256), False)[1])
    report(f"tower {steps}, held out", tally)


def stream_loss(
    model: SmolVLMForConditionalGeneration, tokens: torch.Tensor, pack: Pack
) -> tuple[torch.Tensor, torch.Tensor, Pack, tuple[torch.Tensor, torch.Tensor]]:
    """Mean loss over the learnt tokens; of each answer whether it would be given word by word; the pack on the model's
    device; and what `packed_hidden` returns for finding. tokens: the pool's image tokens."""
    device = next(model.parameters()).device
    moved = pack.moved(lambda x: x.to(device, non_blocking=True))
    features = tokens[moved.part].float()
    padded = Padded(pack.spans, pack.wanted, moved, torch.bfloat16) if device.type == "cuda" else None
    with lower_precision(device):
        hidden, finds = packed_hidden(model, moved, features, padded)
        logits = model.lm_head(hidden).float()
    wrong = (logits.argmax(-1) != moved.target).float()
    right = torch.zeros(len(pack.answers), device=device).index_add_(0, moved.answer, wrong) == 0
    return F.cross_entropy(logits, moved.target), right, moved, finds


def counted(pack: Pack, right: torch.Tensor) -> Report:
    """How many answers of each type, and with frames recalled where, are right."""
    names = [("all", *key) for key in pack.answers]
    kinds = sorted({name for key in names for name in key})
    member = torch.tensor([[kind in key for kind in kinds] for key in names], dtype=torch.float32)
    member = member.to(right.device, non_blocking=True)
    both = torch.stack([right.float() @ member, member.sum(0)], 1)
    return dict(zip(kinds, both))


def train_streams(args: argparse.Namespace, codec: Codec, deadline: float) -> None:
    """The decoder on streams, until so many seconds from the program's start."""
    model, saved = start(args, codec, "streams")
    pool = Pool(args.data)
    if args.device.type == "cuda":
        frames = frames_of(args.data, False, args.device, args.stage == "run")
        tables = [frames.tokens(model, 1024, augmented=n > 0) for n in range(args.looks)]
    else:
        tables = [image_tokens(model, pool)]
    states = pool.states().to(args.device)
    text = list(model.model.text_model.parameters())
    optimizer, steps = optimizer_for([model.get_input_embeddings().weight], text), 0
    spent = 0.0
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        spent, steps = saved["spent"], saved["steps"]
    if args.ahead:
        shelf = Shelf(args.ahead, args.device.type == "cuda")
        told = (args.ahead / "pool").read_text()
        if told != pool.name():
            raise SystemExit(f"{args.ahead}: packs of pool {told}, not of {args.data}'s {pool.name()}")
        batches = iter(shelf)
    else:
        seed = [args.seed, 1, share_of()[0], int(time.time()) if args.resume else 0]
        source = Batches(codec, pool, np.random.default_rng(seed), args.recall, tuple(args.layouts), args.cameras)
        batches = iter(lambda: source.next(args.tokens, args.long), None)
    tally: Report = {}
    model.train()
    print(f"{time.time() - BEGAN:.0f} s: {len(states)} frames, {args.looks} looks at each", flush=True)
    waited, seen, read_at = 0.0, 0, time.time()
    clock = Clock(spent + deadline - (time.time() - BEGAN), args.rate, spent)
    while rate := clock.tick():
        began = time.time()
        pack = next(batches)
        waited += time.time() - began
        loss, right, moved, finds = stream_loss(model, tables[steps % len(tables)], pack)
        finding = finding_loss(moved, finds, states) if args.finding else loss.new_zeros(())
        step(optimizer, loss + args.finding * finding, rate)
        steps, seen = steps + 1, seen + len(pack.ids)
        one = torch.ones_like(loss)
        add(tally, {"loss": torch.stack([loss.detach(), one]), "finding": torch.stack([finding.detach(), one])})
        add(tally, counted(pack, right))
        if steps % args.every == 0:
            report(f"streams {steps} {clock.spent / 60:.1f} min", tally)
            passed, again = time.time() - read_at, f", {shelf.again} packs again" if args.ahead else ""
            print(f"  {seen / passed:.0f} tokens/s, waited {waited / passed:.2f}{again}", flush=True)
            waited, seen, read_at = 0.0, 0, time.time()
            save(args.out / "streams.pt", model, None, optimizer, clock, steps)
    save(args.out / "streams.pt", model, None, optimizer, clock, steps)


def export(args: argparse.Namespace, codec: Codec) -> None:
    """Writes the newest checkpoint as a published model, with the tokenizer it was trained with, into the folder's `model`."""
    if share_of()[0]:
        return
    args.resume, args.device = True, torch.device("cpu")
    model, out = start(args, codec, "streams")[0], args.out / "model"
    save_checkpoint(model, out)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json"):
        shutil.copyfile(args.init / name, out / name)
    print(f"{out}: {(out / 'model.safetensors').stat().st_size / 1e6:.1f} MB", flush=True)


def render(args: argparse.Namespace) -> None:
    """Renders shards on all cores for `args.render` minutes, if there are none."""
    if not any(args.data.glob("shard????.npz")):
        cores = str(os.cpu_count() or 1)
        options = ["--out", str(args.data), "--first", FIRST, "--shards", "1000", "--processes", cores]
        script = Path(__file__).with_name("generate.py")
        subprocess.run([sys.executable, script, *options, "--minutes", str(args.render)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("stage", choices=["run", "tower", "tokens", "streams", "export"])
    parser.add_argument("--minutes", type=float, default=30, help="from the program's start to its end")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="checkpoints, and the model in `model`")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--init", type=Path, default=Path("../models/demo"), help="published model to start from")
    parser.add_argument("--scratch", action="store_true", help="random weights; --init gives only the tokenizer")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    parser.add_argument("--render", type=float, default=0, help="run: minutes to render for, where --data has nothing")
    parser.add_argument(
        "--tower-share", type=float, default=0.3, help="run: of the time after rendering, for the tower"
    )
    parser.add_argument("--tower", action="store_true", help="run: train the tower even without a GPU")
    parser.add_argument("--rate", type=float, default=1e-3, help="streams: highest learning rate")
    parser.add_argument("--tower-rate", type=float, default=1e-3, help="tower: highest learning rate")
    parser.add_argument("--batch", type=int, default=64, help="tower: frames a step")
    parser.add_argument("--tokens", type=int, default=4096, help="streams: tokens a step, of each process")
    parser.add_argument("--long", type=float, default=0.4, help="streams: share of full-length batches")
    parser.add_argument("--recall", type=float, default=0.6, help="streams: share with recalled frames")
    parser.add_argument(
        "--layouts", type=float, nargs=3, default=[0.45, 0.45, 0.1], help=f"how often these come {', '.join(RECALLED)}"
    )
    parser.add_argument("--cameras", type=float, default=CAMERAS, help="streams: share that are of several cameras")
    parser.add_argument("--finding", type=float, default=0.3, help="streams: weight of the loss on finding frames")
    parser.add_argument(
        "--ahead", type=Path, help="streams: a folder that ahead.py fills, instead of building them here"
    )
    parser.add_argument(
        "--looks", type=int, default=1, help="streams: image tokens of each frame, all but one augmented; GPU"
    )
    parser.add_argument("--compile", action="store_true", help="tower: compile it first, which pays in longer runs")
    for name, meaning in (
        ("kv-heads", "key-value heads"), ("layers", "decoder layers"), ("mlp", "width of the decoder's MLPs"),
        ("tower-layers", "layers of the tower"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=0, help=f"grow: {meaning}; 0 leaves them")
    parser.add_argument("--every", type=int, default=100, help="steps between reports and checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="per process; more than one crawls on a busy machine")
    args = parser.parse_args()
    args.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed + share_of()[0])
    torch.set_flush_denormal(True)  # attention weights of next to nothing are slow on a CPU
    args.out.mkdir(parents=True, exist_ok=True)
    if args.render and not share_of()[0]:
        render(args)
    if dist.is_initialized():
        dist.barrier()
    codec, seconds = Codec(args.init), args.minutes * 60 - EXPORT
    learns = args.tower or args.device.type == "cuda"
    going_on = args.resume and (args.out / "streams.pt").exists()
    if args.stage == "tower" or (args.stage == "run" and learns and not going_on):
        train_tower(args, codec, args.tower_share if args.stage == "run" else 1.0)
    if args.stage == "tokens":
        for held_out in (False, True):
            image_tokens(start(args, codec, "streams")[0], Pool(args.data, held_out))
    if args.stage in ("run", "streams"):
        train_streams(args, codec, seconds)
    if args.stage in ("run", "streams", "export"):
        export(args, codec)


if __name__ == "__main__":
    main()
