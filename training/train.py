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
from model import frame_features, new_model, pixels, save_checkpoint, stream_hidden, tower_hidden
from questions import TYPES, VISIBLE
from runs import COLORS, SHAPES, Run, load_shard
from tower import Heads, frame_labels


class Pool:
    """All runs of a data folder, each also mirrored, with the dense labels of their frames."""

    def __init__(self, folder: Path):
        runs = [run for path in sorted(folder.glob("shard????.npz")) for run in load_shard(path)]
        self.runs = runs + [mirrored(run) for run in runs]
        self.cache: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        self.states: dict[tuple[int, int], torch.Tensor] = {}

    def tower_states(self, model: torch.nn.Module, frames: list[tuple[int, int]]) -> torch.Tensor:
        """The frozen tower's patch states [frames, 36, hidden] of (run, frame) pairs, each computed once."""
        missing = sorted({key for key in frames if key not in self.states})
        if missing:
            images = np.stack([self.runs[run].images[frame] for run, frame in missing])
            with torch.no_grad():
                self.states.update(zip(missing, tower_hidden(model, pixels(images)).half()))
        return torch.stack([self.states[key] for key in frames]).float()

    def labels(self, frames: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """The labels of (run, frame) pairs, stacked."""
        for key in frames:
            if key not in self.cache:
                self.cache[key] = frame_labels(self.runs[key[0]], key[1])
        return {
            name: torch.from_numpy(np.stack([self.cache[key][name] for key in frames]))
            for name in self.cache[frames[0]]
        }


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
    model, pool = new_model(codec, args.seed), Pool(args.data)
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
    tally: dict[str, list[float]] = {}
    while rate := agreed(clock.tick()):
        chosen = []
        while len(chosen) < args.batch:
            index = int(rng.integers(len(pool.runs)))
            run = pool.runs[index]
            frame = int(rng.integers(len(run.times)))
            if run.cells[frame].sum() >= VISIBLE or rng.random() < 0.1:
                chosen.append((index, frame))
        images = np.stack([pool.runs[index].images[frame] for index, frame in chosen])
        values, batch = augment(pixels(images), torch.arange(args.batch)), pool.labels(chosen)
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

    def __init__(self, codec: Codec, pool: Pool, rng: np.random.Generator):
        self.builder, self.pool, self.rng = StreamBuilder(codec, rng), pool, rng
        self.own = np.arange(rank(), len(pool.runs), dist.get_world_size() if dist.is_initialized() else 1)

    def next(self, tokens: int, long: float) -> tuple[list[Stream], list[int]]:
        """Streams of together about `tokens` tokens, and their runs; `long` is the share of full-length batches."""
        length = 540 if self.rng.random() < long else int(self.rng.choice([80, 120, 180]))
        streams, runs = [], []
        while len(streams) < max(1, tokens // length):
            run = int(self.rng.choice(self.own))
            stream = self.builder.build(self.pool.runs[run], length, TYPES)
            if any(stream.learn):
                streams.append(stream)
                runs.append(run)
        return streams, runs


def stream_loss(
    model: torch.nn.Module, heads: Heads, pool: Pool, streams: list[Stream], runs: list[int], frozen: bool
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean loss over the learnt tokens plus half the heads' on the frames; its parts and the share of tokens right."""
    rows = np.cumsum([0] + [len(s.frames) for s in streams]).tolist()
    shown = [(run, frame) for s, run in zip(streams, runs) for frame in s.frames]
    if frozen:
        features = model.model.connector(pool.tower_states(model, shown))
    else:
        images = np.concatenate([pool.runs[run].images[s.frames] for s, run in zip(streams, runs)])
        groups = torch.from_numpy(np.repeat(np.arange(len(streams)), [len(s.frames) for s in streams]))
        features = frame_features(model, augment(pixels(images), groups))
    labels = pool.labels(shown)
    dense = heads.loss(features, labels)[0] if not frozen else torch.zeros(())
    named = naming_loss(model, streams[0].codec, features, labels)
    hidden = stream_hidden(model, streams, features, rows)
    learn = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    targets = []
    for i, stream in enumerate(streams):
        learn[i, : len(stream.ids) - 1] = torch.tensor(stream.learn[1:])
        targets += [token for token, wanted in zip(stream.ids, stream.learn) if wanted]
    logits, target = model.lm_head(hidden[learn]), torch.tensor(targets)
    loss = F.cross_entropy(logits, target)
    words = target != streams[0].codec.end
    right = (logits.argmax(-1) == target)[words].float().mean()
    parts = {"answers": loss.item(), "right": right.item(), "dense": dense.item(), "named": named.item()}
    return loss + 0.5 * dense + 0.3 * named, parts


def naming_loss(
    model: torch.nn.Module, codec: Codec, features: torch.Tensor, labels: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Loss of reading the words for what fills a cell straight off its image token with the output embedding."""
    logits = model.lm_head(model.model.text_model.norm(features))
    loss = features.new_zeros(())
    for key, words in (("cell_color", COLORS), ("cell_shape", SHAPES)):
        held = (labels[key] >= 0) & (labels[key] < len(words))
        if held.any():
            tokens = [codec.text(f" {word}")[0] for word in words]
            loss = loss + F.cross_entropy(logits[held][:, tokens], labels[key][held])
    return loss


def train_streams(args: argparse.Namespace, codec: Codec) -> None:
    """Stage 2: the whole model on streams, the tower still helped by the heads; short streams first."""
    model, pool = new_model(codec, args.seed), Pool(args.data)
    heads = Heads(model.config.text_config.hidden_size)
    batches = Batches(codec, pool, np.random.default_rng([args.seed + 1, rank()]))
    tower = [*model.model.vision_model.parameters(), *model.model.connector.parameters()]
    text = list(model.model.text_model.parameters())
    optimizer = optimizer_for((text, 1.0), (tower, 0.5), (list(heads.parameters()), 0.5))
    path, clock, steps = args.work / "streams.pt", Clock(args.minutes, args.rate), 0
    resume = args.resume and path.exists()
    saved = torch.load(path if resume else args.init or args.work / "tower.pt", weights_only=False)
    model.load_state_dict(saved["model"])
    heads.load_state_dict(saved["heads"])
    if resume:
        optimizer.load_state_dict(saved["optimizer"])
        clock.spent, steps = saved["spent"], saved["steps"]
    tally: list[dict[str, float]] = []
    while rate := agreed(clock.tick()):
        streams, runs = batches.next(args.tokens, 0.05 if clock.spent < 0.6 * clock.total else 0.5)
        loss, parts = stream_loss(model, heads, pool, streams, runs, args.frozen)
        step(optimizer, loss, rate)
        steps += 1
        tally.append(parts)
        if steps % 50 == 0 and not rank():
            words = " ".join(f"{key} {np.mean([entry[key] for entry in tally]):.3f}" for key in parts)
            print(f"streams {steps} {clock.spent / 60:.1f} min {words}", flush=True)
            tally = []
        if steps % 200 == 0:
            save(path, model, optimizer, clock, steps, heads=heads.state_dict())
    save(path, model, optimizer, clock, steps, heads=heads.state_dict())
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
        model.load_state_dict(torch.load(args.work / "streams.pt", weights_only=False)["model"])
        save_checkpoint(model, args.out)


if __name__ == "__main__":
    main()
