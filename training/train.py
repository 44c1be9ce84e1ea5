"""Trains the demo model from what is published, in stages of fixed wall-clock time: `tower` on single frames, then `streams`, the
decoder on streams of a tower that stays as it is. `run` is both, and writes what came of it in the published format."""

import argparse
import math
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from dataset import Codec, Shown
from grow import Size, grown
from model import new_model, pixels, published, save_checkpoint, tower_hidden
from optimize import Optimizers, optimizer_for, step
from packed import Pack, packed_hidden
from pool import Batches, Pool, augment, shards, share_of, token_files
from questions import visibility
from tower import Heads

BEGAN = time.time()
CROWDS = (0.1, 0.35, 0.7, 1.0)  # how likely a frame is taken with no, one, two, more objects in view
TOWER_SHARE = 0.3  # of a run's time after rendering, where the tower is trained
HEADS_ALONE = 0.1  # of the tower's time, in which new heads learn to read it before it follows them
EXPORT = 30.0  # seconds kept for writing the model
FIRST = "600"  # number of the first shard that a run renders: the ones before were trained on
Report = dict[str, list[float]]


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


class Endless(IterableDataset):
    """What `make` produces from a random generator of its own, again and again, in as many processes as asked for."""

    def __init__(self, make: Callable[[np.random.Generator], Callable[[], object]], seed: list[int]):
        self.make, self.seed = make, seed

    def __iter__(self) -> Iterator[object]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        produce = self.make(np.random.default_rng([*self.seed, worker.id if worker else 0]))
        while True:
            yield produce()


def feed(args: argparse.Namespace, make: Callable, salt: int) -> Iterator:
    """Batches from `args.workers` processes, or made here between the steps with none."""
    ahead = {"prefetch_factor": 4} if args.workers else {}
    source = Endless(make, [args.seed, salt, share_of()[0], int(time.time()) if args.resume else 0])
    return iter(DataLoader(source, batch_size=None, num_workers=args.workers, **ahead))


def lower_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where it is faster: on GPUs, and on CPUs with instructions for it."""
    cpus = Path("/proc/cpuinfo")
    fast = device.type == "cuda" or (cpus.exists() and "avx512_bf16" in cpus.read_text())
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def some_frames(pool: Pool, rng: np.random.Generator, count: int) -> list[Shown]:
    """Random frames, the more of them the more objects are in view."""
    chosen = []
    while len(chosen) < count:
        index = int(rng.integers(len(pool.runs)))
        frame = int(rng.integers(len(pool.runs[index].times)))
        if rng.random() < CROWDS[min(int((visibility(pool.runs[index], frame) >= 0).sum()), len(CROWDS) - 1)]:
            chosen.append((index, frame))
    return chosen


def frame_batch(pool: Pool, frames: list[Shown]) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Images [frames, 96, 96, 3] and labels."""
    return np.stack([pool.runs[run].images[frame] for run, frame in frames]), pool.labels(frames)


def report(title: str, tally: Report) -> None:
    """Prints the means so far, and forgets them."""
    if not share_of()[0]:
        print(title, " ".join(f"{key} {np.nanmean(value):.3f}" for key, value in tally.items()), flush=True)
    tally.clear()


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
        return model.to(args.device), saved if path == own else None
    torch.manual_seed(args.seed)  # new weights are the same in all processes
    model = new_model(codec, args.seed) if args.scratch else published(args.init)
    model = grown(model, Size(args.kv_heads, args.layers, args.mlp, args.tower_layers))
    torch.manual_seed(args.seed + share_of()[0])
    return model.to(args.device), None


def train_tower(args: argparse.Namespace, codec: Codec, seconds: float) -> None:
    """Tower, connector and throw-away heads on single frames, for so long."""
    clock = Clock(seconds, args.tower_rate)
    model, saved = start(args, codec, "tower")
    vision, text = model.config.vision_config, model.config.text_config
    heads = Heads(vision.hidden_size, text.hidden_size).to(args.device)
    parts = [*model.model.vision_model.parameters(), *model.model.connector.parameters()]
    tables = [model.model.vision_model.embeddings.position_embedding.weight, *heads.parameters()]
    optimizer, steps = optimizer_for(tables, [*parts, *heads.parameters()]), 0
    if saved:
        heads.load_state_dict(saved["heads"])
        optimizer.load_state_dict(saved["optimizer"])
        clock.spent, steps = saved["spent"], saved["steps"]
    pool, unseen = Pool(args.data), Pool(args.data, held_out=True)
    states_of = torch.compile(tower_hidden, dynamic=False)  # a third faster
    batches = feed(args, lambda rng: lambda: frame_batch(pool, some_frames(pool, rng, args.batch)), 0)
    checks = some_frames(unseen, np.random.default_rng(0), 1024)
    tally: Report = defaultdict(list)

    def loss_on(images: np.ndarray, labels: dict[str, torch.Tensor], learning: bool) -> tuple[torch.Tensor, dict]:
        values = pixels(np.asarray(images)).to(args.device)
        values = augment(values, torch.arange(len(values))) if learning else values
        with lower_precision(args.device):
            with torch.set_grad_enabled(learning and clock.spent > HEADS_ALONE * clock.total):
                states = (states_of if learning else tower_hidden)(model, values)
                tokens = model.model.connector(states)
            return heads.loss(states, tokens, {k: v.to(args.device) for k, v in labels.items()})

    while rate := clock.tick():
        loss, right = loss_on(*next(batches), True)
        step(optimizer, loss, rate)
        steps += 1
        for key, value in {"loss": loss.item(), **right}.items():
            tally[key].append(value)
        if steps % args.every == 0:
            report(f"tower {steps} {clock.spent / 60:.1f} min", tally)
            save(args.out / "tower.pt", model, heads, optimizer, clock, steps)
    with torch.no_grad():
        for i in range(0, len(checks), 64):
            for key, value in loss_on(*frame_batch(unseen, checks[i : i + 64]), False)[1].items():
                tally[key].append(value)
    report("  held out", tally)
    save(args.out / "tower.pt", model, heads, optimizer, clock, steps)


