"""Writes a checkpoint of a published model's size and layout with random weights, to measure loading, memory and speed by.

    python3 -m venv /tmp/random && /tmp/random/bin/pip install numpy
    /tmp/random/bin/python scripts/random_checkpoint.py SmolVLM-256M-Instruct /tmp/smolvlm-256m [--seed 1]

Configuration, names, shapes, element type and number of files are those of tests/golden/published; tokenizer and chat template
are those of a tiny checkpoint of the same kind. So answers are noise, and most of their tokens have no text. Weights are normal
with a deviation of 1 / sqrt(inputs), norms are 1 and biases 0. A few MB are in memory at a time.
"""

import argparse
import json
import math
import re
import shutil
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parents[1] / "tests/golden"
PUBLISHED = GOLDEN / "published"
STANDING_IN = ["*token*.json", "generation_config.json", "chat_template.*"]
"""Files that are taken from the tiny checkpoint."""

SIZES = {"BOOL": 1, "F16": 2, "BF16": 2, "F32": 4}
BAND = 1 << 20
"""Numbers that are drawn at a time."""


@dataclass(frozen=True)
class Entry:
    """A tensor in a file. Its numbers are drawn by `draw`, so that a copy has those of the original; none: they are zeros."""

    name: str
    dtype: str
    shape: list[int]
    draw: str | None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * SIZES[self.dtype]


def expand(pattern: str) -> list[str]:
    """The names of a pattern, in which `{first..last}` stands for the numbers of a run of layers."""
    run = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not run:
        return [pattern]
    numbers = range(int(run[1]), int(run[2]) + 1)
    return [f"{pattern[: run.start()]}{number}{pattern[run.end() :]}" for number in numbers]


def dtype(name: str, about: dict) -> str:
    others = about.get("dtypes", {}).items()
    return next((other for ending, other in others if name.endswith(ending)), about["dtype"])


def entries(about: dict) -> list[Entry]:
    """All tensors of the checkpoint: parameters, then what older releases wrote beside them."""
    parameters = [
        Entry(name, dtype(name, about), shape, about["copies"].get(name, name))
        for pattern, shape in about["tensors"].items()
        for name in expand(pattern)
    ]
    buffers = [
        Entry(name, buffer["dtype"], buffer["shape"], None)
        for pattern, buffer in about["buffers"].items()
        for name in expand(pattern)
    ]
    return parameters + buffers


def numbers(entry: Entry, seed: int) -> Iterator[np.ndarray]:
    """The values of a tensor in f32, a band at a time; they depend on nothing but its name and the seed."""
    if entry.draw is None or entry.draw.endswith(".bias"):
        constant, deviation = 0.0, 0.0
    elif len(entry.shape) == 1 and entry.draw.endswith(".weight"):
        constant, deviation = 1.0, 0.0
    else:
        inputs = entry.shape[1:] or entry.shape
        constant, deviation = 0.0, 1 / math.sqrt(math.prod(inputs))
    generator = np.random.default_rng([seed, zlib.crc32((entry.draw or "").encode())])
    for start in range(0, entry.elements, BAND):
        count = min(BAND, entry.elements - start)
        if deviation:
            yield generator.standard_normal(count, dtype=np.float32) * np.float32(deviation)
        else:
            yield np.full(count, constant, dtype=np.float32)


def stored(values: np.ndarray, dtype: str) -> bytes:
    """The bytes of f32 values as `dtype`, little-endian."""
    if dtype == "BF16":
        bits = values.view(np.uint32)
        # to the nearest, ties to even
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return values.astype({"BOOL": "?", "F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def write_file(path: Path, part: list[Entry], bare: bool, seed: int) -> None:
    """A file as the library of the published ones writes it, down to its length."""
    header, end = {} if bare else {"__metadata__": {"format": "pt"}}, 0
    part = sorted(part, key=lambda entry: (-SIZES[entry.dtype], entry.name))
    for entry in part:
        start, end = end, end + entry.bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for entry in part:
            for values in numbers(entry, seed):
                out.write(stored(values, entry.dtype))


def write_weights(out: Path, tensors: list[Entry], about: dict, seed: int) -> None:
    """One file, or as many as there are on the hub, of about one size, with their index; of a pipeline in its folders."""
    shards, folders, bare = about["shards"], about.get("folders", {}), about.get("bare", False)
    if shards == 1:
        write_file(out / "model.safetensors", tensors, bare, seed)
        return
    files: dict[str, list[Entry]] = {}
    for folder, beginnings in folders.items():
        files[f"{folder}/model.safetensors"] = [it for it in tensors if it.name.startswith(tuple(beginnings))]
    inner = {entry.name for part in files.values() for entry in part}
    rest, before = [entry for entry in tensors if entry.name not in inner], 0
    total = sum(entry.bytes for entry in rest)
    stem = "transformer/diffusion_pytorch_model" if folders else "model"
    for entry in rest:
        shard = before * shards // total + 1
        files.setdefault(f"{stem}-{shard:05}-of-{shards:05}.safetensors", []).append(entry)
        before += entry.bytes
    for name, part in files.items():
        (out / name).parent.mkdir(exist_ok=True)
        write_file(out / name, part, bare, seed)
    places = {entry.name: name for name, part in files.items() for entry in part}
    index = {"metadata": {"total_size": sum(entry.bytes for entry in tensors)}, "weight_map": places}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def with_token_ids(config: dict, tiny: dict) -> dict:
    """The configuration with the tiny checkpoint's ids of tokens, without those that it has none for."""
    taken = {}
    for name, value in config.items():
        if name.endswith(("token_id", "token_index")):
            if name in tiny:
                taken[name] = tiny[name]
        elif isinstance(value, dict):
            taken[name] = with_token_ids(value, tiny.get(name, {}))
        else:
            taken[name] = value
    return taken


def write_rest(out: Path, about: dict) -> None:
    family = GOLDEN / "families" / about["family"]
    for pattern in STANDING_IN:
        for path in family.glob(pattern):
            shutil.copyfile(path, out / path.name)
    config = with_token_ids(about["config"], json.loads((family / "config.json").read_text()))
    files = {
        "config.json": config,
        "preprocessor_config.json": about["preprocessor_config"],
        "video_preprocessor_config.json": about.get("video_preprocessor_config"),
    }
    for name, value in files.items():
        if value is not None:
            (out / name).write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    names = sorted(path.stem for path in PUBLISHED.glob("*.json"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", metavar="NAME", choices=names, help=f"one of {', '.join(names)}")
    parser.add_argument("out", metavar="OUT", type=Path, help="directory to make")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    about = json.loads((PUBLISHED / f"{args.name}.json").read_text())
    tensors = entries(about)
    size = sum(entry.bytes for entry in tensors)
    free = shutil.disk_usage(next(path for path in args.out.absolute().parents if path.exists())).free
    if size > free:
        sys.exit(f"{args.out}: {size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    try:
        args.out.mkdir(parents=True)
    except FileExistsError:
        sys.exit(f"{args.out} exists, expected a directory to make")
    write_rest(args.out, about)
    write_weights(args.out, tensors, about, args.seed)
    print(f"{args.out}: {about['parameters']:,} parameters, {size / 1e9:.1f} GB in {about['shards']} file(s)")


if __name__ == "__main__":
    main()
