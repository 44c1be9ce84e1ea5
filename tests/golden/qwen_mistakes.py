"""Deliberate mistakes in the Qwen-VL models, each an edit of the transformers model before it runs."""

from collections.abc import Callable
from contextlib import ExitStack
from unittest.mock import patch

import torch
from transformers import vision_utils
from transformers.models.cosmos3_edge import modeling_cosmos3_edge
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_vl import modeling_qwen3_vl

Model = torch.nn.Module
Edit = Callable[[Model, ExitStack], None]


def text_epsilon(model: Model, _: ExitStack) -> None:
    for module in model.model.language_model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-6


def head_norm_epsilon(model: Model, _: ExitStack) -> None:
    for layer in model.model.language_model.layers:
        layer.self_attn.q_norm.variance_epsilon = layer.self_attn.k_norm.variance_epsilon = 1e-6


def vision_epsilon(model: Model, _: ExitStack) -> None:
    for module in model.model.visual.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-5
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5


def merger_tanh_gelu(model: Model, _: ExitStack) -> None:
    for module in model.model.modules():
        if isinstance(module, torch.nn.GELU):
            module.approximate = "tanh"


def block_plain_gelu(model: Model, _: ExitStack) -> None:
    for block in model.model.visual.blocks:
        block.mlp.act = torch.nn.GELU()


def block_exact_gelu(model: Model, _: ExitStack) -> None:
    for block in model.model.visual.blocks:
        block.mlp.act_fn = torch.nn.GELU()


def no_attention_bias(model: Model, _: ExitStack) -> None:
    for layer in model.model.language_model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.bias.data.zero_()


def no_vision_mlp_bias(model: Model, _: ExitStack) -> None:
    for block in model.model.visual.blocks:
        for part in block.mlp.children():
            if isinstance(part, torch.nn.Linear):
                part.bias.data.zero_()


def no_head_norms(model: Model, _: ExitStack) -> None:
    for layer in model.model.language_model.layers:
        layer.self_attn.q_norm = layer.self_attn.k_norm = torch.nn.Identity()


