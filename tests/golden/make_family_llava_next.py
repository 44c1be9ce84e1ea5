"""Makes `families/llava_next/`: LLaVA-NeXT as published (CLIP tower, tiles, Mistral text), bf16 in two shards."""

import family_mistakes as mistakes
import torch
from family_golden import Family, Scene, make_golden, turn, user
from family_hub import CLIP_MEAN, CLIP_STD, FAMILIES, LLAMA_MARKERS, llava_name, tokenizer_config, write_hub
from family_tokenizers import byte_fallback
from make_tiny_model import randomise
from tokenizers import Tokenizer
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor

OUT = FAMILIES / "llava_next"
SEED = 41
IMAGE_SIZE, PATCH = 24, 6
PINPOINTS = [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]]  # (height, width), the shapes of the published list
MERGED = 64
EXTRA_ROWS = 3  # the vocabulary of the config is larger than the tokenizer's, as in the published checkpoints
TEMPLATE = """{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{- '<<SYS>>\\n' ~ message.content[0].text ~ '\\n<</SYS>>\\n\\n' -}}
{%- elif message.role == 'user' -%}
{{- '[INST] ' -}}
{%- for part in message.content | selectattr('type', 'equalto', 'image') -%}{{- '<image>\\n' -}}{%- endfor -%}
{%- for part in message.content | selectattr('type', 'equalto', 'text') -%}{{- part.text -}}{%- endfor -%}
{{- ' [/INST]' -}}
{%- elif message.role == 'assistant' -%}
{{- ' ' ~ message.content[0].text ~ '</s> ' -}}
{%- else -%}
{{- raise_exception('Roles other than system, user and assistant are not supported') -}}
{%- endif -%}
{%- endfor -%}"""
SCENES = {
    # 1 x 2 tiles (every resolution holds all of the image: the least waste decides) and 3 x 1, neither filled: padding
    # is cut off on both sides
    "two": Scene(
        sizes=[(46, 13), (14, 80)],
        messages=[user("<image>", "<image>", "What color is the ball?")],
        seed=0,
        skip=("tiles_column_by_column",),
    ),
    # 2 x 2 tiles
    "one": Scene(sizes=[(90, 60)], messages=[user("<image>", "What is in view?")], seed=5),
}
CONVERSATIONS = [
    [user("<image>", "What is in view?")],
    [user("<image>", "<image>", "What is in view?")],
    [user("What is in view?", "<image>")],
    [turn("system", "You are a mobile robot."), user("Should the robot stop?")],
    [user("<image>", "What is in view?"), turn("assistant", "a red box"), user("What color is the box?")],
]
MISTAKES = {
    "other_rms_norm_eps": mistakes.rms_epsilon(1e-6),
    "other_layer_norm_eps": mistakes.layer_norm_epsilon(1e-3),
    "other_rope_theta": mistakes.rope_theta(10000.0),
    "interleaved_rope": mistakes.interleaved_rope,
    "swapped_groups": mistakes.swapped_groups,
    "exact_gelu_in_tower": mistakes.tower_activation("gelu"),
    "tanh_gelu_in_projector": mistakes.projector_activation("gelu_pytorch_tanh"),
    "last_vision_layer": mistakes.feature_layer(-1),
    "no_pre_layernorm": mistakes.no_pre_layernorm,
    "transposed_patch_positions": mistakes.transposed_positions(class_token=True),
    "no_newline": mistakes.zero_newline,
    "overview_last": mistakes.overview_last,
    "tiles_column_by_column": mistakes.tiles_column_by_column,
}


def hub_config(tokenizer: Tokenizer) -> dict:
    """What the published files say: no value that is the default of its class, apart from the sizes of this model."""
    vocab = tokenizer.get_vocab_size() + EXTRA_ROWS
    return {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": PINPOINTS,
        "image_token_index": tokenizer.token_to_id("<image>"),
        "model_type": "llava_next",
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["MistralForCausalLM"],
            "head_dim": 12,
            "hidden_size": 48,
            "intermediate_size": 72,
            "max_position_embeddings": 512,
            "model_type": "mistral",
            "num_attention_heads": 6,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-3,
            "rope_theta": 2500.0,
            "sliding_window": None,
            "torch_dtype": "bfloat16",
            "vocab_size": vocab,
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.39.0.dev0",
        "use_image_newline_parameter": True,
        "vision_config": {
            "hidden_size": 32,
            "image_size": IMAGE_SIZE,
            "intermediate_size": 56,
            "model_type": "clip_vision_model",
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "patch_size": PATCH,
            "projection_dim": 24,
            "vocab_size": vocab,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": vocab,
    }


def hub_files(tokenizer: Tokenizer) -> dict[str, dict]:
    return {
        "config.json": hub_config(tokenizer),
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": tokenizer.token_to_id("<pad>"),
        },
        "tokenizer_config.json": tokenizer_config(
            tokenizer,
            **LLAMA_MARKERS,
            add_bos_token=True,
            add_eos_token=False,
            add_prefix_space=True,
            legacy=False,
            model_max_length=512,
            padding_side="left",
            processor_class="LlavaNextProcessor",
            sp_model_kwargs={},
            spaces_between_special_tokens=False,
            tokenizer_class="LlamaTokenizer",
            use_default_system_prompt=False,
        ),
        "special_tokens_map.json": LLAMA_MARKERS,
        "preprocessor_config.json": {
            "aspect_ratio_setting": "anyres",
            "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_grid_pinpoints": PINPOINTS,
            "image_mean": CLIP_MEAN,
            "image_processor_type": "LlavaNextImageProcessor",
            "image_std": CLIP_STD,
            "processor_class": "LlavaNextProcessor",
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": IMAGE_SIZE},
        },
        "processor_config.json": {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": PATCH,
            "processor_class": "LlavaNextProcessor",
            "vision_feature_select_strategy": "default",
        },
        "chat_template.json": {"chat_template": TEMPLATE},
    }


def main() -> None:
    tokenizer = byte_fallback(["<image>", "<pad>"], MERGED, prepend_normalizer=False)
    files = hub_files(tokenizer)
    model = LlavaNextForConditionalGeneration(LlavaNextConfig(**files["config.json"])).eval()
    randomise(model, SEED)
    weights = {llava_name(name): tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    write_hub(OUT, weights, tokenizer, files, shards=2)
    family = Family(
        OUT,
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor.from_pretrained(OUT),
        "model.multi_modal_projector",
        ["<image>"],
        MISTAKES,
    )
    make_golden(family, SCENES, CONVERSATIONS)


if __name__ == "__main__":
    main()
