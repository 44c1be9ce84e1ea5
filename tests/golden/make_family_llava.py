"""Makes `families/llava/`: LLaVA-1.5 as published (CLIP tower, Vicuna text, one tile per image)."""

import family_mistakes as mistakes
from family_golden import Family, Scene, make_golden, turn, user
from family_hub import CLIP_MEAN, CLIP_STD, FAMILIES, LLAMA_MARKERS, llava_name, tokenizer_config, write_hub
from family_tokenizers import byte_fallback
from make_tiny_model import randomise
from tokenizers import Tokenizer
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

OUT = FAMILIES / "llava"
SEED = 31
IMAGE_SIZE, PATCH = 28, 7
MERGED = 64
EXTRA_ROWS = 3  # the vocabulary of the config is larger than the tokenizer's, as in the published checkpoints
TEMPLATE = """{%- for message in messages -%}
{%- if message.role != 'system' -%}{{- message.role | upper ~ ': ' -}}{%- endif -%}
{%- for part in message.content | selectattr('type', 'equalto', 'image') -%}{{- '<image>\\n' -}}{%- endfor -%}
{%- for part in message.content | selectattr('type', 'equalto', 'text') -%}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- part.text ~ ' ' -}}{%- endgeneration -%}
{%- else -%}{{- part.text ~ ' ' -}}{%- endif -%}
{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"""
SCENES = {
    "two": Scene(
        sizes=[(70, 45), (33, 61)],
        messages=[user("<image>", "<image>", "What is in view?")],
        seed=0,
    )
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
    "other_rope_theta": mistakes.rope_theta(500000.0),
    "interleaved_rope": mistakes.interleaved_rope,
    "exact_gelu_in_tower": mistakes.tower_activation("gelu"),
    "tanh_gelu_in_projector": mistakes.projector_activation("gelu_pytorch_tanh"),
    "last_vision_layer": mistakes.feature_layer(-1),
    "post_layernorm": mistakes.post_layernorm,
    "no_pre_layernorm": mistakes.no_pre_layernorm,
    "transposed_patch_positions": mistakes.transposed_positions(class_token=True),
    "no_projector_bias": mistakes.zero_bias("multi_modal_projector"),
}


def hub_config(tokenizer: Tokenizer) -> dict:
    """What the published files say: no value that is the default of its class, apart from the sizes of this model."""
    image, pad = tokenizer.token_to_id("<image>"), tokenizer.token_to_id("<pad>")
    vocab = tokenizer.get_vocab_size() + EXTRA_ROWS
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": image,
        "model_type": "llava",
        "pad_token_id": pad,
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 48,
            "intermediate_size": 72,
            "max_position_embeddings": 512,
            "model_type": "llama",
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "rms_norm_eps": 1e-3,
            "torch_dtype": "float32",
            "vocab_size": vocab,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.36.0.dev0",
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
    config = hub_config(tokenizer)
    return {
        "config.json": config,
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": config["pad_token_id"],
        },
        "tokenizer_config.json": tokenizer_config(
            tokenizer,
            **LLAMA_MARKERS,
            add_bos_token=True,
            add_eos_token=False,
            legacy=True,
            model_max_length=512,
            padding_side="left",
            processor_class="LlavaProcessor",
            sp_model_kwargs={},
            tokenizer_class="LlamaTokenizer",
            use_default_system_prompt=False,
        ),
        "special_tokens_map.json": LLAMA_MARKERS,
        "preprocessor_config.json": {
            "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": CLIP_MEAN,
            "image_processor_type": "CLIPImageProcessor",
            "image_std": CLIP_STD,
            "processor_class": "LlavaProcessor",
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": IMAGE_SIZE},
        },
        "processor_config.json": {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": PATCH,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
        "chat_template.json": {"chat_template": TEMPLATE},
    }


def main() -> None:
    tokenizer = byte_fallback(["<image>", "<pad>"], MERGED, prepend_normalizer=True)
    files = hub_files(tokenizer)
    model = LlavaForConditionalGeneration(LlavaConfig(**files["config.json"])).eval()
    randomise(model, SEED)
    write_hub(OUT, {llava_name(name): tensor for name, tensor in model.state_dict().items()}, tokenizer, files)
    family = Family(
        OUT,
        LlavaForConditionalGeneration,
        LlavaProcessor.from_pretrained(OUT),
        "model.multi_modal_projector",
        ["<image>"],
        MISTAKES,
    )
    make_golden(family, SCENES, CONVERSATIONS)


if __name__ == "__main__":
    main()
