"""Renders training runs into data/: one .npz file per shard of runs, resumable, seeded by the shard's number."""

import argparse
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from labels import save_labels
from runs import save_shard
from scenes import Studio

FRAMES = 24
RUNS_PER_SHARD = 25


def frame_times(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Stamps of a run's frames: a base interval of 0.1 to 1 s with jitter, starting after 0 to 90 s."""
    base = rng.choice([0.1, 0.2, 0.3, 0.5, 0.7, 1.0], p=[0.08, 0.12, 0.2, 0.25, 0.2, 0.15])
    steps = np.clip(base * rng.uniform(0.8, 1.25, frames), 0.1, 1.0)
    return np.cumsum(steps) - steps[0]


def render(path: Path, seed: int) -> None:
    """Renders one shard."""
    studio = Studio(seed)
    runs = [studio.run(frame_times(studio.rng, FRAMES), objects=(3, 9)) for _ in range(RUNS_PER_SHARD)]
    save_labels(path, runs)
    save_shard(path, runs)
    studio.close()


def generate(out: Path, first: int, shards: int, processes: int = 1, minutes: float = float("inf")) -> None:
    """Renders the shards that are missing, as many as begin within the time."""
    out.mkdir(parents=True, exist_ok=True)
    end, numbers = time.time() + 60 * minutes, range(first, first + shards)
    missing = [(path, 1000 + n) for n in numbers if not (path := out / f"shard{n:04d}.npz").exists()]
    if processes == 1:
        for task in tqdm(missing):
            if time.time() < end:
                render(*task)
        return
    with get_context("spawn").Pool(processes) as pool:
        running = [pool.apply_async(render_before, (end, *task)) for task in missing]
        for task in tqdm(running):
            task.get()


def render_before(end: float, path: Path, seed: int) -> None:
    """Renders one shard unless it is too late."""
    if time.time() < end:
        render(path, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data"))
    parser.add_argument("--first", type=int, default=0, help="number of the first shard")
    parser.add_argument("--shards", type=int, default=60)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no shard begins later than this")
    args = parser.parse_args()
    generate(args.out, args.first, args.shards, args.processes, args.minutes)


if __name__ == "__main__":
    main()
