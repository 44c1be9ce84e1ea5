"""Makes `families/internvl/` and `families/internvl3_5/`: InternVL3 and InternVL3.5 as published for transformers.

The first has the tower of the small models (InternViT-300M: layer norms, biases of queries, keys and values) and a Qwen2 decoder, the
second that of the 38B model (InternViT-6B: RMS norms, queries and keys normalised) and a Qwen3 decoder.
"""

import family_mistakes as mistakes
import torch
from family_golden import Family, Scene, make_golden, turn, user
from family_hub import FAMILIES, llava_name, tokenizer_config, write_hub
from family_tokenizers import QWEN2_SPLIT, byte_level
from make_tiny_model import randomise
from tokenizers import Tokenizer, normalizers
from transformers import AutoProcessor, InternVLConfig, InternVLForConditionalGeneration, PreTrainedModel
from transformers.utils import logging

logging.set_verbosity_error()  # that the output layer is not tied is said at every load

IMAGE_SIZE, PATCH = 24, 6
IMAGE_TOKENS = (IMAGE_SIZE // PATCH // 2) ** 2
IMAGE, VIDEO = "<IMG_CONTEXT>", "<video>"
MARKUP = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", IMAGE]
MARKUP += ["<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>", VIDEO]
CORPUS = ("Frame1: Frame2: Frame3: Frame4:",)
TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' ~ message.role ~ '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{- '<IMG_CONTEXT>\\n' -}}
{%- elif part.type == 'video' -%}{{- '<video>\\n' -}}
{%- elif part.type == 'text' -%}{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TILES_ONLY = ("overview_first", "tiles_column_by_column")
SCENES = {
    # 1 x 2 tiles and the whole
    "one": Scene(sizes=[(66, 30)], messages=[user("<image>", "What is in view?")], seed=0, skip=(TILES_ONLY[1],)),
    # a small one that is not cut; 2 x 3 tiles and the whole
    "two": Scene(sizes=[(20, 22), (66, 40)], messages=[user("<image>", "<image>", "What color is the ball?")], seed=5),
    "frames": Scene(
        sizes=[(64, 48)] * 3,
        messages=[user("<video>", "Should the robot stop?")],
        seed=20,
        video=True,
        skip=TILES_ONLY,
    ),
}
CONVERSATIONS = [
    [user("<image>", "What is in view?")],
    [user("<image>", "<image>", "What is in view?")],
    [user("What is in view?", "<image>")],
    [user("<video>", "What is in view?")],
    [turn("system", "You are a mobile robot."), user("Should the robot stop?")],
    [user("<image>", "What is in view?"), turn("assistant", "a red box"), user("What color is the box?")],
]


def transposed_positions(model: PreTrainedModel) -> None:
    """The vision position table read column by column."""
    table = model.model.vision_tower.embeddings.position_embeddings
    side = IMAGE_SIZE // PATCH
    square = table.data[:, 1:].view(1, side, side, -1).transpose(1, 2).reshape(1, side * side, -1)
    table.data = torch.cat([table.data[:, :1], square], dim=1)


def no_layer_scale(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if "lambda_" in name:
            parameter.data.fill_(1.0)


def no_class_token(model: PreTrainedModel) -> None:
    """The patches do not see the class token."""
    for layer in model.model.vision_tower.encoder.layer:
        forward = layer.forward
        layer.forward = lambda x, forward=forward: torch.cat([x[:, :1], forward(x[:, 1:])], dim=1)


def no_projector_norm(model: PreTrainedModel) -> None:
    model.model.multi_modal_projector.layer_norm = torch.nn.Identity()


def projector_norm_epsilon(model: PreTrainedModel) -> None:
    """That of the tower's norms in the projector, where it is 1e-5 whatever the configuration says."""
    model.model.multi_modal_projector.layer_norm.eps = model.config.vision_config.layer_norm_eps


def transposed_pixel_shuffle(model: PreTrainedModel) -> None:
    """The patches of a block put one behind the other column by column."""
    shuffle = model.model.pixel_shuffle

    def wrong(features: torch.Tensor, scale_factor: float) -> torch.Tensor:
        blocks = shuffle(features, scale_factor)
        return blocks.view(*blocks.shape[:3], 2, 2, -1).transpose(3, 4).reshape(blocks.shape)

    model.model.pixel_shuffle = wrong


def reordered_tiles(order: list[int]) -> mistakes.Edit:
    """The last tiles of the prompt, as many as `order` has, in that order."""

    def edit(model: PreTrainedModel) -> None:
        tower = model.model.vision_tower
        forward = tower.forward

        def wrong(pixel_values: torch.Tensor, **kwargs: object) -> object:
            last = pixel_values[-len(order) :][order] if len(pixel_values) >= len(order) else pixel_values.flip(0)
            return forward(pixel_values=torch.cat([pixel_values[: -len(order)], last]), **kwargs)

        tower.forward = wrong

    return edit


MISTAKES = {
    "other_rms_norm_eps": mistakes.rms_epsilon(1e-2),
    "other_layer_norm_eps": mistakes.layer_norm_epsilon(1e-2),
    "other_rope_theta": mistakes.rope_theta(10000.0),
    "interleaved_rope": mistakes.interleaved_rope,
    "swapped_groups": mistakes.swapped_groups,
    "tanh_gelu_in_tower": mistakes.tower_activation("gelu_pytorch_tanh"),
    "tanh_gelu_in_projector": mistakes.projector_activation("gelu_pytorch_tanh"),
    "transposed_patch_positions": transposed_positions,
    "no_layer_scale": no_layer_scale,
    "no_class_token": no_class_token,
    "no_projector_norm": no_projector_norm,
    "projector_norm_eps_of_the_tower": projector_norm_epsilon,
    "transposed_pixel_shuffle": transposed_pixel_shuffle,
    "overview_first": reordered_tiles([6, 0, 1, 2, 3, 4, 5]),
    "tiles_column_by_column": reordered_tiles([0, 2, 4, 1, 3, 5, 6]),
}
INTERNVL3 = {
    "seed": 71,
    "hidden": 48,
    "more_embeddings": -1,  # as published: <video>, the last token, has none
    "text": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_window_layers": 70,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "rope_theta": 2500.0,
    },
    "vision": {"attention_bias": True, "norm_type": "layer_norm", "use_qk_norm": False},
    "mistakes": {
        "no_qkv_bias": mistakes.zero_bias("language_model"),
        "no_qkv_bias_in_tower": mistakes.zero_bias("_proj"),
    },
}
INTERNVL3_5 = {
    "seed": 72,
    "hidden": 40,
    "more_embeddings": 3,
    "text": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 16,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_window_layers": 36,
        "rope_scaling": None,
        "rope_theta": 2500.0,
    },
    "vision": {"attention_bias": False, "norm_type": "rms_norm", "use_qk_norm": True},
    "mistakes": {},
}


