"""The rendered runs in memory, each also mirrored, with their frames' images, dense labels and image tokens; random batches."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from transformers import SmolVLMForConditionalGeneration

from cameras import CameraBuilder
from dataset import TOKENS_PER_FRAME, Codec
from labels import label_file
from model import frame_features, pixels
from packed import Pack, pack
from questions import visibility
from recollection import KINDS
from runs import COLORS, Run, load_shard, mirrored
from streams import StreamBuilder

EVERY, HELD_OUT = 50, 2  # of as many shards so many are never trained on
LENGTHS = (120, 180, 180, 260, 400)  # tokens of shorter streams
LONG = (540, 640)
CAMERAS = 0.35  # share of the streams that are of several cameras
READERS = 8
CROWDS = (0.1, 0.35, 0.7, 1.0)  # how likely a frame is taken with no, one, two, more objects in view


def augment(values: torch.Tensor) -> torch.Tensor:
    """Changes brightness, contrast and tint of frames [frames, 3, 96, 96]; adds some noise."""
    gain, tint, shift = (torch.randn(len(values), n, 1, 1, device=values.device) for n in (1, 3, 1))
    values = values * ((1 + 0.1 * gain).clamp(0.6, 1.4) * (1 + 0.03 * tint)) + 0.05 * shift
    return (values + 0.01 * torch.randn_like(values)).clamp(-1, 1)


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


def kind_states(run: Run) -> np.ndarray:
    """Of each kind of object in each frame 1 (seen), -1 (not seen), 0 (not certain), int8 [frames, kinds]."""
    states = np.full((len(run.times), KINDS), -1, np.int8)
    states[:, run.shape.astype(int) * len(COLORS) + run.color] = visibility(run, slice(None))
    return states


class Pool:
    """Runs of a data folder, each also mirrored, without their images: this process's part of those to train on, or all of those
    held out, at most so many shards. Frames are numbered through all runs, from `starts`."""

    def __init__(self, folder: Path, held_out: bool = False, most: int | None = None):
        paths = shards(folder, held_out)[:most]
        rank, world = share_of()
        self.paths = paths if held_out else paths[rank::world]
        self.runs: list[Run] = []
        for path in self.paths:
            runs = load_shard(path, images=False)
            self.runs += [*runs, *map(mirrored, runs)]
        self.starts = np.cumsum([0] + [len(run.times) for run in self.runs])

    def states(self) -> torch.Tensor:
        """`kind_states` of all frames."""
        return torch.from_numpy(np.concatenate([kind_states(run) for run in self.runs]))

    def name(self) -> str:
        """Tells it from pools of other shards."""
        return hashlib.sha256(" ".join(path.stem for path in self.paths).encode()).hexdigest()[:12]


class Frames:
    """The images and labels of a pool's frames on a device."""

    def __init__(self, pool: Pool, device: torch.device, labels: bool = True):
        with ThreadPoolExecutor(READERS) as readers:
            read = list(readers.map(lambda path: np.load(path)["images"], pool.paths))
            told = list(readers.map(label_file, pool.paths)) if labels else []
        counts = [len(images) for images in read]
        self.images = torch.empty(sum(counts), *read[0].shape[1:], dtype=torch.uint8, device=device)
        at, rows = 0, []
        for images in read:
            self.images[at : at + len(images)] = torch.from_numpy(images)
            row = torch.arange(at, at + len(images))
            rows += [row, row]
            at += len(images)
        self.image = torch.cat(rows).to(device)
        self.mirrored = torch.cat([torch.full((n,), flip) for n in counts for flip in (False, True)]).to(device)
        if labels:
            self.labels = torch.from_numpy(np.concatenate(told)).to(device)
            self.weights = torch.tensor(CROWDS)[self.labels[:, -1].cpu().long().clamp(max=len(CROWDS) - 1)].to(device)

    def values(self, rows: torch.Tensor) -> torch.Tensor:
        """The tower's input [frames, 3, 96, 96] of frames by their numbers."""
        images = pixels(self.images[self.image[rows]])
        return torch.where(self.mirrored[rows][:, None, None, None], images.flip(-1), images)

    def some(self, count: int) -> torch.Tensor:
        """Random frames, the more of them the more objects are in view."""
        return torch.multinomial(self.weights, count, replacement=True)

    @torch.no_grad()
    def tokens(self, model: SmolVLMForConditionalGeneration, batch: int, augmented: bool = False) -> torch.Tensor:
        """Image tokens of all frames, f16 [frames * 9, hidden]."""
        width, count = model.config.text_config.hidden_size, len(self.image)
        out = torch.empty(count, TOKENS_PER_FRAME, width, dtype=torch.half, device=self.images.device)
        for i in range(0, count, batch):
            values = self.values(torch.arange(i, min(i + batch, count), device=out.device))
            out[i : i + batch] = frame_features(model, augment(values) if augmented else values).half()
        return out.flatten(0, 1)


def image_tokens(model: SmolVLMForConditionalGeneration, pool: Pool, batch: int = 64) -> torch.Tensor:
    """Image tokens of a pool's frames, f16 [frames * 9, hidden], from files beside the shards, one folder for each tower, by what is
    in it; makes those that are missing."""
    parts = (model.model.vision_model, model.model.connector)
    content = b"".join(p.detach().cpu().half().numpy().tobytes() for part in parts for p in part.state_dict().values())
    folder = pool.paths[0].parent / f"tokens-{hashlib.sha256(content).hexdigest()[:12]}"
    folder.mkdir(exist_ok=True)
    tokens = []
    for path in pool.paths:
        file = folder / f"{path.stem}.npy"
        if not file.exists():
            one = Pool.__new__(Pool)
            one.paths = [path]
            partial = file.with_suffix(".part.npy")
            np.save(
                partial, Frames(one, next(model.parameters()).device, labels=False).tokens(model, batch).cpu().numpy()
            )
            partial.rename(file)
        tokens.append(torch.from_numpy(np.load(file)))
    return torch.cat(tokens)


class Batches:
    """Random batches of streams, of about equal length within a batch; `cameras`: share of the streams that are of several."""

    def __init__(
        self,
        codec: Codec,
        pool: Pool,
        rng: np.random.Generator,
        recall: float,
        layouts: tuple[float, ...],
        cameras: float,
    ):
        self.builder = StreamBuilder(codec, pool.runs, rng, recall, layouts)
        self.several = CameraBuilder(codec, pool.runs, rng, recall)
        self.rng, self.starts, self.cameras = rng, pool.starts, cameras

    def next(self, tokens: int, long: float) -> Pack:
        """Streams of together about `tokens` tokens; `long` is the share of full-length batches."""
        length = int(self.rng.choice(LONG if self.rng.random() < long else LENGTHS))
        streams, room = [], tokens
        while room > 0:
            several = self.cameras > 0 and self.rng.random() < self.cameras
            stream = (self.several if several else self.builder).build(length)
            if stream.answers:
                streams.append(stream)
                room -= len(stream.ids)
        return pack(streams, self.starts)
