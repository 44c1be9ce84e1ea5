"""Trains the demo model in two stages of fixed wall-clock time: `tower` on frames, then `streams` end to end."""

import argparse
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F

from dataset import Codec, Stream, StreamBuilder
from model import frame_features, new_model, pixels, save_checkpoint, stream_hidden
from questions import TYPES, VISIBLE
from runs import Run, load_shard
from tower import Heads, frame_labels


def load_runs(folder: Path) -> list[Run]:
    """All runs of a data folder."""
    return [run for path in sorted(folder.glob("shard????.npz")) for run in load_shard(path)]


def mirrored(run: Run) -> Run:
    """The run as a robot in the mirrored room would see it; every left is a right."""
    cells = run.cells.reshape(*run.cells.shape[:2], 3, 3)[..., ::-1].reshape(run.cells.shape)
    return Run(
        run.images[:, :, ::-1], run.times, run.shape, run.color, cells, 1 - run.centre,
        run.distance, run.ahead, -run.lateral, run.wall,
    )  # fmt: skip


def augment(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Changes brightness, contrast and tint of frames [frames, 3, 96, 96], alike within a group; adds some noise."""
    count = int(groups.max()) + 1
    gain = (1 + 0.15 * torch.randn(count, 1, 1, 1)).clamp(0.6, 1.4) * (1 + 0.04 * torch.randn(count, 3, 1, 1))
    values = values * gain[groups] + (0.1 * torch.randn(count, 1, 1, 1))[groups]
    return (values + 0.02 * torch.randn_like(values)).clamp(-1, 1)


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
    return dist.get_rank() if dist.is_initialized() else 0


def agreed(rate: float) -> float:
    """The first process's learning rate, so that all stop at the same step."""
    value = torch.tensor(rate)
    if dist.is_initialized():
        dist.broadcast(value, 0)
    return value.item()


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the processes."""
    if not dist.is_initialized():
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters])):
        if parameter.grad is not None:
            parameter.grad.copy_(grad.view_as(parameter))


def step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    """One optimiser step with clipped gradients."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    optimizer.zero_grad()
    loss.backward()
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    average_gradients(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def optimizer_for(*groups: tuple[list[torch.nn.Parameter], float]) -> torch.optim.AdamW:
    """AdamW over (parameters, factor on the learning rate), weight decay on matrices only."""
    options = []
    for parameters, scale in groups:
        for decay in (True, False):
            chosen = [p for p in parameters if (p.dim() > 1) == decay]
            options.append({"params": chosen, "scale": scale, "weight_decay": 0.05 if decay else 0.0})
    return torch.optim.AdamW(options, lr=1e-3, betas=(0.9, 0.98))


def train_tower(args: argparse.Namespace, codec: Codec) -> None:
    """Stage 1: tower, connector and throw-away heads on single frames."""
    rng = np.random.default_rng([args.seed, rank()])
    model, runs = new_model(codec, args.seed), load_runs(args.data)
    heads = Heads(model.config.text_config.hidden_size)
    parameters = [*model.model.vision_model.parameters(), *model.model.connector.parameters()]
    optimizer = optimizer_for((parameters, 1.0), (list(heads.parameters()), 1.0))
    path, clock, steps = args.work / "tower.pt", Clock(args.minutes, args.rate), 0
    if path.exists():
        saved = torch.load(path, weights_only=False)
        model.load_state_dict(saved["model"])
        if args.resume:
            heads.load_state_dict(saved["heads"])
            optimizer.load_state_dict(saved["optimizer"])
            clock.spent, steps = saved["spent"], saved["steps"]
    cache: dict[tuple[int, int, bool], dict[str, np.ndarray]] = {}
    tally: dict[str, list[float]] = {}
    while rate := agreed(clock.tick()):
        images, labels = [], []
        for _ in range(args.batch):
            index, flip = int(rng.integers(len(runs))), bool(rng.random() < 0.5)
            run = runs[index]
            frame = int(rng.integers(len(run.times)))
            while rng.random() < 0.85 and run.cells[frame].sum() < VISIBLE:
                frame = int(rng.integers(len(run.times)))
            image = run.images[frame][:, ::-1] if flip else run.images[frame]
            if (index, frame, flip) not in cache:
                cache[index, frame, flip] = frame_labels(mirrored(run) if flip else run, frame)
            images.append(image)
            labels.append(cache[index, frame, flip])
        values = augment(pixels(np.stack(images)), torch.arange(args.batch))
        batch = {key: torch.from_numpy(np.stack([label[key] for label in labels])) for key in labels[0]}
        loss, right = heads.loss(frame_features(model, values), batch)
        step(optimizer, loss, rate)
        steps += 1
        for key, value in {"loss": loss.item(), **right}.items():
            tally.setdefault(key, []).append(value)
        if steps % 50 == 0 and not rank():
            words = " ".join(f"{key} {np.nanmean(value):.3f}" for key, value in tally.items())
            print(f"tower {steps} {clock.spent / 60:.1f} min {words}", flush=True)
            tally = {}
        if steps % 500 == 0:
            save(path, model, optimizer, clock, steps, heads=heads.state_dict())
            runs = load_runs(args.data) if args.reload else runs
    save(path, model, optimizer, clock, steps, heads=heads.state_dict())


def save(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, clock: Clock, steps: int, **more: object
) -> None:
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


class Batches:
    """Random batches of streams, of about equal length within a batch."""

    def __init__(self, codec: Codec, data: Path, rng: np.random.Generator):
        self.builder, self.rng, self.data = StreamBuilder(codec, rng), rng, data
        self.reload()

    def reload(self) -> None:
        """Reads the data folder again, in which more runs may lie by now."""
        self.runs = load_runs(self.data)

    def next(self, tokens: int, long: float) -> tuple[list[Stream], list[Run]]:
        """Streams of together about `tokens` tokens, and their runs; `long` is the share of full-length batches."""
        length = 540 if self.rng.random() < long else int(self.rng.choice([96, 160, 256]))
        streams, used = [], []
        while len(streams) < max(1, tokens // length):
            run = self.runs[self.rng.integers(len(self.runs))]
            run = mirrored(run) if self.rng.random() < 0.5 else run
            stream = self.builder.build(run, length, TYPES)
            if any(stream.learn):
                streams.append(stream)
                used.append(run)
        return streams, used


def stream_loss(
    model: torch.nn.Module, streams: list[Stream], runs: list[Run], frozen: bool
) -> tuple[torch.Tensor, float]:
    """Mean loss over the learnt tokens, and the share of them predicted right."""
    rows = np.cumsum([0] + [len(s.frames) for s in streams]).tolist()
    images = np.concatenate([run.images[s.frames] for s, run in zip(streams, runs)])
    groups = torch.from_numpy(np.repeat(np.arange(len(streams)), [len(s.frames) for s in streams]))
    with torch.set_grad_enabled(not frozen):
        features = frame_features(model, augment(pixels(images), groups))
    hidden = stream_hidden(model, streams, features, rows)
    learn = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    targets = []
    for i, stream in enumerate(streams):
        learn[i, : len(stream.ids) - 1] = torch.tensor(stream.learn[1:])
        targets += [token for token, wanted in zip(stream.ids, stream.learn) if wanted]
    logits, target = model.lm_head(hidden[learn]), torch.tensor(targets)
    return F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean().item()


def train_streams(args: argparse.Namespace, codec: Codec) -> None:
    """Stage 2: the whole model on streams, first short ones with the tower frozen, then all."""
    model, batches = (
        new_model(codec, args.seed),
        Batches(codec, args.data, np.random.default_rng([args.seed + 1, rank()])),
    )
    tower = [*model.model.vision_model.parameters(), *model.model.connector.parameters()]
    text = list(model.model.text_model.parameters())
    optimizer = optimizer_for((text, 1.0), (tower, 0.3))
    path, clock, steps = args.work / "streams.pt", Clock(args.minutes, args.rate), 0
    if args.resume and path.exists():
        saved = torch.load(path, weights_only=False)
        model.load_state_dict(saved["model"]), optimizer.load_state_dict(saved["optimizer"])
        clock.spent, steps = saved["spent"], saved["steps"]
    else:
        model.load_state_dict(torch.load(args.init or args.work / "tower.pt", weights_only=False)["model"])
    tally: list[tuple[float, float]] = []
    while rate := agreed(clock.tick()):
        share = clock.spent / clock.total
        streams, runs = batches.next(args.tokens, 0.15 if share < 0.3 else 0.5)
        loss, right = stream_loss(model, streams, runs, frozen=share < args.frozen)
        step(optimizer, loss, rate)
        steps += 1
        tally.append((loss.item(), right))
        if steps % 50 == 0 and not rank():
            print(
                f"streams {steps} {clock.spent / 60:.1f} min loss %.3f right %.3f" % tuple(np.mean(tally, 0)),
                flush=True,
            )
            tally = []
        if steps % 400 == 0:
            save(path, model, optimizer, clock, steps)
            if args.reload:
                batches.reload()
    save(path, model, optimizer, clock, steps)
    if not rank():
        save_checkpoint(model, args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["tower", "streams", "export"])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, default=Path("runs/demo"))
    parser.add_argument("--out", type=Path, default=Path("../models/demo"))
    parser.add_argument(
        "--init", type=Path, help="streams: start from this training checkpoint instead of the run's tower.pt"
    )
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=64, help="tower: frames a step")
    parser.add_argument("--tokens", type=int, default=4096, help="streams: tokens a step")
    parser.add_argument("--frozen", type=float, default=0.3, help="streams: share of the time with the tower frozen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="per process; more than one crawls on a busy machine")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--reload", action="store_true", help="look for new shards at every checkpoint")
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
        model.load_state_dict(torch.load(args.work / "streams.pt", weights_only=False)["model"])
        save_checkpoint(model, args.out)


if __name__ == "__main__":
    main()