def hub_config(kind: dict, tokenizer: Tokenizer) -> dict:
    """What the published files say: nothing at the top of the output layer, which is one of its own."""
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": IMAGE_TOKENS,
        "image_token_id": tokenizer.token_to_id(IMAGE),
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": {
            "attention_dropout": 0.0,
            "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "hidden_act": "silu",
            "hidden_size": kind["hidden"],
            "initializer_range": 0.02,
            "intermediate_size": 56,
            "max_position_embeddings": 512,
            "num_hidden_layers": 3,
            "rms_norm_eps": 1e-3,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": tokenizer.get_vocab_size() + kind["more_embeddings"],
            **kind["text"],
        },
        "torch_dtype": "float32",
        "transformers_version": "4.52.0.dev0",
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "attention_dropout": 0.0,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "hidden_size": 32,
            "image_size": [IMAGE_SIZE, IMAGE_SIZE],
            "initializer_factor": 0.1,
            "initializer_range": 1e-10,
            "intermediate_size": 56,
            "layer_norm_eps": 1e-3,
            "layer_scale_init_value": 0.1,
            "model_type": "internvl_vision",
            "num_attention_heads": 4,
            "num_channels": 3,
            "num_hidden_layers": 3,
            "patch_size": [PATCH, PATCH],
            "projection_dropout": 0.0,
            "torch_dtype": "float32",
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            **kind["vision"],
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def hub_files(kind: dict, tokenizer: Tokenizer) -> dict[str, dict]:
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "processor_class": "InternVLProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    pictures = {
        "context_image_token": IMAGE,
        "end_image_token": "</img>",
        "start_image_token": "<img>",
        "video_token": VIDEO,
    }
    markers = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return {
        "config.json": hub_config(kind, tokenizer),
        "generation_config.json": {"eos_token_id": [end, pad], "pad_token_id": pad},
        "tokenizer_config.json": tokenizer_config(
            tokenizer,
            **markers,
            **pictures,
            add_prefix_space=False,
            additional_special_tokens=MARKUP[1:],
            bos_token=None,
            errors="replace",
            extra_special_tokens=pictures,
            model_max_length=512,
            processor_class="InternVLProcessor",
            split_special_tokens=False,
            tokenizer_class="Qwen2Tokenizer",
            unk_token=None,
        ),
        "special_tokens_map.json": {"additional_special_tokens": MARKUP[1:], **markers, **pictures},
        "preprocessor_config.json": {
            **pixels,
            "crop_to_patches": False,
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "max_patches": 12,
            "min_patches": 1,
        },
        "video_preprocessor_config.json": {
            **pixels,
            "do_sample_frames": False,
            "initial_shift": True,
            "video_processor_type": "InternVLVideoProcessor",
        },
        "processor_config.json": {"image_seq_length": IMAGE_TOKENS, "processor_class": "InternVLProcessor"},
        "chat_template.json": {"chat_template": TEMPLATE},
    }


def make(name: str, kind: dict) -> None:
    out = FAMILIES / name
    tokenizer = byte_level([], MARKUP, 44, QWEN2_SPLIT, normalizers.NFC(), CORPUS)
    files = hub_files(kind, tokenizer)
    # today's class ties the output layer where the file does not say so
    config = InternVLConfig(**files["config.json"], tie_word_embeddings=False)
    model = InternVLForConditionalGeneration(config).eval()
    randomise(model, kind["seed"])
    with torch.no_grad():
        generator = torch.Generator().manual_seed(kind["seed"])
        for parameter_name, parameter in model.named_parameters():
            if "lambda_" in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + 0.7)
            elif "cls_token" in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    weights = {hub_name(key): tensor for key, tensor in model.state_dict().items()}
    write_hub(out, weights, tokenizer, files)
    family = Family(
        out,
        InternVLForConditionalGeneration,
        AutoProcessor.from_pretrained(out),
        "model.multi_modal_projector",
        [IMAGE],
        MISTAKES | kind["mistakes"],
    )
    make_golden(family, SCENES, CONVERSATIONS)


def hub_name(name: str) -> str:
    """A tensor's name in the published files: as in the LLaVA families, but for the tower, which stands alone."""
    return llava_name(name).replace("vision_tower.vision_model.", "vision_tower.")


def main() -> None:
    make("internvl", INTERNVL3)
    make("internvl3_5", INTERNVL3_5)


if __name__ == "__main__":
    main()
