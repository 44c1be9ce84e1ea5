"""The demo model: a small SmolVLM from transformers, its forward over streams, and saving it as a hub checkpoint."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dataset import TOKENS_PER_FRAME, Codec

PREPROCESSOR = {
    "do_convert_rgb": True,
    "do_image_splitting": False,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SmolVLMImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "max_image_size": {"longest_edge": 96},
    "processor_class": "SmolVLMProcessor",
    "resample": 1,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": 96},
    "image_seq_len": TOKENS_PER_FRAME,
}


def config(codec: Codec) -> SmolVLMConfig:
    """The configuration of the demo model."""
    text = LlamaConfig(
        vocab_size=codec.size, hidden_size=192, intermediate_size=384, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, rms_norm_eps=1e-5, rope_theta=10000.0,
        tie_word_embeddings=True, bos_token_id=codec.start, eos_token_id=codec.end, pad_token_id=codec.pad,
        initializer_range=0.05,
    )  # fmt: skip
    vision = {
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5, "num_attention_heads": 4,
        "image_size": 96, "patch_size": 8,
    }  # fmt: skip
    return SmolVLMConfig(
        text_config=text, vision_config=vision, scale_factor=4, image_token_id=codec.image, tie_word_embeddings=True,
        pad_token_id=codec.pad, bos_token_id=codec.start, eos_token_id=codec.end,
    )  # fmt: skip


def new_model(codec: Codec, seed: int) -> SmolVLMForConditionalGeneration:
    """The demo model with random weights, but for a tower that starts close to a convolution: see `local_tower`."""
    torch.manual_seed(seed)
    model = SmolVLMForConditionalGeneration(config(codec))
    model.set_attn_implementation("plain")
    with torch.no_grad():
        local_tower(model.model.vision_model)
    return model


def local_tower(tower: torch.nn.Module) -> None:
    """Starts the tower with a cosine transform of each patch, sines of its row and column beside it, and first layers
    whose heads look at the patches next to a patch: learnt from scratch on few images, none of it comes about quickly."""
    embeddings, width = tower.embeddings, 32  # a head's width holds all the sines
    patch, positions = embeddings.patch_embedding, embeddings.position_embedding.weight
    content = patch.out_channels - width
    patch.weight.zero_()
    patch.bias.zero_()
    patch.weight[:content] = cosine_filters(content, patch.kernel_size[0])
    rates = torch.pi * torch.arange(1, width // 4 + 1) / (width // 4)
    side = math.isqrt(len(positions))
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat([angles.cos(), angles.sin()], -1)  # [side, width / 2]
    positions.mul_(0.02)
    grid = torch.cat([waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)], -1)
    positions[:, content:] += grid.reshape(len(positions), width)
    for layer, reach in zip(tower.encoder.layers, (1, 2, 3)):
        query, key = layer.self_attn.q_proj, layer.self_attn.k_proj
        for head, offset in enumerate(((reach, 0), (-reach, 0), (0, reach), (0, -reach))):
            rows = slice(head * width, (head + 1) * width)
            query.weight[rows] *= 0.1
            key.weight[rows] *= 0.1
            query.weight[rows, content:] += 0.9 * torch.block_diag(*(shift(rates, by) for by in offset))
            key.weight[rows, content:] += 0.9 * torch.eye(width)


def shift(rates: torch.Tensor, by: int) -> torch.Tensor:
    """The matrix that takes (cosines, sines) of rates * n to those of rates * (n + by)."""
    cos, sin = torch.diag(torch.cos(rates * by)), torch.diag(torch.sin(rates * by))
    return torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)], 0)


def plain_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention of query [batch, heads, length, width] as matrix products: on a CPU its backward pass is many times
    faster than the fused one's."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    weights = torch.softmax(scores.float(), -1).to(scores.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register("plain", plain_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register("plain", eager_mask)


def cosine_filters(count: int, size: int) -> torch.Tensor:
    """The `count` lowest two-dimensional cosines of grey and two colour differences [count, 3, size, size], the higher
    ones stronger, as images hold less of them."""
    axis = torch.arange(size) + 0.5
    waves = torch.stack([torch.cos(torch.pi * k * axis / size) for k in range(size)])
    waves = waves / waves.norm(dim=1, keepdim=True)
    colors = torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]])
    colors = colors / colors.norm(dim=1, keepdim=True)
    order = sorted(
        (i * i + j * j + (4 if c else 0), i, j, c) for i in range(size) for j in range(size) for c in range(3)
    )
    filters = [
        torch.einsum("c,h,w->chw", colors[c], waves[i], waves[j]) * 0.2 * (1 + math.hypot(i, j))
        for _, i, j, c in order[:count]
    ]
    return torch.stack(filters)


def pixels(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 [frames, 96, 96, 3] to the tower's input [frames, 3, 96, 96]."""
    images = images if isinstance(images, torch.Tensor) else torch.from_numpy(images)
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def tower_hidden(model: SmolVLMForConditionalGeneration, values: torch.Tensor) -> torch.Tensor:
    """Patch states [frames, 144, tower hidden] of the tower's input [frames, 3, 96, 96]."""
    tower = model.model.vision_model
    hidden = (
        tower.embeddings.patch_embedding(values).flatten(2).transpose(1, 2) + tower.embeddings.position_embedding.weight
    )
    return tower.post_layernorm(tower.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state)


def frame_features(model: SmolVLMForConditionalGeneration, values: torch.Tensor) -> torch.Tensor:
    """Image tokens [frames, 9, hidden] of the tower's input [frames, 3, 96, 96]."""
    return model.model.connector(tower_hidden(model, values))


def published(folder: Path) -> SmolVLMForConditionalGeneration:
    """A hub checkpoint's model in f32."""
    model = SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.set_attn_implementation("plain")
    return model


def save_checkpoint(model: SmolVLMForConditionalGeneration, out: Path) -> None:
    """Writes the model in f16 and the processor's file; the tokenizer's files are tokenizer.py's."""
    half = SmolVLMForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    content = json.loads((out / "config.json").read_text()) | {"vocab_size": model.config.text_config.vocab_size}
    content.pop("pad_token_id", None)  # the text's counts; this would be a larger model's
    for part in ("text_config", "vision_config"):  # the type that they were trained in
        content[part].pop("dtype", None)
    (out / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    (out / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    generation = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 5, "do_sample": False}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
