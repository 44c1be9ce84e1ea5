"""Renders training runs into data/: one .npz file per shard of runs, resumable, seeded by the shard's number."""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from runs import save_shard
from scenes import Studio

FRAMES = 24
RUNS_PER_SHARD = 25


def frame_times(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Stamps of a run's frames: a base interval of 0.1 to 1 s with jitter, starting after 0 to 90 s."""
    base = rng.choice([0.1, 0.2, 0.3, 0.5, 0.7, 1.0], p=[0.08, 0.12, 0.2, 0.25, 0.2, 0.15])
    steps = np.clip(base * rng.uniform(0.8, 1.25, frames), 0.1, 1.0)
    return np.cumsum(steps) - steps[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data"))
    parser.add_argument("--first", type=int, default=0, help="number of the first shard")
    parser.add_argument("--shards", type=int, default=60)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for shard in tqdm(range(args.first, args.first + args.shards)):
        path = args.out / f"shard{shard:04d}.npz"
        if path.exists():
            continue
        studio = Studio(1000 + shard)
        runs = [studio.run(frame_times(studio.rng, FRAMES), objects=(3, 9)) for _ in range(RUNS_PER_SHARD)]
        save_shard(path, runs)
        studio.close()


if __name__ == "__main__":
    main()
