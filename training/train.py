"""Trains the demo model in two stages of fixed wall-clock time: `tower` on frames, then `streams` end to end."""

import argparse
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F
from transformers import SmolVLMForConditionalGeneration

from dataset import Codec, Stream
from model import config, new_model, pixels, save_checkpoint, stream_hidden, tower_hidden
from optimize import Optimizers, optimizer_for, step
from pool import Batches, Pool, augment, share_of
from questions import TYPES, VISIBLE
from tower import Heads

Tower = Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]


class Clock:
    """A stage's wall-clock budget: learning rate by the share of it that is spent, over restarts."""

    def __init__(self, minutes: float, rate: float, spent: float = 0.0):
        self.total, self.rate, self.spent, self.last = minutes * 60, rate, spent, time.time()

    def tick(self) -> float:
        """Counts the time since the last call; returns the learning rate to use, or 0 when the budget is spent."""
        now = time.time()
        self.spent, self.last = self.spent + now - self.last, now
        share = self.spent / self.total
        return (
            0.0
            if share >= 1
            else self.rate * min(1.0, share / 0.02 + 0.05) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        )


def rank() -> int:
    """This process's number among those that `torchrun` started; 0 if alone."""
    return share_of()[0]


def agreed(rate: float) -> float:
    """The first process's learning rate, so that all stop at the same step."""
    value = torch.tensor(rate)
    if dist.is_initialized():
        dist.broadcast(value, 0)
    return value.item()


def tables(model: torch.nn.Module, heads: Heads) -> list[torch.nn.Parameter]:
    """Matrices whose rows are looked up or read out one by one."""
    vision = model.model.vision_model.embeddings.position_embedding.weight
    return [model.get_input_embeddings().weight, vision, *heads.parameters()]


def some_frames(pool: Pool, rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Random frames as (run, frame) pairs, few of them with nothing in view."""
    chosen = []
    while len(chosen) < count:
        index = int(rng.integers(len(pool.runs)))
        frame = int(rng.integers(len(pool.runs[index].times)))
        if pool.runs[index].cells[frame].sum() >= VISIBLE or rng.random() < 0.1:
            chosen.append((index, frame))
    return chosen


def tower_loss(
    model: torch.nn.Module, heads: Heads, pool: Pool, frames: list[tuple[int, int]], augmented: bool, states_of: Tower
) -> tuple[torch.Tensor, dict[str, float]]:
    """The heads' loss on (run, frame) pairs, and the shares right."""
    values = pixels(np.stack([pool.runs[run].images[frame] for run, frame in frames]))
    values = augment(values, torch.arange(len(frames))) if augmented else values
    states = states_of(model, values)
    return heads.loss(states, model.model.connector(states), pool.labels(frames))


def train_tower(args: argparse.Namespace, codec: Codec) -> None:
    """Stage 1: tower, connector and throw-away heads on single frames."""
    rng = np.random.default_rng([args.seed, rank()])
    model, heads = new_model(codec, args.seed), new_heads(args, codec)
    pool, unseen = Pool(args.data), Pool(args.data, held_out=True)
    states_of = torch.compile(tower_hidden, dynamic=False)  # a third faster
    checks = some_frames(unseen, np.random.default_rng(0), 1024)
    parameters = [*model.model.vision_model.parameters(), *model.model.connector.parameters()]
    optimizer = optimizer_for(tables(model, heads), (parameters, 1.0), (list(heads.parameters()), 1.0))
    path, clock, steps = args.work / "tower.pt", Clock(args.minutes, args.rate), 0
    if path.exists() and args.resume:
        clock.spent, steps = restore(path, model, heads, optimizer)
    elif args.init:
        restore(args.init, model, heads)
    tally: dict[str, list[float]] = defaultdict(list)
    while rate := agreed(clock.tick()):
        with torch.autocast("cpu", torch.bfloat16):
            loss, right = tower_loss(model, heads, pool, some_frames(pool, rng, args.batch), True, states_of)
        step(optimizer, loss, rate)
        steps += 1
        for key, value in {"loss": loss.item(), **right}.items():
            tally[key].append(value)
        if steps % 100 == 0:
            report(f"tower {steps} {clock.spent / 60:.1f} min", tally)
        if steps % 500 == 0:
            save(path, model, optimizer, clock, steps, heads=heads.state_dict())
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                for i in range(0, len(checks), 64):
                    _, right = tower_loss(model, heads, unseen, checks[i : i + 64], False, tower_hidden)
                    for key, value in right.items():
                        tally[key].append(value)
            report("  held out", tally)
    save(path, model, optimizer, clock, steps, heads=heads.state_dict())


def new_heads(args: argparse.Namespace, codec: Codec) -> Heads:
    """Heads of the model's widths with random weights."""
    settings = config(codec)
    torch.manual_seed(args.seed)
    return Heads(settings.vision_config.hidden_size, settings.text_config.hidden_size)


def report(title: str, tally: dict[str, list[float]]) -> None:
    """Prints the means so far, and forgets them."""
    if not rank():
        print(title, " ".join(f"{key} {np.nanmean(value):.3f}" for key, value in tally.items()), flush=True)
    tally.clear()


def restore(
    path: Path,
    model: torch.nn.Module,
    heads: Heads,
    optimizer: Optimizers | None = None,
    tower_only: bool = False,
) -> tuple[float, int]:
    """Loads a training checkpoint, or its tower and connector; returns the seconds and steps spent. A folder is a published
    checkpoint, which has no heads."""
    if path.is_dir():
        model.load_state_dict(SmolVLMForConditionalGeneration.from_pretrained(path, dtype=torch.float32).state_dict())
        return 0.0, 0
    saved = torch.load(path, weights_only=True)
    state = saved["model"]
    if tower_only:
        state = {name: value for name, value in state.items() if "text_model" not in name and "lm_head" not in name}
    model.load_state_dict(state, strict=not tower_only)
    heads.load_state_dict(saved["heads"])
    if optimizer is not None:
        optimizer.load_state_dict(saved["optimizer"])
    return saved["spent"], saved["steps"]


def save(path: Path, model: torch.nn.Module, optimizer: Optimizers, clock: Clock, steps: int, **more: object) -> None:
    """Writes a training checkpoint; only the first process does."""
    if rank():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "spent": clock.spent,
        "steps": steps,
        **more,
    }
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def stream_loss(
    model: torch.nn.Module, heads: Heads, pool: Pool, streams: list[Stream], runs: list[int], frozen: bool
) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """Mean loss over the learnt tokens plus, with a tower that learns, the heads' on the frames; per question type
    whether each answer would be given word by word."""
    rows = np.cumsum([0] + [len(s.frames) for s in streams]).tolist()
    shown = [(run, frame) for s, run in zip(streams, runs) for frame in s.frames]
    extra = torch.zeros(())
    if frozen:
        features = pool.frozen_tokens(model, shown)
    else:
        images = np.concatenate([pool.runs[run].images[s.frames] for s, run in zip(streams, runs)])
        groups = torch.from_numpy(np.repeat(np.arange(len(streams)), [len(s.frames) for s in streams]))
        values = augment(pixels(images), groups) if model.training else pixels(images)
        states = tower_hidden(model, values)
        features, labels = model.model.connector(states), pool.labels(shown)
        extra = 0.2 * heads.loss(states, features, labels)[0]
    hidden = stream_hidden(model, streams, features, rows)
    learn = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    targets = []
    for i, stream in enumerate(streams):
        learn[i, : len(stream.ids) - 1] = torch.tensor(stream.learn[1:])
        targets += [token for token, wanted in zip(stream.ids, stream.learn) if wanted]
    logits, target = model.lm_head(hidden[learn]).float(), torch.tensor(targets)
    loss = F.cross_entropy(logits, target)
    hits, right, at = (logits.argmax(-1) == target).tolist(), defaultdict(list), 0
    for stream in streams:
        for kind, start, end in stream.answers:
            right[kind].append(float(all(hits[at : at + end - start])))
            at += end - start
    return loss + extra, {"loss": [loss.item()], **right}


