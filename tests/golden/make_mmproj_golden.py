"""Writes `gguf/mmproj-*.gguf`: vision towers and projectors in the published layout, with the image features to expect."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter
from gguf_files import write_gguf
from golden_io import HERE, check_sensitive, load_model, max_diff, sha256, write_json, write_tensors
from safetensors.torch import load_file
from transformers import AutoImageProcessor, LlavaForConditionalGeneration, PreTrainedModel

OUT = HERE / "gguf"
TOLERANCE = 1e-4
LLAVA, SMOLVLM = HERE / "families/llava", HERE / "tiny_smolvlm"
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
TOP_NAMES = {
    "embeddings.patch_embedding": "v.patch_embd",
    "embeddings.position_embedding": "v.position_embd",
    "pre_layrnorm": "v.pre_ln",
    "post_layernorm": "v.post_ln",
    "linear_1": "mm.0",
    "linear_2": "mm.2",
    "modality_projection.proj": "mm.model.fc",
}
SWAPPED = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}


@dataclass(frozen=True)
class File:
    """One projector file: the checkpoint, its inputs, and which of its tensors are there under which names."""

    model_dir: Path
    inputs: Path
    load: Callable[[Path], PreTrainedModel]
    layers: int
    f32: tuple[str, ...] = ()  # matrices that stay as they are
    left_out: tuple[str, ...] = ()
    swapped: bool = False  # fc1 under the name ffn_down and fc2 under ffn_up
    feature_layer: int | None = None


def load_llava(model_dir: Path) -> PreTrainedModel:
    return LlavaForConditionalGeneration.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    ).eval()


TWO = LLAVA / "golden/two.inputs.safetensors"
FILES = {
    # what the first converter wrote: layers up to the features' and no word about which that is
    "mmproj-llava-old": File(LLAVA, TWO, load_llava, layers=2, left_out=("v.post_ln",), swapped=True),
    "mmproj-llava": File(LLAVA, TWO, load_llava, layers=3, left_out=("v.post_ln",), feature_layer=2),
    "mmproj-smolvlm": File(
        SMOLVLM,
        HERE / "tiny_forward/inputs.safetensors",
        load_model,
        layers=2,
        f32=("v.patch_embd.weight", "v.position_embd.weight"),
    ),
}


def gguf_name(name: str) -> str | None:
    """The name in the file of a vision or projector tensor of a model; None of any other."""
    if "vision" not in name and "projector" not in name and "connector" not in name:
        return None
    if name.endswith("class_embedding"):
        return "v.class_embd"
    stem, _, kind = name.rpartition(".")
    if ".layers." in stem:
        layer, _, rest = stem.split(".layers.")[1].partition(".")
        return f"v.blk.{layer}.{LAYER_NAMES[rest]}.{kind}"
    return next(f"{short}.{kind}" for long, short in TOP_NAMES.items() if stem.endswith(long))


def name_in(file: File, name: str) -> str | None:
    """The name under which the file has a tensor; None if it has not."""
    short = gguf_name(name)
    if short is None or short.startswith(file.left_out):
        return None
    parts = short.split(".")
    if parts[1] != "blk":
        return short
    if int(parts[2]) >= file.layers:
        return None
    return ".".join([*parts[:3], SWAPPED.get(parts[3], parts[3]) if file.swapped else parts[3], parts[4]])


def add_settings(writer: GGUFWriter, file: File, model: PreTrainedModel) -> None:
    vision, images = model.config.vision_config, AutoImageProcessor.from_pretrained(file.model_dir, backend="pil")
    seen_by_clip = vision.model_type == "clip_vision_model"
    writer.add_file_type(1)
    if not seen_by_clip:
        writer.add_type("mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    if seen_by_clip:
        writer.add_bool("clip.has_text_encoder", False)
        writer.add_bool("clip.has_llava_projector", True)
    writer.add_string("clip.projector_type", "mlp" if seen_by_clip else "idefics3")
    writer.add_uint32("clip.vision.image_size", vision.image_size)
    writer.add_uint32("clip.vision.patch_size", vision.patch_size)
    writer.add_uint32("clip.vision.embedding_length", vision.hidden_size)
    writer.add_uint32("clip.vision.feed_forward_length", vision.intermediate_size)
    projection = vision.projection_dim if seen_by_clip else model.config.text_config.hidden_size
    writer.add_uint32("clip.vision.projection_dim", projection)
    writer.add_uint32("clip.vision.attention.head_count", vision.num_attention_heads)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision.layer_norm_eps)
    writer.add_uint32("clip.vision.block_count", file.layers)
    writer.add_array("clip.vision.image_mean", [float(x) for x in images.image_mean])
    writer.add_array("clip.vision.image_std", [float(x) for x in images.image_std])
    writer.add_bool("clip.use_gelu", not seen_by_clip)
    if file.feature_layer is not None:
        writer.add_array("clip.vision.feature_layer", [file.feature_layer])
    if not seen_by_clip:
        writer.add_uint32("clip.vision.projector.scale_factor", model.config.scale_factor)
        writer.add_uint32("clip.vision.preproc_image_size", images.size["longest_edge"])


def features(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Image features [tokens, hidden] of all images."""
    found = model.get_image_features(pixel_values, return_dict=True).pooler_output
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in found])


def make(name: str, file: File) -> None:
    path, model = OUT / f"{name}.gguf", file.load(file.model_dir)
    pixel_values = load_file(file.inputs)["pixel_values"]
    before = features(model, pixel_values)
    writer = GGUFWriter(path, "clip")
    writer.add_name(f"tiny {name}")
    add_settings(writer, file, model)
    for key, parameter in model.named_parameters():
        short = name_in(file, key)
        if short is None:
            continue
        data = parameter.numpy()
        if data.ndim > 1 and short not in file.f32:
            data = data.astype(np.float16)
            parameter.copy_(torch.from_numpy(data.astype(np.float32)))
        writer.add_tensor(short, data.copy())
    write_gguf(writer)
    path.chmod(0o644)
    expected = features(model, pixel_values)
    last = model.config.vision_config.num_hidden_layers - 1
    perturbed = {}
    if file.model_dir == LLAVA:
        shorter = file.load(file.model_dir)
        shorter.load_state_dict(model.state_dict())
        shorter.config.vision_feature_layer = last - 1
        perturbed["one_layer_less"] = max_diff(features(shorter, pixel_values), expected)
    check_sensitive(perturbed, tuple(perturbed), TOLERANCE, name)
    about = {
        "tolerance": TOLERANCE,
        "model_sha256": sha256(path),
        "inputs": str(file.inputs.relative_to(HERE)),
        "effect_of_f16": max_diff(before, expected),
        "perturbed": perturbed,
    }
    write_tensors(OUT / f"{name}.expected.safetensors", {"image_features": expected})
    write_json(OUT / f"{name}.json", about)
    print(name, path.stat().st_size, expected.std().item(), about)


@torch.no_grad()
def main() -> None:
    OUT.mkdir(exist_ok=True)
    for name, file in FILES.items():
        make(name, file)


if __name__ == "__main__":
    main()