def rope_wrapped(change: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    """Position ids [3 or 4, 1, T], as the text model gets them, changed before the rotary embedding."""

    def edit(model: Model, _: ExitStack) -> None:
        rotary = model.model.language_model.rotary_emb
        forward = rotary.forward
        rotary.forward = lambda x, position_ids: forward(x, change(position_ids))

    return edit


def own_positions(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Edit:
    """Position ids [3, 1, T] made from the model's own and from which tokens are an image's [T]."""

    def edit(model: Model, _: ExitStack) -> None:
        compute = model.model.compute_3d_position_ids
        model.model.compute_3d_position_ids = lambda **kwargs: change(
            compute(**kwargs), kwargs["mm_token_type_ids"][0] == 1
        )

    return edit


def sequential(position_ids: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return torch.arange(position_ids.shape[-1]).expand_as(position_ids)


def extent_of_one(position_ids: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """After an image the text goes on one position behind the image's first, which its temporal axis holds."""
    text, starts = (~image).long(), image & ~image.roll(1)
    first = text.cumsum(0) - text + starts.cumsum(0) - image.long()
    return position_ids - position_ids[:1] + first


def other_layout(interleaved: bool) -> Edit:
    """The rotary frequencies dealt to the axes in blocks (or in turn) where the model does it the other way."""

    def edit(model: Model, _: ExitStack) -> None:
        module = modeling_qwen3_vl if interleaved else modeling_qwen2_5_vl
        name = "Qwen3VLTextRotaryEmbedding" if interleaved else "Qwen2_5_VLRotaryEmbedding"
        rotary = model.model.language_model.rotary_emb
        rotary.recomposition_frequencies = getattr(module, name).recomposition_frequencies.__get__(rotary)

    return edit


def patched(target: object, name: str, change: Callable) -> Edit:
    """A function that the model looks up in `target`, wrapped: change(what it returned)."""
    original = getattr(target, name)

    def edit(_: Model, stack: ExitStack) -> None:
        stack.enter_context(patch.object(target, name, lambda *a, **k: change(original(*a, **k))))

    return edit


def raster_order(model: Model, stack: ExitStack) -> None:
    """The windows' lengths, but the patches left in the order in which they came."""
    module, original = modeling_qwen2_5_vl, vision_utils.get_vision_window_index

    def keep_order(*args, **kwargs):
        index, lengths = original(*args, **kwargs)
        return torch.arange(len(index)), lengths

    stack.enter_context(patch.object(module, "get_vision_window_index", keep_order))


def order_not_restored(model: Model, stack: ExitStack) -> None:
    """The merged tokens stay in window order; only the tower argsorts."""
    stack.enter_context(patch.object(modeling_qwen2_5_vl.torch, "argsort", lambda index: torch.arange(len(index))))


def all_full(model: Model, _: ExitStack) -> None:
    model.model.visual.fullatt_block_indexes = list(range(len(model.model.visual.blocks)))


def all_windowed(model: Model, _: ExitStack) -> None:
    model.model.visual.fullatt_block_indexes = []


def images_attend_to_each_other(module: object) -> Edit:
    def one_sequence(result: tuple) -> tuple:
        lengths, longest = result
        return lengths[[0, -1]], longest

    return patched(module, "get_vision_attention_seqlens", one_sequence)


def swapped_vision_axes(module: object) -> Edit:
    return patched(module, "get_vision_position_ids", lambda ids: ids.flip(-1))


def align_corners_off(model: Model, _: ExitStack) -> None:
    model.model.visual.interpolation_align_corners = False


def transposed_table(model: Model, _: ExitStack) -> None:
    table = model.model.visual.pos_embed.weight
    side = model.model.visual.num_grid_per_side
    table.data = table.data.view(side, side, -1).transpose(0, 1).reshape(table.shape).clone()


def deepstack_edit(change: Callable[[list], list | None]) -> Edit:
    def edit(model: Model, _: ExitStack) -> None:
        text = model.model.language_model
        forward = text.forward

        def changed(*args, deepstack_visual_embeds=None, **kwargs):
            return forward(*args, deepstack_visual_embeds=change(deepstack_visual_embeds), **kwargs)

        text.forward = changed

    return edit


def deepstack_before_layer(model: Model, _: ExitStack) -> None:
    """Each addition to the layer's input instead of its output: the first shifts to the embeddings."""
    text, layers = model.model.language_model, model.model.language_model.layers
    forward, pending = text.forward, {}

    def remember(*args, visual_pos_masks=None, deepstack_visual_embeds=None, **kwargs):
        pending.update(mask=visual_pos_masks, features=deepstack_visual_embeds)
        return forward(*args, **kwargs)

    def add(index: int):
        run = layers[index].forward

        def with_addition(hidden_states, **kwargs):
            return run(text._deepstack_process(hidden_states, pending["mask"], pending["features"][index]), **kwargs)

        layers[index].forward = with_addition

    text.forward = remember
    for index in range(len(model.model.visual.deepstack_visual_indexes)):
        add(index)


def plain_relu(model: Model, _: ExitStack) -> None:
    for layer in model.model.language_model.layers:
        layer.mlp.activation_fn = torch.nn.ReLU()


def exact_gelu_of_siglip(model: Model, _: ExitStack) -> None:
    for layer in model.model.visual.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU()


def transposed_places(model: Model, _: ExitStack) -> None:
    table = model.model.visual.embeddings.position_embedding.weight
    side = round(len(table) ** 0.5)
    table.data = table.data.view(side, side, -1).transpose(0, 1).reshape(table.shape).clone()


def interpolated(**changed: bool) -> Edit:
    original = torch.nn.functional.interpolate

    def edit(_: Model, stack: ExitStack) -> None:
        other = patch.object(modeling_cosmos3_edge.F, "interpolate", lambda *a, **k: original(*a, **(k | changed)))
        stack.enter_context(other)

    return edit


without_antialias = interpolated(antialias=False)
by_corners = interpolated(align_corners=True)


def no_last_norm(model: Model, _: ExitStack) -> None:
    model.model.visual.post_layernorm = torch.nn.Identity()


def colours_first(model: Model, _: ExitStack) -> None:
    weight = model.model.visual.embeddings.patch_embedding.weight
    weight.data = weight.data.view(len(weight), 3, -1).transpose(1, 2).reshape(weight.shape).clone()


def linear_layers(model: Model) -> list[Model]:
    return [layer.linear_attn for layer in model.model.language_model.layers if hasattr(layer, "linear_attn")]


def attending_layers(model: Model) -> list[Model]:
    return [layer.self_attn for layer in model.model.language_model.layers if hasattr(layer, "self_attn")]


def centred_epsilon(model: Model, _: ExitStack) -> None:
    for module in model.model.language_model.modules():
        if isinstance(module, modeling_qwen3_5.Qwen3_5RMSNorm):
            module.eps = 1e-6


def gated_norm_epsilon(model: Model, _: ExitStack) -> None:
    for layer in linear_layers(model):
        layer.norm.variance_epsilon = 1e-6


def whole_norm_weights(model: Model, _: ExitStack) -> None:
    """The weights as they are stored, which are whole elsewhere."""
    for module in model.model.language_model.modules():
        if isinstance(module, modeling_qwen3_5.Qwen3_5RMSNorm):
            module.weight.data -= 1.0


def no_output_gate(model: Model, _: ExitStack) -> None:
    """Gates so large that they are open."""
    for layer in attending_layers(model):
        heads = layer.q_proj.weight.data.view(-1, 2, layer.head_dim, layer.q_proj.in_features)
        heads[:, 1] = 0.0


def gates_behind_queries(model: Model, _: ExitStack) -> None:
    """All queries and then all gates in the projection, where each head has its own two together."""
    for layer in attending_layers(model):
        weight = layer.q_proj.weight
        heads = weight.data.view(2, -1, layer.head_dim, weight.shape[1])
        weight.data = heads.transpose(0, 1).reshape(weight.shape).clone()


def whole_head_rotated(model: Model, _: ExitStack) -> None:
    """Pairs of the whole head's halves, of which the first turn."""
    for layer in attending_layers(model):
        half, turning = layer.head_dim // 2, layer.head_dim // 4
        order = [*range(turning), *range(2 * turning, half + turning), *range(turning, 2 * turning)]
        order += range(half + turning, layer.head_dim)
        for parts, projection in ((2, layer.q_proj), (1, layer.k_proj)):
            weight = projection.weight
            heads = weight.data.view(-1, parts, layer.head_dim, weight.shape[1])
            heads[:, 0] = heads[:, 0, order].clone()


def linear_parameter(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    def edit(model: Model, _: ExitStack) -> None:
        for layer in linear_layers(model):
            parameter = layer.get_parameter(name)
            parameter.data = change(parameter.data)

    return edit


def strided_key_heads(model: Model, _: ExitStack) -> None:
    """Value head h uses key head h % key_heads: the same as reordering the value heads in and out."""
    for layer in linear_layers(model):
        heads, keys, width = layer.num_v_heads, layer.num_k_heads, layer.head_v_dim
        order = torch.tensor(sorted(range(heads), key=lambda head: (head % keys, head)))
        rows = torch.cat([torch.arange(width) + head * width for head in order.tolist()])
        values = layer.in_proj_qkv.weight.data[2 * layer.key_dim :]
        values.copy_(values[rows].clone())
        convolved = layer.conv1d.weight.data[2 * layer.key_dim :]
        convolved.copy_(convolved[rows].clone())
        layer.in_proj_z.weight.data = layer.in_proj_z.weight.data[rows]
        for projection in (layer.in_proj_a, layer.in_proj_b):
            projection.weight.data = projection.weight.data[order]
        layer.A_log.data, layer.dt_bias.data = layer.A_log.data[order], layer.dt_bias.data[order]
        layer.out_proj.weight.data = layer.out_proj.weight.data[:, rows]


SHARED: dict[str, Edit] = {
    "other_rms_norm_eps": text_epsilon,
    "other_vision_norm_eps": vision_epsilon,
    "tanh_gelu_in_merger": merger_tanh_gelu,
    "no_mrope": own_positions(sequential),
    "swapped_axes": rope_wrapped(lambda ids: ids[[0, 2, 1]]),
    "extent_of_one": own_positions(extent_of_one),
}
MISTAKES: dict[str, dict[str, Edit]] = {
    "qwen2_vl": SHARED
    | {
        "interleaved_sections": other_layout(interleaved=True),
        "no_attention_bias": no_attention_bias,
        "no_vision_mlp_bias": no_vision_mlp_bias,
        "gelu_in_blocks": block_plain_gelu,
        "swapped_vision_axes": swapped_vision_axes(modeling_qwen2_vl),
        "images_attend_to_each_other": images_attend_to_each_other(modeling_qwen2_vl),
    },
    "qwen2_5_vl": SHARED
    | {
        "interleaved_sections": other_layout(interleaved=True),
        "no_attention_bias": no_attention_bias,
        "no_vision_mlp_bias": no_vision_mlp_bias,
        "no_windows": all_full,
        "windows_everywhere": all_windowed,
        "raster_windows": raster_order,
        "order_not_restored": order_not_restored,
        "swapped_vision_axes": swapped_vision_axes(modeling_qwen2_5_vl),
        "images_attend_to_each_other": images_attend_to_each_other(modeling_qwen2_5_vl),
    },
    "qwen3_vl": SHARED
    | {
        "other_head_norm_eps": head_norm_epsilon,
        "sections_in_blocks": other_layout(interleaved=False),
        "exact_gelu_in_blocks": block_exact_gelu,
        "no_head_norms": no_head_norms,
        "align_corners_off": align_corners_off,
        "transposed_position_table": transposed_table,
        "no_deepstack": deepstack_edit(lambda features: None),
        "deepstack_reversed": deepstack_edit(lambda features: features[::-1]),
        "deepstack_before_layer": deepstack_before_layer,
        "swapped_vision_axes": swapped_vision_axes(modeling_qwen3_vl),
        "images_attend_to_each_other": images_attend_to_each_other(modeling_qwen3_vl),
    },
    "qwen3_5": {name: edit for name, edit in SHARED.items() if name != "other_rms_norm_eps"}
    | {
        "other_rms_norm_eps": centred_epsilon,
        "other_gated_norm_eps": gated_norm_epsilon,
        "whole_norm_weights": whole_norm_weights,
        "sections_in_blocks": other_layout(interleaved=False),
        "exact_gelu_in_blocks": block_exact_gelu,
        "no_output_gate": no_output_gate,
        "gates_behind_queries": gates_behind_queries,
        "whole_head_rotated": whole_head_rotated,
        "reversed_taps": linear_parameter("conv1d.weight", lambda weight: weight.flip(-1)),
        "no_decay": linear_parameter("A_log", lambda log: log - 30.0),
        "no_decay_bias": linear_parameter("dt_bias", torch.zeros_like),
        "half_written": linear_parameter("in_proj_b.weight", lambda weight: 0.0 * weight),
        "opposite_gates": linear_parameter("in_proj_z.weight", lambda weight: -weight),
        "strided_key_heads": strided_key_heads,
        "align_corners_off": align_corners_off,
        "transposed_position_table": transposed_table,
        "swapped_vision_axes": swapped_vision_axes(modeling_qwen3_5),
        "images_attend_to_each_other": images_attend_to_each_other(modeling_qwen3_5),
    },
}
MISTAKES["cosmos3_omni"] = MISTAKES["qwen3_vl"]
MISTAKES["cosmos3_edge"] = SHARED | {
    "sections_in_blocks": other_layout(interleaved=False),
    "relu_in_decoder": plain_relu,
    "exact_gelu_in_blocks": exact_gelu_of_siglip,
    "transposed_position_table": transposed_places,
    "positions_without_antialias": without_antialias,
    "positions_by_corners": by_corners,
    "no_last_norm": no_last_norm,
    "colours_first": colours_first,
    "images_attend_to_each_other": images_attend_to_each_other(modeling_cosmos3_edge),
}
