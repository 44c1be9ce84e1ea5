"""Batches of streams built ahead by other processes, into files: building takes several times as long as a GPU takes to learn from
them. Run beside the training, for as long as it takes; a file `stop` in the folder ends it."""

import argparse
import pickle
import random
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from dataset import Codec
from packed import Pack
from pool import CAMERAS, Batches, Pool

AHEAD = 6  # files that are read while others are learnt from
PATIENCE = 120  # seconds within which the first packs must be there


def write(path: Path, pack: Pack) -> None:
    """Writes a pack, its numbers in 32 bits."""
    content = {k: v.numpy().astype(np.int32) if isinstance(v, torch.Tensor) else v for k, v in vars(pack).items()}
    partial = path.with_suffix(".part")
    partial.write_bytes(pickle.dumps(content, protocol=5))
    partial.rename(path)


def read(path: Path) -> Pack:
    """Reads what `write` wrote."""
    content = pickle.loads(path.read_bytes())
    return Pack(**{k: torch.from_numpy(v).long() if isinstance(v, np.ndarray) else v for k, v in content.items()})


def work(args: argparse.Namespace, codec: Codec, pool: Pool, number: int) -> None:
    """Writes pack after pack into the folder until it is told to stop."""
    torch.set_num_threads(1)
    rng = np.random.default_rng([args.seed, number])
    batches = Batches(codec, pool, rng, args.recall, tuple(args.layouts), args.cameras)
    end = time.time() + args.seconds
    for count in range(args.most):
        if time.time() > end or (args.out / "stop").exists():
            return
        write(args.out / f"{count:05}-{number:02}.pack", batches.next(args.tokens, args.long))


def wait_for_packs(folder: Path) -> None:
    """Waits until there are packs: reading the runs takes a while."""
    end = time.time() + PATIENCE
    while not any(folder.glob("*.pack")):
        if time.time() > end:
            raise SystemExit(f"{folder}: no packs within {PATIENCE} s")
        time.sleep(0.2)


class Shelf:
    """Packs of a folder in the order in which they come; those read before again, at random, while there are no new ones."""

    def __init__(self, folder: Path, pinned: bool):
        wait_for_packs(folder)
        self.folder, self.pinned, self.fresh, self.known, self.again, self.seen = folder, pinned, [], set(), 0, 0
        self.readers = ThreadPoolExecutor(2)

    def load(self, path: Path) -> Pack:
        pack = read(path)
        return pack.moved(torch.Tensor.pin_memory) if self.pinned else pack

    def choose(self) -> Path:
        """A file that was not read before, if there is one."""
        if not self.fresh and self.seen % 8 == 0:
            new = sorted(path for path in self.folder.glob("*.pack") if path not in self.known)
            self.fresh, self.known = new[::-1], self.known | set(new)
            self.files = sorted(self.known)
        self.seen += 1
        if self.fresh:
            return self.fresh.pop()
        self.again += 1
        return random.choice(self.files)

    def __iter__(self) -> Iterator[Pack]:
        waiting: list[Future] = [self.readers.submit(self.load, self.choose()) for _ in range(AHEAD)]
        while True:
            waiting.append(self.readers.submit(self.load, self.choose()))
            yield waiting.pop(0).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--tokenizer", type=Path, default=Path("../models/demo"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=14)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--most", type=int, default=10_000, help="packs of each process")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--long", type=float, default=0.5)
    parser.add_argument("--recall", type=float, default=0.6)
    parser.add_argument("--layouts", type=float, nargs=3, default=[0.45, 0.45, 0.1])
    parser.add_argument("--cameras", type=float, default=CAMERAS)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    codec, pool, began = Codec(args.tokenizer), Pool(args.data), time.time()
    (args.out / "pool").write_text(pool.name())
    context = get_context("fork")  # the runs are shared
    running = [context.Process(target=work, args=(args, codec, pool, n)) for n in range(args.processes)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    count = len(list(args.out.glob("*.pack")))
    print(f"{count} packs in {time.time() - began:.0f} s from {len(pool.runs)} runs", flush=True)


if __name__ == "__main__":
    main()
