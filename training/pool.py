"""The rendered runs in memory, each also mirrored, with the dense labels and image tokens of their frames; random batches."""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import SmolVLMForConditionalGeneration

from dataset import Codec, Shown
from model import frame_features, pixels
from packed import Pack, pack
from runs import Run, load_shard
from streams import StreamBuilder
from tower import frame_labels

EVERY, HELD_OUT = 50, 2  # of as many shards so many are never trained on
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
    gain, shift = (x.to(values.device)[groups] for x in (gain, 0.05 * torch.randn(count, 1, 1, 1)))
    return (values * gain + shift + 0.01 * torch.randn_like(values)).clamp(-1, 1)


def share_of() -> tuple[int, int]:
    """This process's number and how many `torchrun` started; (0, 1) if alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def shards(folder: Path, held_out: bool) -> list[Path]:
    """The shards to train on, or those held out: by their numbers, so that no later run trains on them either."""
    paths = sorted(folder.glob("shard????.npz"))
    chosen = [path for path in paths if (int(path.stem[-4:]) % EVERY < HELD_OUT) == held_out]
    if not chosen:
        raise SystemExit(f"{folder}: no shard to {'check on' if held_out else 'train on'} among {len(paths)}")
    return chosen


class Pool:
    """Runs of a data folder, each also mirrored: this process's part of those to train on, or all of those held out. Without
    `images`, they have only the truth."""

    def __init__(self, folder: Path, held_out: bool = False, images: bool = True, most: int | None = None):
        self.paths = shards(folder, held_out)[:most]
        rank, world = share_of()
        self.paths = self.paths if held_out else self.paths[rank::world]
        loaded = [load_shard(path, images) for path in self.paths]
        self.runs = [run for runs in loaded for run in [*runs, *map(mirrored, runs)]]
        self.starts = np.cumsum([0] + [len(run.times) for run in self.runs])
        self.cache: dict[Shown, dict[str, np.ndarray]] = {}
        self.tokens = torch.empty(0)

    def load_tokens(self, model: SmolVLMForConditionalGeneration) -> None:
        """Takes the image tokens of all frames from their files, making those that are missing."""
        parts = [torch.from_numpy(np.load(path)) for path in token_files(model, self.paths)]
        self.tokens = torch.cat(parts).flatten(0, -3)

    def image_tokens(self, frames: list[Shown]) -> torch.Tensor:
        """Image tokens [frames, 9, hidden] of (run, frame) pairs."""
        return self.tokens[torch.tensor([self.starts[run] + frame for run, frame in frames])].float()

    def labels(self, frames: list[Shown]) -> dict[str, torch.Tensor]:
        """The labels of (run, frame) pairs, stacked."""
        for key in frames:
            if key not in self.cache:
                self.cache[key] = frame_labels(self.runs[key[0]], key[1])
        return {
            name: torch.from_numpy(np.stack([self.cache[key][name] for key in frames])).long()
            for name in self.cache[frames[0]]
        }


def token_files(model: SmolVLMForConditionalGeneration, paths: list[Path], batch: int = 64) -> list[Path]:
    """Files beside the shards with the image tokens of their frames, f16 [plain and mirrored frames, 9, hidden] run by run; one
    folder for each tower, by what is in it. Makes those that are missing."""
    parts = (model.model.vision_model, model.model.connector)
    content = b"".join(p.detach().cpu().half().numpy().tobytes() for part in parts for p in part.state_dict().values())
    device = next(model.parameters()).device
    files = []
    for path in paths:
        folder = path.parent / f"tokens-{hashlib.sha256(content).hexdigest()[:12]}"
        folder.mkdir(exist_ok=True)
        files.append(folder / f"{path.stem}.npy")
    missing = [(path, file) for path, file in zip(paths, files) if not file.exists()]
    for path, file in tqdm(missing, desc="image tokens", disable=not missing):
        runs = load_shard(path)
        images = np.concatenate([one.images for run_ in (runs, map(mirrored, runs)) for one in run_])
        with torch.no_grad():
            tokens = [
                frame_features(model, pixels(images[i : i + batch]).to(device)).half().cpu()
                for i in range(0, len(images), batch)
            ]
        partial = file.with_suffix(".part.npy")
        np.save(partial, torch.cat(tokens).numpy())
        partial.rename(file)
    return files


class Batches:
    """Random batches of streams, of about equal length within a batch."""

    def __init__(self, codec: Codec, pool: Pool, rng: np.random.Generator, recall: float, after: float):
        self.builder = StreamBuilder(codec, pool.runs, rng, recall, after)
        self.rng = rng

    def next(self, tokens: int, long: float) -> Pack:
        """Streams of together about `tokens` tokens; `long` is the share of full-length batches."""
        length = LONG if self.rng.random() < long else int(self.rng.choice(LENGTHS))
        streams, room = [], tokens
        while room > 0:
            stream = self.builder.build(length)
            if stream.answers:
                streams.append(stream)
                room -= len(stream.ids)
        return pack(streams)
