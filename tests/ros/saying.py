"""Checkpoints that say one text, whatever they are asked: for what a model of random weights would never write."""

from __future__ import annotations

import json
import shutil
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
from conftest import ROOT

SOURCE = ROOT / "tests" / "golden" / "families" / "qwen2_vl"
START, END = "Ċ", "<|im_end|>"
"""The last token of a prompt (a line break, as vocabularies write it), and that which ends an answer."""


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file that holds f32."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[slice(*about["data_offsets"])], np.float32).reshape(about["shape"])
        for name, about in header.items()
    }


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    content = [np.ascontiguousarray(tensor, np.float32).tobytes() for tensor in tensors.values()]
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(content))


def make(directory: Path, pieces: dict[str, bool]) -> Path:
    """A tiny Qwen2-VL whose every answer is `pieces`, each of them one token of its vocabulary, a control token where it is true.

    Its layers add nothing, so that the output layer sees the last token alone, and gives most to the one that follows it.
    """
    shutil.copytree(SOURCE, directory, ignore=shutil.ignore_patterns("cache", "fresh", "golden"))
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]} | tokenizer["model"]["vocab"]
    for content, special in pieces.items():
        ids[content] = len(ids)
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        tokenizer["added_tokens"].append({"id": ids[content], "content": content, **plain, "special": special})
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((directory / "config.json").read_text())
    config["vocab_size"] = len(ids)
    (directory / "config.json").write_text(json.dumps(config))

    tensors = read(directory / "model.safetensors")
    table = np.random.default_rng(1).normal(size=(len(ids), config["hidden_size"]))
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    head = np.zeros_like(table)
    for before, after in pairwise([START, *pieces, END]):
        head[ids[after]] = 10 * table[ids[before]]
    tensors |= {"model.embed_tokens.weight": table, "lm_head.weight": head}
    for name, tensor in tensors.items():
        if name.startswith("model.") and name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = np.zeros_like(tensor)
    tensors["model.norm.weight"] = np.ones_like(tensors["model.norm.weight"])
    write(directory / "model.safetensors", {name: tensor.astype(np.float32) for name, tensor in tensors.items()})
    return directory
