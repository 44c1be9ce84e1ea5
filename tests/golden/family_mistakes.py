"""Deliberate mistakes, made by editing a loaded model: how far each moves the logits tells what a golden can catch."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.image_processing_utils import select_best_resolution

Edit = Callable[[PreTrainedModel], None]


def rms_epsilon(value: float) -> Edit:
    def edit(model: PreTrainedModel) -> None:
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = value

    return edit


def layer_norm_epsilon(value: float) -> Edit:
    def edit(model: PreTrainedModel) -> None:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = value

    return edit


def tower_activation(name: str) -> Edit:
    def edit(model: PreTrainedModel) -> None:
        for module in model.modules():
            if hasattr(module, "activation_fn"):
                module.activation_fn = ACT2FN[name]

    return edit


def projector_activation(name: str) -> Edit:
    def edit(model: PreTrainedModel) -> None:
        model.get_submodule("model.multi_modal_projector").act = ACT2FN[name]

    return edit


def rope_theta(value: float) -> Edit:
    def edit(model: PreTrainedModel) -> None:
        rope = model.get_decoder().rotary_emb
        rope.inv_freq = value ** (-torch.arange(0, rope.inv_freq.shape[0]) / rope.inv_freq.shape[0])

    return edit


def attentions(model: PreTrainedModel) -> list[nn.Module]:
    """Those of the decoder's layers that attend."""
    return [layer.self_attn for layer in model.get_decoder().layers if hasattr(layer, "self_attn")]


def interleaved_rope(model: PreTrainedModel) -> None:
    """Neighbours form the rotary pairs: the same as sorting each head's even rows of q and k before its odd ones."""
    for attention in attentions(model):
        order = torch.arange(attention.head_dim).view(-1, 2).T.flatten()
        for projection in (attention.q_proj, attention.k_proj):
            for parameter in projection.parameters():
                rows = parameter.data.view(-1, attention.head_dim, *parameter.shape[1:])
                parameter.data = rows[:, order].reshape(parameter.shape).clone()


def swapped_groups(model: PreTrainedModel) -> None:
    """Query head h uses KV head h % kv_heads: the same as reordering the query heads in and out of attention."""
    config = model.config.text_config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    order = torch.tensor(sorted(range(heads), key=lambda head: (head % kv_heads, head)))
    for attention in attentions(model):
        for parameter in attention.q_proj.parameters():
            rows = parameter.data.view(heads, attention.head_dim, *parameter.shape[1:])
            parameter.data = rows[order].reshape(parameter.shape).clone()
        out = (attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj).weight
        columns = out.data.view(out.shape[0], heads, attention.head_dim)
        out.data = columns[:, order].reshape(out.shape).clone()


def transposed_positions(class_token: bool) -> Edit:
    """The vision position table read column by column."""

    def edit(model: PreTrainedModel) -> None:
        for module in model.modules():
            table = getattr(module, "position_embedding", None)
            if isinstance(table, nn.Embedding):
                start = int(class_token)
                patches = table.weight.data[start:]
                side = round(len(patches) ** 0.5)
                square = patches.view(side, side, -1).transpose(0, 1).reshape(patches.shape)
                table.weight.data = torch.cat([table.weight.data[:start], square])

    return edit


def feature_layer(value: int) -> Edit:
    def edit(model: PreTrainedModel) -> None:
        model.config.vision_feature_layer = value

    return edit


def post_layernorm(model: PreTrainedModel) -> None:
    """The norm behind the tower applied to the features."""
    norm = model.model.vision_tower.post_layernorm
    model.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: (norm(args[0]),))


def no_pre_layernorm(model: PreTrainedModel) -> None:
    model.model.vision_tower.pre_layrnorm = nn.Identity()


def zero_bias(pattern: str) -> Edit:
    """Biases of the modules whose name holds `pattern` left out."""

    def edit(model: PreTrainedModel) -> None:
        for name, parameter in model.named_parameters():
            if pattern in name and name.endswith("bias"):
                parameter.data.zero_()

    return edit


def zero_newline(model: PreTrainedModel) -> None:
    model.model.image_newline.data.zero_()


def overview_last(model: PreTrainedModel) -> None:
    """The rows of the whole image behind those of the tiles instead of before them."""
    pack = model.model.pack_image_features

    def wrong(image_features: list[torch.Tensor], *args: object, **kwargs: object) -> tuple:
        packed, lengths = pack(image_features, *args, **kwargs)
        overview = image_features[0].shape[1]
        return [torch.cat([rows[overview:], rows[:overview]]) for rows in packed], lengths

    model.model.pack_image_features = wrong


def tiles_column_by_column(model: PreTrainedModel) -> None:
    """The grid of tiles filled column by column."""
    pack = model.model.pack_image_features

    def wrong(image_features: list[torch.Tensor], image_sizes: torch.Tensor, **kwargs: object) -> tuple:
        config = model.config
        side = config.vision_config.image_size
        mixed = []
        for tiles, size in zip(image_features, image_sizes, strict=True):
            height, width = select_best_resolution(size.tolist(), config.image_grid_pinpoints)
            order = torch.arange(len(tiles) - 1).view(width // side, height // side).T.flatten()
            mixed.append(torch.cat([tiles[:1], tiles[1:][order]]))
        return pack(mixed, image_sizes, **kwargs)

    model.model.pack_image_features = wrong


def aligned_corners(model: PreTrainedModel) -> None:
    """Features interpolated with the corners of both grids on each other."""

    def wrap(right: Callable) -> Callable:
        def wrong(*args: object, **kwargs: object) -> object:
            interpolate = nn.functional.interpolate
            nn.functional.interpolate = partial(interpolate, align_corners=True)
            try:
                return right(*args, **kwargs)
            finally:
                nn.functional.interpolate = interpolate

        return wrong

    model.model.pack_image_features = wrap(model.model.pack_image_features)
    model.model.apply_pooling = wrap(model.model.apply_pooling)


def no_post_layernorm(model: PreTrainedModel) -> None:
    model.model.vision_model.post_layernorm.forward = torch.Tensor.contiguous


def transposed_pixel_shuffle(model: PreTrainedModel) -> None:
    """The patches of a block put one behind the other column by column."""
    connector = model.model.connector
    shuffle, scale = connector.pixel_shuffle, connector.scale_factor

    def wrong(features: torch.Tensor, scale_factor: int) -> torch.Tensor:
        blocks = shuffle(features, scale_factor)
        return blocks.view(*blocks.shape[:2], scale, scale, -1).transpose(2, 3).reshape(blocks.shape)

    connector.pixel_shuffle = wrong
