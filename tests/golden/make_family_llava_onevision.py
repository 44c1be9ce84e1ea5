"""Makes `families/llava_onevision/`: LLaVA-OneVision as published (SigLIP tower, tiles, video, Qwen2 text)."""

import math

import family_mistakes as mistakes
from family_golden import Family, Scene, make_golden, turn, user
from family_hub import FAMILIES, llava_name, tokenizer_config, write_hub
from family_tokenizers import QWEN2_SPLIT, byte_level
from make_tiny_model import randomise
from tokenizers import Tokenizer, normalizers
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor

OUT = FAMILIES / "llava_onevision"
SEED = 51
IMAGE_SIZE, PATCH = 23, 7  # as 384 and 14: the patches do not cover the last columns and rows
SIDE = IMAGE_SIZE // PATCH
POOLED = math.ceil(SIDE / 2) ** 2
PINPOINTS = [[IMAGE_SIZE * rows, IMAGE_SIZE * columns] for rows in range(1, 7) for columns in range(1, 7)]
HIDDEN = 40
MARKUP = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' ~ message.role ~ ' ' -}}
{%- for part in message.content | selectattr('type', 'equalto', 'image') -%}{{- '<image>\\n' -}}{%- endfor -%}
{%- for part in message.content | selectattr('type', 'equalto', 'video') -%}{{- '<video>\\n' -}}{%- endfor -%}
{%- for part in message.content | selectattr('type', 'equalto', 'text') -%}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- '\\n' ~ part.text -}}{%- endgeneration -%}
{%- else -%}{{- '\\n' ~ part.text -}}{%- endif -%}
{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
TILES_ONLY = ("overview_last", "tiles_column_by_column")


def frames_about(counts: list[int]) -> dict:
    """Every frame has its pooled rows; one row of image_newline ends the video."""
    return {"tokens_per_frame": [POOLED] * (counts[0] // POOLED), "newline_rows": counts[0] % POOLED}


SCENES = {
    # 2 x 3 tiles, padding cut off above and below
    "one": Scene(sizes=[(66, 30)], messages=[user("<image>", "What is in view?")], seed=0, skip=("corners_aligned",)),
    # 5 x 3 tiles, padding cut off left and right; what is left exceeds the maximum by more than 1.1 and is interpolated
    "tall": Scene(sizes=[(58, 115)], messages=[user("<image>", "What color is the box?")], seed=5),
    "two": Scene(
        sizes=[(66, 40), (31, 58)],
        messages=[user("<image>", "<image>", "What color is the ball?")],
        seed=10,
        skip=("corners_aligned", *TILES_ONLY),
    ),
    "frames": Scene(
        sizes=[(64, 48)] * 3,
        messages=[user("<video>", "Should the robot stop?")],
        seed=20,
        video=True,
        skip=TILES_ONLY,
        about=frames_about,
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
MISTAKES = {
    "other_rms_norm_eps": mistakes.rms_epsilon(1e-6),
    "other_layer_norm_eps": mistakes.layer_norm_epsilon(1e-3),
    "other_rope_theta": mistakes.rope_theta(10000.0),
    "interleaved_rope": mistakes.interleaved_rope,
    "swapped_groups": mistakes.swapped_groups,
    "no_qkv_bias": mistakes.zero_bias("language_model"),
    "exact_gelu_in_tower": mistakes.tower_activation("gelu"),
    "tanh_gelu_in_projector": mistakes.projector_activation("gelu_pytorch_tanh"),
    "last_but_one_vision_layer": mistakes.feature_layer(-2),
    "post_layernorm": mistakes.post_layernorm,
    "transposed_patch_positions": mistakes.transposed_positions(class_token=False),
    "no_newline": mistakes.zero_newline,
    "overview_last": mistakes.overview_last,
    "tiles_column_by_column": mistakes.tiles_column_by_column,
    "corners_aligned": mistakes.aligned_corners,
}


def hub_config(tokenizer: Tokenizer) -> dict:
    """What the published files say: no value that is the default of its class, apart from the sizes of this model.

    The embeddings are tied as in the smallest published model: said in text_config alone, denied at the top.
    """
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": PINPOINTS,
        "image_token_index": tokenizer.token_to_id("<image>"),
        "model_type": "llava_onevision",
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "hidden_size": HIDDEN,
            "intermediate_size": 56,
            "max_position_embeddings": 512,
            "max_window_layers": 3,
            "model_type": "qwen2",
            "num_attention_heads": 6,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "rms_norm_eps": 1e-3,
            "rope_theta": 2500.0,
            "sliding_window": 64,
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
            "vocab_size": tokenizer.get_vocab_size() + 3,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.45.0.dev0",
        "use_image_newline_parameter": True,
        "video_token_index": tokenizer.token_to_id("<video>"),
        "vision_aspect_ratio": "anyres_max_9",
        "vision_config": {
            "hidden_size": 32,
            "image_size": IMAGE_SIZE,
            "intermediate_size": 56,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def hub_files(tokenizer: Tokenizer) -> dict[str, dict]:
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    markers = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return {
        "config.json": hub_config(tokenizer),
        "generation_config.json": {"bos_token_id": pad, "eos_token_id": [end, pad], "pad_token_id": pad},
        "tokenizer_config.json": tokenizer_config(
            tokenizer,
            **markers,
            add_prefix_space=False,
            additional_special_tokens=["<|im_start|>", "<|im_end|>"],
            bos_token=None,
            errors="replace",
            model_max_length=512,
            processor_class="LlavaOnevisionProcessor",
            split_special_tokens=False,
            tokenizer_class="Qwen2Tokenizer",
            unk_token=None,
        ),
        "special_tokens_map.json": {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], **markers},
        "preprocessor_config.json": {
            **pixels,
            "do_pad": True,
            "image_grid_pinpoints": PINPOINTS,
            "image_processor_type": "LlavaOnevisionImageProcessor",
        },
        "video_processor/preprocessor_config.json": {**pixels, "image_processor_type": "LlavaOnevisionVideoProcessor"},
        "processor_config.json": {
            "image_token": "<image>",
            "num_image_tokens": SIDE**2,
            "processor_class": "LlavaOnevisionProcessor",
            "video_token": "<video>",
            "vision_feature_select_strategy": "full",
        },
        "chat_template.json": {"chat_template": TEMPLATE},
    }


def main() -> None:
    tokenizer = byte_level([], MARKUP, 40, QWEN2_SPLIT, normalizers.NFC())
    files = hub_files(tokenizer)
    model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(**files["config.json"])).eval()
    randomise(model, SEED)
    # tied to the head, where rows as large as those of the other families would double the logits' deviation
    model.get_input_embeddings().weight.data *= 3.0 / math.sqrt(HIDDEN)
    weights = {llava_name(name): tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    write_hub(OUT, weights, tokenizer, files)
    family = Family(
        OUT,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionProcessor.from_pretrained(OUT),
        "model.multi_modal_projector",
        ["<image>", "<video>"],
        MISTAKES,
    )
    make_golden(family, SCENES, CONVERSATIONS)


if __name__ == "__main__":
    main()
