"""A larger model that computes what a smaller one does: more key-value heads, layers and MLP rows for training to fill."""

from dataclasses import dataclass

import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

CLOSE = 1e-4  # largest difference of logits that rounding alone makes


@dataclass(frozen=True)
class Size:
    """What may be grown; 0 leaves it as it is."""

    kv_heads: int = 0
    layers: int = 0
    mlp: int = 0
    tower_layers: int = 0


def grown(model: SmolVLMForConditionalGeneration, size: Size) -> SmolVLMForConditionalGeneration:
    """The model at a size not below its own: key-value heads repeated, new layers behind the present ones and new MLP rows with
    nothing coming out of them. Raises ValueError for a size that is smaller or whose heads do not divide."""
    settings = SmolVLMConfig.from_dict(model.config.to_dict())
    text, vision = settings.text_config, settings.vision_config
    heads = text.num_key_value_heads
    for owner, name, value in (
        (text, "num_key_value_heads", size.kv_heads),
        (text, "num_hidden_layers", size.layers),
        (text, "intermediate_size", size.mlp),
        (vision, "num_hidden_layers", size.tower_layers),
    ):
        if value and value < getattr(owner, name):
            raise ValueError(f"{name} {value} is below the {getattr(owner, name)} of the model to grow")
        setattr(owner, name, value or getattr(owner, name))
    if text.num_key_value_heads % heads or text.num_attention_heads % text.num_key_value_heads:
        raise ValueError(
            f"{text.num_key_value_heads} key-value heads do not repeat {heads}, or do not divide the queries'"
        )
    large = SmolVLMForConditionalGeneration(settings)
    large.set_attn_implementation(model.config._attn_implementation)
    fill(large.state_dict(), model.state_dict(), text.head_dim)
    difference = (probe(large) - probe(model)).abs().max().item()
    if difference > CLOSE:
        raise ValueError(f"the grown model's logits differ by {difference:.1e}")
    return large


def fill(large: dict[str, torch.Tensor], small: dict[str, torch.Tensor], width: int) -> None:
    """Writes a small model's weights into a large one's in place."""
    for name, weight in large.items():
        if name not in small:  # a new layer: what it adds to its input begins at nothing
            if any(part in name for part in ("o_proj", "down_proj", "out_proj", "fc2")):
                weight.zero_()
            continue
        old = small[name]
        if "k_proj" in name or "v_proj" in name:
            heads = old.view(-1, width, *old.shape[1:]) if "text_model" in name else old[None]
            weight.copy_(heads.repeat_interleave(weight.shape[0] // old.shape[0], 0).reshape(weight.shape))
        elif "down_proj" in name:
            weight.zero_()
            weight[:, : old.shape[1]] = old
        else:
            weight[: old.shape[0]] = old


@torch.no_grad()
def probe(model: SmolVLMForConditionalGeneration) -> torch.Tensor:
    """Logits of a fixed frame and text behind it, with which to compare two models."""
    generator = torch.Generator().manual_seed(0)
    vision, text = model.config.vision_config, model.config.text_config
    values = torch.rand(1, 3, vision.image_size, vision.image_size, generator=generator) * 2 - 1
    tower = model.model.vision_model
    hidden = tower.embeddings.patch_embedding(values).flatten(2).transpose(1, 2)
    hidden = tower.encoder(inputs_embeds=hidden + tower.embeddings.position_embedding.weight, attention_mask=None)
    image = model.model.connector(tower.post_layernorm(hidden.last_hidden_state))
    ids = torch.randint(text.vocab_size, (1, 24), generator=generator)
    embeds = torch.cat([image, model.get_input_embeddings()(ids)], 1)
    return model.lm_head(model.model.text_model(inputs_embeds=embeds, use_cache=False).last_hidden_state)