def stream_loss(
    model: SmolVLMForConditionalGeneration, pool: Pool, pack: Pack
) -> tuple[torch.Tensor, list[tuple[str, str, bool]]]:
    """Mean loss over the learnt tokens, and of each question its type, its stream's layout and whether its answer would be given
    word by word."""
    device = next(model.parameters()).device
    features = pool.image_tokens(pack.frames).to(device)
    pack = pack.to(device)
    with lower_precision(device):
        logits = model.lm_head(packed_hidden(model, pack, features)).float()
    hits = (logits.argmax(-1) == pack.target).tolist()
    right = [(kind, layout, all(hits[begin:end])) for kind, layout, begin, end in pack.answers]
    return F.cross_entropy(logits, pack.target), right


def train_streams(args: argparse.Namespace, codec: Codec, deadline: float) -> None:
    """The decoder on streams, until so many seconds from the program's start."""
    model, saved = start(args, codec, "streams")
    pool = Pool(args.data, images=False)
    pool.load_tokens(model)
    text = list(model.model.text_model.parameters())
    optimizer, steps = optimizer_for([model.get_input_embeddings().weight], text), 0
    spent = 0.0
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        spent, steps = saved["spent"], saved["steps"]
    clock = Clock(spent + deadline - (time.time() - BEGAN), args.rate, spent)

    def make(rng: np.random.Generator) -> Callable[[], Pack]:
        batches = Batches(codec, pool, rng, args.recall, args.after)
        return lambda: batches.next(args.tokens, args.long)

    batches, tally = feed(args, make, 1), defaultdict(list)
    model.train()
    while rate := clock.tick():
        loss, right = stream_loss(model, pool, next(batches))
        step(optimizer, loss, rate)
        steps += 1
        tally["loss"].append(loss.item())
        for kind, layout, hit in right:
            for key in ("all", f"({layout})", kind):
                tally[key].append(hit)
        if steps % args.every == 0:
            report(f"streams {steps} {clock.spent / 60:.1f} min", tally)
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
    parser.add_argument("--tower", action="store_true", help="run: train the tower even without a GPU")
    parser.add_argument("--rate", type=float, default=1e-3, help="streams: highest learning rate")
    parser.add_argument("--tower-rate", type=float, default=1e-3, help="tower: highest learning rate")
    parser.add_argument("--batch", type=int, default=64, help="tower: frames a step")
    parser.add_argument("--tokens", type=int, default=4096, help="streams: tokens a step, of each process")
    parser.add_argument("--long", type=float, default=0.4, help="streams: share of full-length batches")
    parser.add_argument("--recall", type=float, default=0.6, help="streams: share with recalled frames")
    parser.add_argument("--after", type=float, default=0.3, help="share of these that come after the recent frames")
    for name, meaning in (
        ("kv-heads", "key-value heads"), ("layers", "decoder layers"), ("mlp", "width of the decoder's MLPs"),
        ("tower-layers", "layers of the tower"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=0, help=f"grow: {meaning}; 0 leaves them")
    parser.add_argument("--every", type=int, default=100, help="steps between reports and checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="per process; more than one crawls on a busy machine")
    parser.add_argument(
        "--workers", type=int, help="processes that make batches; by default none on a CPU, 12 with a GPU"
    )
    args = parser.parse_args()
    args.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.workers = args.workers if args.workers is not None else 12 * (args.device.type == "cuda")
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
        train_tower(args, codec, (seconds - time.time() + BEGAN) * (TOWER_SHARE if args.stage == "run" else 1.0))
    if args.stage == "tokens":
        for held_out in (False, True):
            token_files(start(args, codec, "streams")[0], shards(args.data, held_out)[share_of()[0] :: share_of()[1]])
    if args.stage in ("run", "streams"):
        train_streams(args, codec, seconds)
    if args.stage in ("run", "streams", "export"):
        export(args, codec)


if __name__ == "__main__":
    main()
