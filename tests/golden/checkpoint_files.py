"""Where the weights of a checkpoint's directory lie, and what Cosmos 3's are called there."""

import json
import re
from pathlib import Path

# Names in transformers' model and those of the published files, which are diffusers'.
PIPELINE = [
    (r"^model\.language_model\.", ""),
    (r"^model\.visual\.", ""),
    (r"\.self_attn\.([qkv])_proj\.", r".self_attn.to_\1."),
    (r"\.self_attn\.o_proj\.", ".self_attn.to_out."),
    (r"\.self_attn\.([qk])_norm\.", r".self_attn.norm_\1."),
]
# Those of Cosmos 3 Edge, whose tower and projector keep their names.
EDGE = [
    (r"^(model\.language_model\..*)\.mlp\.fc1\.", r"\1.mlp.up_proj."),
    (r"^(model\.language_model\..*)\.mlp\.fc2\.", r"\1.mlp.down_proj."),
    (r"^(model\.language_model\..*)\.self_attn\.([qkv])_proj\.", r"\1.self_attn.to_\2."),
    (r"^(model\.language_model\..*)\.self_attn\.o_proj\.", r"\1.self_attn.to_out."),
    (r"^model\.language_model\.", ""),
]
# The other way round, of the decoder's.
DECODER = [
    (r"\.self_attn\.to_([qkv])\.", r".self_attn.\1_proj."),
    (r"\.self_attn\.to_out\.", ".self_attn.o_proj."),
    (r"\.self_attn\.norm_([qk])\.", r".self_attn.\1_norm."),
    (r"^(?=embed_tokens\.|layers\.|norm\.)", "model.language_model."),
]


def weight_files(directory: Path) -> list[Path]:
    """`model.safetensors`, or the files that the index names, in the order of their names."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return [directory / "model.safetensors"]
    return [directory / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def substituted(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
