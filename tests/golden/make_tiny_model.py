"""Makes `tiny_smolvlm/`: a small random SmolVLM checkpoint in the layout of the published ones."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

HERE = Path(__file__).resolve().parent
OUT = HERE / "tiny_smolvlm"
SEED = 14
IMAGE_SIZE, PATCH, SCALE = 48, 8, 3
IMAGE_TOKENS = (IMAGE_SIZE // PATCH // SCALE) ** 2
VOCAB = 312  # larger than the tokenizer's, as in the published checkpoints
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% elif line['type'] == 'video' %}{{ '<video>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
BASE_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
IMAGE_MARKUP = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
CORPUS = [
    "User: Assistant: System: You are a mobile robot. Answer briefly.",
    "Frame from 00:00: Frame from 00:01: What is in view? a red box, the blue ball is on the left.",
    "What color is the box? What is the colour of the ball? Should the robot stop? the robot",
]


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE with single digits, built like SmolLM2's: no post-processor, markup as added special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(BASE_TOKENS) + 256 + 40,
        special_tokens=[special(token) for token in BASE_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([special(token) for token in IMAGE_MARKUP])
    return tokenizer


def special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def make_config(tokenizer: Tokenizer) -> SmolVLMConfig:
    """No value that the arithmetic depends on is a default of its class, and head_dim is not hidden_size / heads."""
    ids = {token: tokenizer.token_to_id(token) for token in BASE_TOKENS + IMAGE_MARKUP}
    return SmolVLMConfig(
        image_token_id=ids["<image>"],
        scale_factor=SCALE,
        tie_word_embeddings=False,
        pad_token_id=ids["<|im_end|>"],
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 56,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "layer_norm_eps": 1e-3,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": VOCAB,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "rms_norm_eps": 1e-3,
            "rope_theta": 2500.0,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
            "bos_token_id": ids["<|im_start|>"],
            "eos_token_id": ids["<end_of_utterance>"],
            "pad_token_id": ids["<|im_end|>"],
        },
    )


def randomise(model: SmolVLMForConditionalGeneration, seed: int) -> None:
    """Weights large enough that attention is peaked, every bias and norm counts, and logits deviate by about 3."""
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor, std: float, mean: float = 0.0) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + mean)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                normal(parameter, 0.2, mean=1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias"):
                normal(parameter, 0.3)
            elif "embed_tokens" in name or "position_embedding" in name:
                normal(parameter, 1.0)
            elif "lm_head" in name:
                normal(parameter, 3.0 / math.sqrt(parameter.shape[1]))
            else:
                gain = 1.6 if "q_proj" in name or "k_proj" in name else 1.0
                normal(parameter, gain / math.sqrt(parameter[0].numel()))


def hub_style(config: dict) -> dict:
    """The spelling of the published config.json files, which newer library versions read and no longer write."""
    text = config["text_config"]
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    for part in (config, text, config["vision_config"]):
        part.pop("dtype", None)
        part.pop("transformers_version", None)
    config["pad_token_id"] = config.pop("_pad_token_id", None) or text["pad_token_id"]
    return {"architectures": ["SmolVLMForConditionalGeneration"], **config, "torch_dtype": "float32"}


def write_json(name: str, value: dict) -> None:
    (OUT / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    OUT.mkdir(exist_ok=True)
    tokenizer = make_tokenizer()
    config = make_config(tokenizer)
    model = SmolVLMForConditionalGeneration(config).eval()
    randomise(model, SEED)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        OUT / "model.safetensors",
        metadata={"format": "pt"},
    )
    write_json("config.json", hub_style(json.loads(config.to_json_string())))
    text = config.text_config
    ids = {"bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id}
    write_json("generation_config.json", {"_from_model_config": True, **ids})
    tokenizer.save(str(OUT / "tokenizer.json"), pretty=False)
    added = {str(i): token for i, token in tokenizer.get_added_tokens_decoder().items()}
    write_json(
        "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                i: {
                    "content": token.content,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for i, token in added.items()
            },
            "additional_special_tokens": IMAGE_MARKUP[:3],
            "bos_token": "<|im_start|>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "<end_of_utterance>",
            "model_max_length": 512,
            "pad_token": "<|im_end|>",
            "processor_class": "SmolVLMProcessor",
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": "<|endoftext|>",
        },
    )
    write_json(
        "special_tokens_map.json",
        {
            "additional_special_tokens": IMAGE_MARKUP[:3],
            "bos_token": "<|im_start|>",
            "eos_token": "<end_of_utterance>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
        },
    )
    write_json(
        "preprocessor_config.json",
        {
            "do_convert_rgb": True,
            "do_image_splitting": False,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "SmolVLMImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "max_image_size": {"longest_edge": IMAGE_SIZE},
            "processor_class": "SmolVLMProcessor",
            "resample": 1,
            "rescale_factor": 1 / 255,
            "size": {"longest_edge": 2 * IMAGE_SIZE},
        },
    )
    write_json("processor_config.json", {"image_seq_len": IMAGE_TOKENS, "processor_class": "SmolVLMProcessor"})
    write_json("chat_template.json", {"chat_template": CHAT_TEMPLATE})


if __name__ == "__main__":
    main()
