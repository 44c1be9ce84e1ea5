"""Writes a checkpoint's directory as published ones look, and beside it what today's transformers saves instead."""

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path

import torch
from checkpoint_files import weight_files
from golden_io import HERE, write_json
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import PreTrainedModel, ProcessorMixin

FAMILIES = HERE / "families"
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
LLAMA_MARKERS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def pretty_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def llava_name(name: str) -> str:
    """A tensor's name in the published files of the LLaVA families, from its name in the model."""
    name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
    name = name.replace("model.language_model.", "language_model.model.")
    name = re.sub(r"^lm_head", "language_model.lm_head", name)
    return name.removeprefix("model.")


def write_hub(
    directory: Path, weights: dict[str, torch.Tensor], tokenizer: Tokenizer, files: dict[str, dict], shards: int = 1
) -> None:
    """Weights under their published names, tokenizer.json, and the JSON files by their names."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    write_weights(directory, weights, shards)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    for name, value in files.items():
        pretty_json(directory / name, value)


def write_weights(directory: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    """One model.safetensors, or shards of consecutive tensors with their index."""
    names = list(tensors)
    if shards == 1:
        save(directory / "model.safetensors", tensors, names)
        return
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        save(directory / file, tensors, part)
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    pretty_json(
        directory / "model.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))},
    )


def save(path: Path, tensors: dict[str, torch.Tensor], names: list[str]) -> None:
    save_file({name: tensors[name].contiguous() for name in names}, path, metadata={"format": "pt"})
    path.chmod(0o644)


def weights_sha256(directory: Path) -> str:
    """Of model.safetensors, or of the files of the index one after another in the order of their names."""
    digest = hashlib.sha256()
    for path in weight_files(directory):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def tokenizer_config(tokenizer: Tokenizer, **values: object) -> dict:
    """tokenizer_config.json with the table of added tokens."""
    table = {
        str(id): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for id, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return dict(sorted({"added_tokens_decoder": table, "clean_up_tokenization_spaces": False, **values}.items()))


def write_fresh(directory: Path, model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """What transformers saves of the loaded checkpoint, without the weights, and the new names of the tensors."""
    fresh = directory / "fresh"
    fresh.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch)
        model.save_pretrained(saved)
        processor.save_pretrained(saved)
        new = load_file(saved / "model.safetensors")
        for path in sorted(saved.iterdir()):
            if path.suffix != ".safetensors" and path.name != "tokenizer.json":
                shutil.copyfile(path, fresh / path.name)
    by_content = {content(tensor): name for name, tensor in new.items()}
    names = {}
    for path in sorted(directory.glob("model*.safetensors")):
        for name, tensor in load_file(path).items():
            names[name] = by_content[content(tensor)]
    if len(set(names.values())) != len(new):
        raise SystemExit(f"{directory.name}: hub and fresh tensors do not match one to one")
    write_json(fresh / "names.json", dict(sorted(names.items())))


def content(tensor: torch.Tensor) -> tuple:
    return tuple(tensor.shape), tensor.float().contiguous().numpy().tobytes()
