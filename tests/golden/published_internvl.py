"""Published InternVL3 and InternVL3.5, as converted for transformers."""

from published_models import Published

RENAMED = (
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.", ""),
)
INTERNVIT_300M = {
    "architectures": ["InternVisionModel"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 1024,
    "image_size": [448, 448],
    "initializer_factor": 0.1,
    "initializer_range": 1e-10,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-06,
    "layer_scale_init_value": 0.1,
    "model_type": "internvl_vision",
    "norm_type": "layer_norm",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": [14, 14],
    "projection_dropout": 0.0,
    "torch_dtype": "bfloat16",
    "use_absolute_position_embeddings": True,
    "use_mask_token": False,
    "use_mean_pooling": True,
    "use_qk_norm": False,
}
PREPROCESSOR = {
    "crop_to_patches": False,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "GotOcr2ImageProcessorFast",
    "image_std": [0.229, 0.224, 0.225],
    "max_patches": 12,
    "min_patches": 1,
    "processor_class": "InternVLProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 448, "width": 448},
}
QWEN2_5 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "max_window_layers": 70,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151674,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def internvl(image_token: int, text: dict) -> dict:
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": 256,
        "image_token_id": image_token,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": text,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.0.dev0",
        "vision_config": INTERNVIT_300M,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


NAMES = (
    "as listed for layer 0 of InternVL3_5-2B-HF in a public repository; the rest from transformers, with the same"
    " beginnings (see families/internvl*/fresh/names.json)"
)
TOWER = "the tower from conversion scripts in public repositories"


def internvl3(size: str, parameters: str, **text: int) -> Published:
    return Published(
        hub=f"OpenGVLab/InternVL3-{size}-hf",
        family="internvl",
        dtype="BF16",
        renamed=RENAMED,
        own_head=True,
        config=internvl(151667, QWEN2_5 | text),
        preprocessor=PREPROCESSOR,
        read={
            "config": f"{TOWER} and from transformers' convert_internvl_weights_to_hf.py; the text part from configurations"
            " of this size and of InternVL3-8B quoted in public repositories",
            "names": NAMES,
            "parameters": parameters,
        },
    )


def internvl3_5(size: str, parameters: str, shards: int, **text: int) -> Published:
    return Published(
        hub=f"OpenGVLab/InternVL3_5-{size}-HF",
        family="internvl3_5",
        dtype="BF16",
        renamed=RENAMED,
        shards=shards,
        own_head=True,
        config=internvl(151671, QWEN3 | text),
        preprocessor=PREPROCESSOR,
        read={
            "config": f"{TOWER}; the text part is that of the Qwen3 model of this size, with an output layer of its own",
            "names": NAMES,
            "parameters": parameters,
        },
    )


MODELS = {
    "InternVL3-1B-hf": internvl3(
        "1B",
        "938,193,024, read in a public repository for InternVL2.5-1B, which has the same sizes",
        hidden_size=896,
        intermediate_size=4864,
        num_attention_heads=14,
        num_hidden_layers=24,
        num_key_value_heads=2,
    ),
    "InternVL3-2B-hf": internvl3(
        "2B",
        "2.09 billion, from memory",
        hidden_size=1536,
        intermediate_size=8960,
        num_attention_heads=12,
        num_hidden_layers=28,
        num_key_value_heads=2,
    ),
    "InternVL3_5-1B-HF": internvl3_5(
        "1B",
        "1,060,897,792, read in a public repository, of which 304,012,288 are the tower's and 5,253,120 the projector's",
        shards=1,
        hidden_size=1024,
        intermediate_size=3072,
        max_window_layers=28,
        num_attention_heads=16,
        num_hidden_layers=28,
    ),
    "InternVL3_5-2B-HF": internvl3_5(
        "2B",
        "2.3 billion, read in a public repository",
        shards=1,
        hidden_size=2048,
        intermediate_size=6144,
        max_window_layers=28,
        num_attention_heads=16,
        num_hidden_layers=28,
    ),
    "InternVL3_5-4B-HF": internvl3_5(
        "4B",
        "4.7 billion, read in a public repository",
        shards=2,
        hidden_size=2560,
        intermediate_size=9728,
        max_window_layers=36,
        num_attention_heads=32,
        num_hidden_layers=36,
    ),
    "InternVL3_5-8B-HF": internvl3_5(
        "8B",
        "8.5 billion, read in a public repository",
        shards=4,
        hidden_size=4096,
        intermediate_size=12288,
        max_window_layers=36,
        num_attention_heads=32,
        num_hidden_layers=36,
    ),
}