def train_streams(args: argparse.Namespace, codec: Codec) -> None:
    """Stage 2: the decoder, with --frozen alone and else with the tower, on streams; short streams first."""
    model, heads = new_model(codec, args.seed), new_heads(args, codec)
    pool, unseen = Pool(args.data), Pool(args.data, held_out=True)
    batches = Batches(codec, pool, np.random.default_rng([args.seed + 1, rank()]))
    ahead = Batches(codec, unseen, np.random.default_rng(7))
    checks = [ahead.next(4096, long) for long in (0, 0, 0, 0, 1, 1, 1, 1)]
    tower = [*model.model.vision_model.parameters(), *model.model.connector.parameters()]
    text = list(model.model.text_model.parameters())
    optimizer = optimizer_for(
        tables(model, heads), (text, 1.0), *([] if args.frozen else [(tower, 0.5), (list(heads.parameters()), 0.5)])
    )
    path, clock, steps = args.work / "streams.pt", Clock(args.minutes, args.rate), 0
    if args.resume and path.exists():
        clock.spent, steps = restore(path, model, heads, optimizer)
    elif args.init:
        restore(args.init, model, heads)
    else:
        restore(args.work / "tower.pt", model, heads, tower_only=True)
    tally: dict[str, list[float]] = defaultdict(list)

    def count(right: dict[str, list[float]]) -> None:
        for key, values in right.items():
            tally[key] += values
            if key in TYPES:
                tally["all"] += values

    while rate := agreed(clock.tick()):
        long = args.long if clock.spent > 0.5 * clock.total else 0.1 * args.long
        with torch.autocast("cpu", torch.bfloat16):
            loss, right = stream_loss(model, heads, pool, *batches.next(args.tokens, long), args.frozen)
        step(optimizer, loss, rate)
        steps += 1
        count(right)
        if steps % 100 == 0:
            report(f"streams {steps} {clock.spent / 60:.1f} min", tally)
        if steps % 500 == 0:
            save(path, model, optimizer, clock, steps, heads=heads.state_dict())
            model.eval()
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                for streams, runs in checks:
                    count(stream_loss(model, heads, unseen, streams, runs, args.frozen)[1])
            model.train()
            report("  held out", tally)
    save(path, model, optimizer, clock, steps, heads=heads.state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["tower", "streams", "export"])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, default=Path("runs/demo"))
    parser.add_argument("--out", type=Path, default=Path("../models/demo"))
    parser.add_argument(
        "--init",
        type=Path,
        help="start from this training checkpoint, or a folder as published; streams: instead of the run's tower.pt",
    )
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=64, help="tower: frames a step")
    parser.add_argument(
        "--long", type=float, default=0.5, help="streams: share of full-length batches in the second half"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="streams: tokens a step")
    parser.add_argument("--frozen", action="store_true", help="streams: keep the tower as it is, which is faster")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="per process; more than one crawls on a busy machine")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    codec = Codec(args.out)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    torch.set_num_threads(args.threads)
    torch.manual_seed(rank())
    if args.stage == "tower":
        train_tower(args, codec)
    elif args.stage == "streams":
        train_streams(args, codec)
    else:
        model = new_model(codec, args.seed)
        model.load_state_dict(torch.load(args.work / "streams.pt", weights_only=True)["model"])
        save_checkpoint(model, args.out)


if __name__ == "__main__":
    main()
