"""Makes `families/idefics3/`: the first SmolVLM as published (model_type idefics3, images split into tiles)."""

import math
from collections.abc import Callable

import family_mistakes as mistakes
from family_golden import Family, Scene, make_golden, turn, user
from family_hub import FAMILIES, tokenizer_config, write_hub
from family_tokenizers import SMOLLM_SPLIT, byte_level
from make_tiny_model import randomise
from tokenizers import Tokenizer
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor

OUT = FAMILIES / "idefics3"
SEED = 61
IMAGE_SIZE, PATCH, SCALE = 24, 6, 2
LONGEST_EDGE = 4 * IMAGE_SIZE  # as 2048 and 512
IMAGE_TOKENS = (IMAGE_SIZE // PATCH // SCALE) ** 2
HIDDEN = 36
FIRST = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIAL = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
PLACES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
MARKUP = ["<global-img>", *PLACES, *SPECIAL]
TEMPLATE = """{{- '<|im_start|>' -}}
{%- for message in messages -%}
{{- message.role | capitalize ~ ':' -}}
{%- set first = message.content | first -%}
{%- if first.type != 'image' -%}{{- ' ' -}}{%- endif -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{- '<image>' -}}{%- elif part.type == 'text' -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}
{{- '<end_of_utterance>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"""


def tiled(*grids: tuple[int, int]) -> Callable[[list[int]], dict]:
    """The rows per picture, which the markup divides by tile: grids are rows x columns of tiles, an overview follows."""

    def about(counts: list[int]) -> dict:
        images = [(rows * columns + 1) * IMAGE_TOKENS for rows, columns in grids]
        if sum(images) != sum(counts):
            raise SystemExit(f"idefics3: tiles are not {grids}")
        return {"tokens_per_image": images, "tiles": grids}

    return about


SCENES = {
    "one": Scene(sizes=[(110, 64)], messages=[user("<image>", "What is in view?")], seed=0, about=tiled((3, 4))),
    "two": Scene(
        sizes=[(100, 22), (40, 90)],
        messages=[user("<image>", "<image>", "What color is the ball?")],
        seed=5,
        about=tiled((1, 4), (4, 2)),
    ),
    "frames": Scene(
        sizes=[(64, 48), (64, 48)],
        messages=[user("Frame from 00:00:", "<image>", "Frame from 00:01:", "<image>", "Should the robot stop?")],
        seed=10,
        images_kwargs={"do_image_splitting": False},
    ),
}
CONVERSATIONS = [
    [user("<image>", "What is in view?")],
    [user("<image>", "<image>", "What is in view?")],
    [user("What is in view?", "<image>")],
    [user("Frame from 00:00:", "<image>", "Frame from 00:01:", "<image>", "What is in view?")],
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
    "no_post_layernorm": mistakes.no_post_layernorm,
    "transposed_patch_positions": mistakes.transposed_positions(class_token=False),
    "transposed_pixel_shuffle": mistakes.transposed_pixel_shuffle,
}


def hub_config(tokenizer: Tokenizer) -> dict:
    """What the published files say: no value that is the default of its class, apart from the sizes of this model."""
    vocab = tokenizer.get_vocab_size() + 3
    return {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "image_token_id": tokenizer.token_to_id("<image>"),
        "model_type": "idefics3",
        "scale_factor": SCALE,
        "text_config": {
            "architectures": ["VLlama3ForCausalLM"],
            "bos_token_id": tokenizer.token_to_id("<|im_start|>"),
            "eos_token_id": tokenizer.token_to_id("<end_of_utterance>"),
            "head_dim": 12,
            "hidden_size": HIDDEN,
            "intermediate_size": 56,
            "is_llama_config": True,
            "max_position_embeddings": 512,
            "model_type": "llama",
            "num_attention_heads": 6,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "pad_token_id": tokenizer.token_to_id("<|im_end|>"),
            "pixel_shuffle_factor": SCALE,
            "qk_layer_norms": False,
            "rms_norm_eps": 1e-3,
            "rope_interleaved": False,
            "rope_theta": 2500.0,
            "torch_dtype": "float32",
            "use_resampler": False,
            "vocab_size": vocab,
        },
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "transformers_version": "4.46.0",
        "use_cache": True,
        "vision_config": {
            "hidden_size": 32,
            "image_size": IMAGE_SIZE,
            "intermediate_size": 56,
            "max_image_size": {"longest_edge": IMAGE_SIZE},
            "model_type": "idefics3",
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "patch_size": PATCH,
            "size": {"longest_edge": LONGEST_EDGE},
            "tie_word_embeddings": False,
        },
        "vocab_size": vocab,
    }


def hub_files(tokenizer: Tokenizer) -> dict[str, dict]:
    config = hub_config(tokenizer)
    text = config["text_config"]
    markers = {
        "additional_special_tokens": SPECIAL,
        "bos_token": "<|im_start|>",
        "eos_token": "<end_of_utterance>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    return {
        "config.json": config,
        "generation_config.json": {
            "_from_model_config": True,
            **{name: text[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        },
        "tokenizer_config.json": tokenizer_config(
            tokenizer,
            **markers,
            add_prefix_space=False,
            legacy=False,
            model_max_length=512,
            processor_class="Idefics3Processor",
            tokenizer_class="GPT2Tokenizer",
            truncation_side="left",
            vocab_size=config["vocab_size"],
        ),
        "special_tokens_map.json": markers,
        "preprocessor_config.json": {
            "do_convert_rgb": True,
            "do_image_splitting": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "Idefics3ImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "max_image_size": {"longest_edge": IMAGE_SIZE},
            "processor_class": "Idefics3Processor",
            "resample": 1,
            "rescale_factor": 1 / 255,
            "size": {"longest_edge": LONGEST_EDGE},
        },
        "processor_config.json": {"image_seq_len": IMAGE_TOKENS, "processor_class": "Idefics3Processor"},
        "chat_template.json": {"chat_template": TEMPLATE},
    }


def main() -> None:
    # as in the published one, the two line ends before the overview are one token
    tokenizer = byte_level(FIRST, MARKUP, 32, SMOLLM_SPLIT, more=("\n\n",) * 9)
    files = hub_files(tokenizer)
    model = Idefics3ForConditionalGeneration(Idefics3Config(**files["config.json"])).eval()
    randomise(model, SEED)
    # tied to the head, where rows as large as those of the other families would double the logits' deviation
    model.get_input_embeddings().weight.data *= 3.0 / math.sqrt(HIDDEN)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    write_hub(OUT, weights, tokenizer, files)
    family = Family(
        OUT,
        Idefics3ForConditionalGeneration,
        Idefics3Processor.from_pretrained(OUT),
        "model.connector",
        ["<image>"],
        MISTAKES,
    )
    make_golden(family, SCENES, CONVERSATIONS)


if __name__ == "__main__":
    main()
