"""Writes a GGUF file of a published decoder's sizes with random weights: random_gguf.py SHAPE WEIGHTS OUT.

WEIGHTS: f16, bf16, q8_0 or q4_k (rows that do not fill blocks of 256 become q5_0). Only decoders without biases and norms of queries and
keys. Needs numpy; GGUF version 3 as its specification in the ggml repository has it.
"""

import argparse
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from shapes import FILES, TINY, Shape, shape

ALIGNMENT = 32
BAND = 1 << 22
"""Bytes that are drawn; larger tensors repeat them from a place of their own on."""

UINT32, FLOAT32, STRING = 4, 6, 8
"""Types of metadata."""

F32, F16, Q5_0, Q8_0, Q4_K, BF16 = 0, 1, 6, 8, 12, 30
BLOCKS = {F32: (1, 4), F16: (1, 2), BF16: (1, 2), Q5_0: (32, 22), Q8_0: (32, 34), Q4_K: (256, 144)}
"""Numbers and bytes of a block."""


def kind(weights: str, columns: int) -> int:
    """The type of a matrix with so many columns."""
    if weights == "q4_k" and columns % 256:
        return Q5_0
    return {"f16": F16, "bf16": BF16, "q8_0": Q8_0, "q4_k": Q4_K}[weights]


def size(of: int, rows: int, columns: int) -> int:
    numbers, length = BLOCKS[of]
    if columns % numbers:
        raise ValueError(f"rows of {columns}, expected a multiple of {numbers}")
    return rows * columns // numbers * length


def blocks(of: int, deviation: float, rng: np.random.Generator) -> bytes:
    """Blocks of about this deviation."""
    numbers, length = BLOCKS[of]
    count = BAND // length
    if of in (F16, BF16):
        values = (rng.random(count * numbers, dtype=np.float32) * 2 - 1) * np.float32(3**0.5 * deviation)
        if of == F16:
            return values.astype(np.float16).tobytes()
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    block = rng.integers(0, 256, (count, length), dtype=np.uint8)
    # A scale in front, and the least value behind it for q4_k: with sub-scales of 6 bits and quants of 4.
    scales = {Q5_0: [deviation / 9.2], Q8_0: [deviation / 73.9], Q4_K: [deviation / 200, deviation / 30]}[of]
    block[:, : 2 * len(scales)] = np.array(scales, np.float16).view(np.uint8)
    return block.tobytes()


def tensors(decoder: Shape, weights: str) -> Iterator[tuple[str, int, int, int]]:
    """Name, rows, columns and type of each; a vector has one row."""
    hidden, inner = decoder.hidden, decoder.inner
    queries, keys = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim

    def matrix(name: str, rows: int, columns: int) -> tuple[str, int, int, int]:
        return name, rows, columns, kind(weights, columns)

    yield matrix("token_embd.weight", decoder.vocabulary, hidden)
    yield "output_norm.weight", 1, hidden, F32
    if not decoder.tied:
        yield matrix("output.weight", decoder.vocabulary, hidden)
    for layer in range(decoder.layers):
        prefix = f"blk.{layer}"
        yield f"{prefix}.attn_norm.weight", 1, hidden, F32
        yield f"{prefix}.ffn_norm.weight", 1, hidden, F32
        yield matrix(f"{prefix}.attn_q.weight", queries, hidden)
        yield matrix(f"{prefix}.attn_k.weight", keys, hidden)
        yield matrix(f"{prefix}.attn_v.weight", keys, hidden)
        yield matrix(f"{prefix}.attn_output.weight", hidden, queries)
        yield matrix(f"{prefix}.ffn_gate.weight", inner, hidden)
        yield matrix(f"{prefix}.ffn_up.weight", inner, hidden)
        yield matrix(f"{prefix}.ffn_down.weight", hidden, inner)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def metadata(decoder: Shape) -> list[bytes]:
    def entry(key: str, of: int, value: bytes) -> bytes:
        return text(key) + struct.pack("<I", of) + value

    numbers = {
        "context_length": 8192,
        "embedding_length": decoder.hidden,
        "block_count": decoder.layers,
        "feed_forward_length": decoder.inner,
        "attention.head_count": decoder.heads,
        "attention.head_count_kv": decoder.kv_heads,
        "attention.key_length": decoder.head_dim,
        "attention.value_length": decoder.head_dim,
        "rope.dimension_count": decoder.head_dim,
        "vocab_size": decoder.vocabulary,
    }
    entries = [
        entry("general.architecture", STRING, text("llama")),
        entry("tokenizer.ggml.model", STRING, text("none")),
    ]
    entries += [entry(f"llama.{key}", UINT32, struct.pack("<I", value)) for key, value in numbers.items()]
    for key, value in (("attention.layer_norm_rms_epsilon", 1e-5), ("rope.freq_base", 1e4)):
        entries.append(entry(f"llama.{key}", FLOAT32, struct.pack("<f", value)))
    return entries


def write_data(out: BinaryIO, of: int, rows: int, columns: int, band: bytes, start: int) -> None:
    """`rows` of `columns` from the blocks of `band`, from the `start`-th on."""
    left = size(of, rows, columns)
    at = start * BLOCKS[of][1] % len(band)
    while left:
        piece = band[at : at + left]
        out.write(piece)
        left, at = left - len(piece), 0


def write(path: Path, decoder: Shape, weights: str) -> None:
    if decoder.qk_norm or decoder.qkv_bias:
        raise ValueError(f"{decoder.name} is not built like Llama")
    every = list(tensors(decoder, weights))
    entries = metadata(decoder)
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(every), len(entries)) + b"".join(entries)
    offset = 0
    for name, rows, columns, of in every:
        dims = (columns,) if rows == 1 else (columns, rows)
        header += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, of, offset)
        offset += -(-size(of, rows, columns) // ALIGNMENT) * ALIGNMENT
    bands: dict[tuple[int, int], bytes] = {}
    rng = np.random.default_rng(0)
    with path.open("wb") as out:
        out.write(header + bytes(-len(header) % ALIGNMENT))
        for _, rows, columns, of in every:
            if of == F32:
                out.write(np.ones(columns, np.float32).tobytes())
            else:
                if (of, columns) not in bands:
                    bands[of, columns] = blocks(of, columns**-0.5, rng)
                write_data(out, of, rows, columns, bands[of, columns], int(rng.integers(1 << 30)))
            out.write(bytes(-size(of, rows, columns) % ALIGNMENT))


def read_bytes(decoder: Shape, weights: str) -> int:
    """Bytes of weights that a token reads: all but the rows of the embeddings that it is not."""
    every = [size(of, rows, columns) for _, rows, columns, of in tensors(decoder, weights)]
    return sum(every) if decoder.tied else sum(every[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=[*FILES, TINY.name])
    parser.add_argument("weights", choices=["f16", "bf16", "q8_0", "q4_k"])
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    write(args.out, shape(args.shape), args.weights)


if __name__ == "__main__":
    main()
