"""Makes `families/lfm2_vl/` and `families/lfm2_5_vl/`: LFM2-VL and LFM2.5-VL as published.

The first has a norm in front of the projector and no thumbnail behind tiles, the second has no norm and the thumbnail.
"""

import math
from functools import partial

import family_mistakes as mistakes
import torch
from family_golden import Family, Scene, make_golden, turn, user
from family_hub import FAMILIES, tokenizer_config, write_hub
from family_tokenizers import QWEN2_SPLIT, byte_level
from make_tiny_model import randomise
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoProcessor, Lfm2VlConfig, Lfm2VlForConditionalGeneration, PreTrainedModel

PATCH, FACTOR, TILE = 4, 2, 24
HIDDEN = 48
FIRST = ["<|pad|>", "<|startoftext|>", "<|endoftext|>"]
IMAGE, THUMBNAIL = "<image>", "<|img_thumbnail|>"
START, END = "<|image_start|>", "<|image_end|>"
PLACES = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11)]
MARKUP = ["<|im_start|>", "<|im_end|>", IMAGE, *PLACES, THUMBNAIL, START, END]
TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{{- '<|im_start|>' ~ message.role ~ '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{- '<image>' -}}
{%- elif part.type == 'text' -%}{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
TILES_ONLY = ("tiles_column_by_column",)
SCENES = {
    # 1 x 2 tiles
    "one": Scene(sizes=[(66, 30)], messages=[user(IMAGE, "What is in view?")], seed=0, skip=TILES_ONLY),
    # a small one that is not cut; 2 x 3 tiles
    "two": Scene(sizes=[(20, 22), (66, 40)], messages=[user(IMAGE, IMAGE, "What color is the ball?")], seed=5),
    # neither is cut: more columns of patches than the table of positions has, and more rows
    "long": Scene(
        sizes=[(64, 10), (9, 40)],
        messages=[user(IMAGE, IMAGE, "Should the robot stop?")],
        seed=20,
        skip=TILES_ONLY,
    ),
}
CONVERSATIONS = [
    [user(IMAGE, "What is in view?")],
    [user(IMAGE, IMAGE, "What is in view?")],
    [user("What is in view?", IMAGE)],
    [turn("system", "You are a mobile robot."), user("Should the robot stop?")],
    [user(IMAGE, "What is in view?"), turn("assistant", "a red box"), user("What color is the box?")],
]


def convolutions(model: PreTrainedModel) -> list[nn.Module]:
    return [layer.conv for layer in model.get_decoder().layers if hasattr(layer, "conv")]


def reversed_taps(model: PreTrainedModel) -> None:
    """The newest input multiplied with what is the oldest one's."""
    for module in convolutions(model):
        module.conv.weight.data = module.conv.weight.data.flip(-1)


def narrow_convolution(model: PreTrainedModel) -> None:
    """The oldest input left out."""
    for module in convolutions(model):
        module.conv.weight.data[..., 0] = 0.0


def swapped_gates(model: PreTrainedModel) -> None:
    """The gate behind the convolution in front of it, and the other way round."""
    for module in convolutions(model):
        module.in_proj.weight.data = torch.cat([module.in_proj.weight.data.chunk(3)[i] for i in (1, 0, 2)])


def no_head_norms(model: PreTrainedModel) -> None:
    for layer in mistakes.attentions(model):
        layer.q_layernorm = layer.k_layernorm = nn.Identity()


def no_post_layernorm(model: PreTrainedModel) -> None:
    model.model.vision_tower.post_layernorm = nn.Identity()


def no_antialiasing(model: PreTrainedModel) -> None:
    """The table of positions shrunk without looking at what lies between the places."""
    embeddings = model.model.vision_tower.embeddings
    resize = embeddings.resize_positional_embeddings

    def wrong(*args: object, **kwargs: object) -> torch.Tensor:
        interpolate = nn.functional.interpolate
        nn.functional.interpolate = lambda *a, **k: interpolate(*a, **(k | {"antialias": False}))
        try:
            return resize(*args, **kwargs)
        finally:
            nn.functional.interpolate = interpolate

    embeddings.resize_positional_embeddings = wrong


def no_projector_norm(model: PreTrainedModel) -> None:
    projector = model.model.multi_modal_projector
    projector.use_layer_norm = False


def transposed_pixel_unshuffle(model: PreTrainedModel) -> None:
    """The patches of a square put one behind the other column by column."""
    projector = model.model.multi_modal_projector
    unshuffle = projector.pixel_unshuffle

    def wrong(features: torch.Tensor) -> torch.Tensor:
        squares = unshuffle(features)
        return squares.view(*squares.shape[:3], FACTOR, FACTOR, -1).transpose(3, 4).reshape(squares.shape)

    projector.pixel_unshuffle = wrong


def reordered_tiles(model: PreTrainedModel, parts: int) -> None:
    """The 2 x 3 tiles of the last picture column by column; it has so many parts."""
    order = [0, 2, 4, 1, 3, 5, 6][:parts]
    model_features = model.model.get_image_features

    def wrong(pixel_values: torch.Tensor, **kwargs: object) -> object:
        mixed = torch.cat([pixel_values[:-parts], pixel_values[-parts:][order]])
        return model_features(pixel_values=mixed, **kwargs)

    model.model.get_image_features = wrong


MISTAKES = {
    "other_rms_norm_eps": mistakes.rms_epsilon(1e-2),
    "other_layer_norm_eps": mistakes.layer_norm_epsilon(1e-2),
    "other_rope_theta": mistakes.rope_theta(10000.0),
    "interleaved_rope": mistakes.interleaved_rope,
    "swapped_groups": mistakes.swapped_groups,
    "no_head_norms": no_head_norms,
    "reversed_taps": reversed_taps,
    "narrow_convolution": narrow_convolution,
    "swapped_gates": swapped_gates,
    "exact_gelu_in_tower": mistakes.tower_activation("gelu"),
    "tanh_gelu_in_projector": mistakes.projector_activation("gelu_pytorch_tanh"),
    "no_post_layernorm": no_post_layernorm,
    "transposed_patch_positions": mistakes.transposed_positions(class_token=False),
    "no_antialiasing": no_antialiasing,
    "transposed_pixel_unshuffle": transposed_pixel_unshuffle,
}
LFM2 = {
    "seed": 91,
    "layers": ["conv", "full_attention", "conv", "full_attention"],
    "projector": {},
    "thumbnail": False,
    "mistakes": {
        "no_projector_norm": no_projector_norm,
        "tiles_column_by_column": partial(reordered_tiles, parts=6),
    },
}
LFM2_5 = {
    "seed": 96,
    "layers": ["conv", "conv", "full_attention", "conv"],
    "projector": {"projector_use_layernorm": False},
    "thumbnail": True,
    "mistakes": {"tiles_column_by_column": partial(reordered_tiles, parts=7)},
}


def hub_config(kind: dict, tokenizer: Tokenizer) -> dict:
    """What the published files say, apart from the sizes of this model."""
    return {
        "architectures": ["Lfm2VlForConditionalGeneration"],
        "do_image_splitting": True,
        "downsample_factor": FACTOR,
        "image_token_id": tokenizer.token_to_id(IMAGE),
        "model_type": "lfm2_vl",
        "projector_bias": True,
        "projector_hidden_act": "gelu",
        "projector_hidden_size": 40,
        **kind["projector"],
        "text_config": {
            "architectures": ["Lfm2ForCausalLM"],
            "block_auto_adjust_ff_dim": True,
            "block_dim": HIDDEN,
            "block_ff_dim": 100,
            "block_ffn_dim_multiplier": 1.0,
            "block_multiple_of": 8,
            "block_norm_eps": 1e-3,
            "block_use_swiglu": True,
            "conv_L_cache": 3,
            "conv_bias": False,
            "conv_dim": HIDDEN,
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "hidden_size": HIDDEN,
            "initializer_range": 0.02,
            "intermediate_size": 100,
            "layer_types": kind["layers"],
            "max_position_embeddings": 512,
            "model_type": "lfm2",
            "norm_eps": 1e-3,
            "num_attention_heads": 6,
            "num_heads": 6,
            "num_hidden_layers": len(kind["layers"]),
            "num_key_value_heads": 2,
            "rope_theta": 2500.0,
            "torch_dtype": "float32",
            "use_cache": True,
            "use_pos_enc": True,
            "vocab_size": tokenizer.get_vocab_size() + 3,
        },
        "torch_dtype": "float32",
        "transformers_version": "4.57.0.dev0",
        "use_image_special_tokens": True,
        "vision_config": {
            "attention_dropout": 0.0,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 32,
            "intermediate_size": 56,
            "layer_norm_eps": 1e-3,
            "model_type": "siglip2_vision_model",
            "num_attention_heads": 4,
            "num_channels": 3,
            "num_hidden_layers": 3,
            "num_patches": 64,
            "patch_size": PATCH,
            "torch_dtype": "float32",
            "vision_use_head": False,
        },
        "vision_feature_layer": -1,
    }


def hub_files(kind: dict, tokenizer: Tokenizer) -> dict[str, dict]:
    markers = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    pictures = {
        "image_end_token": END,
        "image_start_token": START,
        "image_thumbnail": THUMBNAIL,
        "image_token": IMAGE,
    }
    return {
        "config.json": hub_config(kind, tokenizer),
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": tokenizer.token_to_id("<|startoftext|>"),
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "pad_token_id": tokenizer.token_to_id("<|pad|>"),
        },
        "tokenizer_config.json": tokenizer_config(
            tokenizer,
            **markers,
            **pictures,
            add_bos_token=True,
            add_eos_token=False,
            extra_special_tokens=pictures,
            legacy=False,
            model_input_names=["input_ids", "attention_mask"],
            model_max_length=512,
            processor_class="Lfm2VlProcessor",
            tokenizer_class="PreTrainedTokenizerFast",
            unk_token=None,
        ),
        "special_tokens_map.json": {**markers, **pictures},
        "preprocessor_config.json": {
            "do_image_splitting": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "downsample_factor": FACTOR,
            "encoder_patch_size": PATCH,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "Lfm2VlImageProcessorFast",
            "image_std": [0.5, 0.5, 0.5],
            "max_image_tokens": 16,
            "max_pixels_tolerance": 1.5,
            "max_tiles": 6,
            "min_image_tokens": 4,
            "min_tiles": 2,
            "processor_class": "Lfm2VlProcessor",
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": TILE, "width": TILE},
            "tile_size": TILE,
            "use_thumbnail": kind["thumbnail"],
        },
        "processor_config.json": {"processor_class": "Lfm2VlProcessor"},
    }


def make(name: str, kind: dict) -> None:
    out = FAMILIES / name
    tokenizer = byte_level(FIRST, MARKUP, 44, QWEN2_SPLIT)
    files = hub_files(kind, tokenizer)
    model = Lfm2VlForConditionalGeneration(Lfm2VlConfig(**files["config.json"])).eval()
    randomise(model, kind["seed"])
    # tied to the head, where rows as large as those of the other families would double the logits' deviation
    model.get_input_embeddings().weight.data *= 3.0 / math.sqrt(HIDDEN)
    weights = {hub_name(key): tensor for key, tensor in model.state_dict().items() if key != "lm_head.weight"}
    write_hub(out, weights, tokenizer, files)
    (out / "chat_template.jinja").write_text(TEMPLATE)
    family = Family(
        out,
        Lfm2VlForConditionalGeneration,
        AutoProcessor.from_pretrained(out),
        "model.multi_modal_projector",
        [IMAGE],
        MISTAKES | kind["mistakes"],
        masks=("pixel_attention_mask",),
    )
    make_golden(family, SCENES, CONVERSATIONS)


def hub_name(name: str) -> str:
    """A tensor's name in the published files."""
    return name.replace("model.vision_tower.", "model.vision_tower.vision_model.")


def main() -> None:
    make("lfm2_vl", LFM2)
    make("lfm2_5_vl", LFM2_5)


if __name__ == "__main__":
    main()
