"""The rendered runs in memory, each also mirrored, with the dense labels of their frames; random batches of streams."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from dataset import TOKENS_PER_FRAME, Codec, Stream, StreamBuilder
from model import frame_features, pixels
from runs import Run, load_shard
from tower import frame_labels

HELD_OUT = 2  # shards at the end that are never trained on
LENGTHS = (120, 180, 180, 260, 400)  # tokens of shorter streams
LONG = 540


def mirrored(run: Run) -> Run:
    """The run as a robot in the mirrored room would see it; every left is a right."""
    cells = run.cells.reshape(*run.cells.shape[:2], 3, 3)[..., ::-1].reshape(run.cells.shape)
    return Run(
        run.images[:, :, ::-1], run.times, run.shape, run.color, cells, run.patches[..., ::-1], run.within, 1 - run.centre,
        run.distance, run.ahead, -run.lateral, run.wall,
    )  # fmt: skip


def augment(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Changes brightness, contrast and tint of frames [frames, 3, 96, 96], alike within a group; adds some noise."""
    count = int(groups.max()) + 1
    gain = (1 + 0.1 * torch.randn(count, 1, 1, 1)).clamp(0.6, 1.4) * (1 + 0.03 * torch.randn(count, 3, 1, 1))
    values = values * gain[groups] + (0.05 * torch.randn(count, 1, 1, 1))[groups]
    return (values + 0.01 * torch.randn_like(values)).clamp(-1, 1)


def share_of() -> tuple[int, int]:
    """This process's number and how many `torchrun` started; (0, 1) if alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Pool:
    """This process's part of a data folder's runs, or all of those held out, each also mirrored."""

    def __init__(self, folder: Path, held_out: bool = False):
        paths = sorted(folder.glob("shard????.npz"))
        rank, world = share_of()
        chosen = paths[-HELD_OUT:] if held_out else paths[:-HELD_OUT][rank::world]
        runs = [run for path in chosen for run in load_shard(path)]
        self.runs = runs + [mirrored(run) for run in runs]
        self.starts = np.cumsum([0] + [len(run.times) for run in self.runs])
        self.cache: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        self.tokens: torch.Tensor | None = None

    def frozen_tokens(self, model: torch.nn.Module, frames: list[tuple[int, int]]) -> torch.Tensor:
        """Image tokens [frames, 9, hidden] of (run, frame) pairs from a model whose tower no longer changes; each is
        computed once."""
        if self.tokens is None:
            hidden = model.config.text_config.hidden_size
            self.tokens = torch.empty(int(self.starts[-1]), TOKENS_PER_FRAME, hidden, dtype=torch.half)
            self.done = np.zeros(int(self.starts[-1]), bool)
        rows = np.array([self.starts[run] + frame for run, frame in frames])
        missing = np.unique(rows[~self.done[rows]])
        if len(missing):
            found = np.searchsorted(self.starts, missing, side="right") - 1
            images = np.stack([self.runs[run].images[row - self.starts[run]] for run, row in zip(found, missing)])
            with torch.no_grad():
                self.tokens[missing] = frame_features(model, pixels(images)).half()
            self.done[missing] = True
        return self.tokens[rows].float()

    def labels(self, frames: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """The labels of (run, frame) pairs, stacked."""
        for key in frames:
            if key not in self.cache:
                self.cache[key] = frame_labels(self.runs[key[0]], key[1])
        return {
            name: torch.from_numpy(np.stack([self.cache[key][name] for key in frames])).long()
            for name in self.cache[frames[0]]
        }


class Batches:
    """Random batches of streams, of about equal length within a batch."""

    def __init__(self, codec: Codec, pool: Pool, rng: np.random.Generator):
        self.builder, self.pool, self.rng = StreamBuilder(codec, rng), pool, rng

    def next(self, tokens: int, long: float) -> tuple[list[Stream], list[int]]:
        """Streams of together about `tokens` tokens, and their runs; `long` is the share of full-length batches."""
        length = LONG if self.rng.random() < long else int(self.rng.choice(LENGTHS))
        streams, runs = [], []
        while len(streams) < max(1, tokens // length):
            run = int(self.rng.integers(len(self.pool.runs)))
            stream = self.builder.build(self.pool.runs[run], length)
            if stream.answers:
                streams.append(stream)
                runs.append(run)
        return streams, runs
