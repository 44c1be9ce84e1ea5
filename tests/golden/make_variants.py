"""Makes `variants/`: what transformers computes of the checkpoints in `families/` where their files say things otherwise."""

import copy
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from golden_io import HERE, max_diff, write_json, write_tensors
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

TOLERANCE, TOKENS, KEPT = 1e-4, 40, 3
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
SCALED_AND_NOT = {
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}


OUTER = {"architectures", "image_token_id", "model_type", "tie_word_embeddings", "video_token_id", "vision_config"}


def inside(part: str, **fields) -> dict:
    return {part: fields}


def nested(family: str, **fields) -> dict:
    """The decoder's fields of an older flat configuration, moved into a part of their own."""
    config = json.loads((HERE / "families" / family / "config.json").read_text())
    moved = {key: value for key, value in config.items() if key not in OUTER}
    kept = {"tie_word_embeddings": False, **dict.fromkeys(moved)}
    return {**kept, "text_config": {"model_type": f"{family}_text", **moved, **fields}}


# Name: family, what is merged into config.json (RFC 7396: null takes a field away), beginnings of the tensors that are left out.
CASES: dict[str, tuple[str, dict, list[str]]] = {
    "scaling_beats_parameters": ("llama", SCALED_AND_NOT, []),
    "scaling_beats_parameters_beside_theta": ("qwen2", {**SCALED_AND_NOT, "rope_theta": 777.0}, []),
    "yarn_in_scaling": ("llama", {"rope_scaling": {"type": "yarn", **YARN}}, []),
    "yarn_in_parameters": (
        "qwen2",
        {"rope_scaling": None, "rope_parameters": {"rope_type": "yarn", "rope_theta": 300.0, **YARN}},
        [],
    ),
    "yarn_of_the_longest_input": ("mistral", {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, []),
    "yarn_weighted": (
        "qwen3",
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "mscale": 1.5,
                "mscale_all_dim": 0.5,
                "beta_fast": 4.0,
                "beta_slow": 0.5,
                "truncate": False,
                **YARN,
            }
        },
        [],
    ),
    "yarn_stretched": ("llama3", {"rope_scaling": {"rope_type": "yarn", "attention_factor": 1.5, **YARN}}, []),
    "yarn_of_a_part": ("gpt_neox", {"rope_scaling": {"type": "yarn", **YARN}}, []),
    "yarn_on_three_axes": ("qwen2_5_vl", inside("rope_scaling", type="yarn", **YARN), []),
    "axes_always_in_turn": ("qwen3_vl", inside("text_config", rope_scaling={"mrope_interleaved": None}), []),
    "tied_beside_a_head": ("qwen3_vl", {"tie_word_embeddings": True}, []),
    "tied_beside_a_head_elsewhere": ("llava", {"tie_word_embeddings": True}, []),
    "tied_inside": (
        "llava",
        {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}},
        ["language_model.lm_head."],
    ),
    "tied_inside_of_a_nested_part": ("qwen2_5_vl", nested("qwen2_5_vl", tie_word_embeddings=True), []),
    "tied_to_the_head": ("llama", {"tie_word_embeddings": True}, ["model.embed_tokens."]),
}
# These differ from the checkpoint as it is in what is left out only.
SAME = {
    "axes_always_in_turn",
    "tied_beside_a_head",
    "tied_beside_a_head_elsewhere",
    "tied_inside_of_a_nested_part",
}


def merge(base: dict, changes: dict) -> None:
    for name, value in changes.items():
        if value is None:
            base.pop(name, None)
        elif isinstance(value, dict) and isinstance(base.get(name), dict):
            merge(base[name], value)
        else:
            base[name] = copy.deepcopy(value)
            if isinstance(value, dict):
                base[name] = {}
                merge(base[name], value)


def logits(directory: Path, ids: torch.Tensor) -> torch.Tensor:
    """[KEPT, vocabulary] of the last tokens."""
    multimodal = "vision_config" in json.loads((directory / "config.json").read_text())
    kind = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
    model = kind.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    return model(input_ids=ids[None]).logits[0, -KEPT:]


@torch.no_grad()
def main() -> None:
    cases, expected = {}, {}
    for number, (name, (family, changes, left_out)) in enumerate(CASES.items()):
        published = HERE / "families" / family
        config = json.loads((published / "config.json").read_text())
        vocabulary = AutoConfig.from_pretrained(published).get_text_config().vocab_size
        # Control tokens come last.
        ids = torch.randint(3, vocabulary // 2, (TOKENS,), generator=torch.Generator().manual_seed(number))
        merge(config, changes)
        with tempfile.TemporaryDirectory() as scratch:
            changed = Path(scratch)
            (changed / "config.json").write_text(json.dumps(config))
            tensors = load_file(published / "model.safetensors")
            kept = {key: value for key, value in tensors.items() if not key.startswith(tuple(left_out))}
            save_file(kept, changed / "model.safetensors", metadata={"format": "pt"})
            expected[name] = logits(changed, ids)
        change = max_diff(expected[name], logits(published, ids))
        if (change < 100 * TOLERANCE) != (name in SAME):
            sys.exit(f"{name} changes the logits by {change}")
        cases[name] = {
            "family": family,
            "config": changes,
            "left_out": left_out,
            "ids": ids.tolist(),
            "changes_the_logits_by": change,
        }
    out = HERE / "variants"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    write_json(out / "cases.json", {"tolerance": TOLERANCE, "cases": cases})
    write_tensors(out / "logits.safetensors", expected)


if __name__ == "__main__":
    main()
