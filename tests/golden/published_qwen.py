"""Published Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5."""

from published_models import CLIP_MEAN, CLIP_STD, HALF, Published

RENAMED_2_5 = (("model.visual.", "visual."), ("model.language_model.", "model."))


def qwen2_5_vl(hidden: int, layers: int, heads: int, kv_heads: int, **rest: object) -> dict:
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        **rest,
    }


def qwen2_vl(hidden: int, layers: int, heads: int, kv_heads: int, **rest: object) -> dict:
    config = qwen2_5_vl(hidden, layers, heads, kv_heads, **rest)
    tower = {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    }
    same = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"}
    return config | same | {"max_position_embeddings": 32768, "vision_config": tower}


# The towers of the 2B and the 4B, and of the 8B.
SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
LARGE_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}


def qwen3_vl(
    hidden: int, intermediate: int, layers: int, heads: int, tower: dict = SMALL_TOWER, tied: bool = True
) -> dict:
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": 151655,
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "dtype": "bfloat16",
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "initializer_range": 0.02,
            "intermediate_size": intermediate,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5000000,
            "tie_word_embeddings": tied,
            "use_cache": True,
            "vocab_size": 151936,
        },
        "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": 151656,
        "vision_config": {
            "deepstack_visual_indexes": tower["deepstack_visual_indexes"],
            "depth": tower["depth"],
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": tower["hidden_size"],
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": tower["intermediate_size"],
            "model_type": "qwen3_vl",
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
    }


# The towers of the 0.8B, of the 2B and the 4B, and of the 9B.
TOWERS_3_5 = {
    "0.8B": {"depth": 12, "hidden_size": 768, "intermediate_size": 3072, "num_heads": 12},
    "2B": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16},
    "9B": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16},
}


def qwen3_5(hidden: int, intermediate: int, layers: int, heads: int, tower: str, tied: bool = True) -> dict:
    """As many heads of values as of attention two times over, a quarter as many of keys of attention, 16 of linear keys."""
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "image_token_id": 248056,
        "model_type": "qwen3_5",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_output_gate": True,
            "dtype": "bfloat16",
            "eos_token_id": 248044,
            "full_attention_interval": 4,
            "head_dim": 256,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "initializer_range": 0.02,
            "intermediate_size": intermediate,
            "layer_types": [*["linear_attention"] * 3, "full_attention"] * (layers // 4),
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 2 * heads,
            "linear_value_head_dim": 128,
            "mamba_ssm_dtype": "float32",
            "max_position_embeddings": 262144,
            "mlp_only_layers": [],
            "model_type": "qwen3_5_text",
            "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": False,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": heads // 4,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": [11, 11, 10],
                "partial_rotary_factor": 0.25,
                "rope_theta": 10000000,
                "rope_type": "default",
            },
            "tie_word_embeddings": tied,
            "use_cache": True,
            "vocab_size": 248320,
        },
        "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": 248057,
        "vision_config": {
            "deepstack_visual_indexes": [],
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "initializer_range": 0.02,
            "model_type": "qwen3_5",
            "num_position_embeddings": 2304,
            "out_hidden_size": hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **TOWERS_3_5[tower],
        },
        "vision_end_token_id": 248054,
        "vision_start_token_id": 248053,
    }


def several_at_once(hidden: int, intermediate: int, heads: int) -> dict[str, tuple[str, list[int]]]:
    """What the files of Qwen3.5 hold to predict several tokens at once: a layer that attends, and what it is fed through."""
    layer = {
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
        "mlp.gate_proj": [intermediate, hidden],
        "mlp.up_proj": [intermediate, hidden],
        "mlp.down_proj": [hidden, intermediate],
        "self_attn.q_proj": [2 * heads * 256, hidden],
        "self_attn.k_proj": [heads // 4 * 256, hidden],
        "self_attn.v_proj": [heads // 4 * 256, hidden],
        "self_attn.o_proj": [hidden, heads * 256],
        "self_attn.q_norm": [256],
        "self_attn.k_norm": [256],
    }
    shapes = {f"layers.0.{name}": shape for name, shape in layer.items()} | {"fc": [hidden, 2 * hidden]}
    shapes |= {name: [hidden] for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    return {f"mtp.{name}.weight": ("BF16", shape) for name, shape in shapes.items()}


def published_3_5(
    size: str, sizes: tuple[int, int, int, int], tower: str, parameters: str, **rest: object
) -> Published:
    """`sizes`: hidden, within the MLP, layers, heads."""
    hidden, intermediate, _, heads = sizes
    return Published(
        hub=f"Qwen/Qwen3.5-{size}",
        family="qwen3_5",
        dtype="BF16",
        bare=True,
        dtypes={"linear_attn.A_log": "F32", "linear_attn.norm.weight": "F32"},
        config=qwen3_5(*sizes, tower, tied=size != "9B"),
        preprocessor=PREPROCESSOR_3,
        video_preprocessor=VIDEO_PREPROCESSOR_3,
        buffers=several_at_once(hidden, intermediate, heads),
        read={
            "config": "that of the 0.8B as quoted in a public repository; where the others differ from it, read in several",
            "names": "transformers; those of mtp and all element types in listings of the 0.8B in public repositories",
            "parameters": f"{parameters} with those of mtp, read in public repositories",
        },
        **rest,
    )


PREPROCESSOR_2_5 = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}
PREPROCESSOR_3 = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": HALF,
    "image_std": HALF,
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
# read as quoted in several public repositories
VIDEO_PREPROCESSOR_3 = PREPROCESSOR_3 | {
    "size": {"longest_edge": 25165824, "shortest_edge": 4096},
    "video_processor_type": "Qwen3VLVideoProcessor",
}
VIDEO_PREPROCESSOR_3.pop("image_processor_type")
NAMES_2_5 = "transformers, with the beginnings of the hub's files (see families/qwen2_5_vl/fresh/names.json)"

MODELS = {
    "Qwen2-VL-2B-Instruct": Published(
        hub="Qwen/Qwen2-VL-2B-Instruct",
        family="qwen2_vl",
        dtype="BF16",
        shards=2,
        renamed=RENAMED_2_5,
        config=qwen2_vl(
            1536,
            28,
            12,
            2,
            intermediate_size=8960,
            max_window_layers=28,
            tie_word_embeddings=True,
            vocab_size=151936,
        ),
        preprocessor=PREPROCESSOR_2_5 | {"processor_class": "Qwen2VLProcessor"},
        read={
            "config": "the spelling is that of Qwen2.5-VL, the sizes read in public repositories",
            "names": NAMES_2_5,
            "parameters": "2,208,985,600, read in public repositories",
        },
    ),
    "Qwen2.5-VL-3B-Instruct": Published(
        hub="Qwen/Qwen2.5-VL-3B-Instruct",
        family="qwen2_5_vl",
        dtype="BF16",
        shards=2,
        renamed=RENAMED_2_5,
        config=qwen2_5_vl(
            2048,
            36,
            16,
            2,
            intermediate_size=11008,
            max_window_layers=70,
            tie_word_embeddings=True,
            vocab_size=151936,
        ),
        preprocessor=PREPROCESSOR_2_5,
        read={
            "config": "read as quoted, with the printed model, in a public repository",
            "names": NAMES_2_5,
            "parameters": "3,754,622,976 in 824 tensors, read in public repositories",
        },
    ),
    "Qwen2.5-VL-7B-Instruct": Published(
        hub="Qwen/Qwen2.5-VL-7B-Instruct",
        family="qwen2_5_vl",
        dtype="BF16",
        shards=5,
        renamed=RENAMED_2_5,
        config=qwen2_5_vl(
            3584,
            28,
            28,
            4,
            intermediate_size=18944,
            max_window_layers=28,
            tie_word_embeddings=False,
            vocab_size=152064,
        ),
        preprocessor=PREPROCESSOR_2_5,
        read={
            "config": "the spelling is that of the 3B, the sizes read in the printed model in a public repository",
            "names": NAMES_2_5,
            "parameters": "8,292,166,656, of which 676,550,144 in the tower, read in public repositories",
        },
    ),
    "Qwen3-VL-2B-Instruct": Published(
        hub="Qwen/Qwen3-VL-2B-Instruct",
        family="qwen3_vl",
        dtype="BF16",
        file_bytes=4_255_140_312,
        config=qwen3_vl(2048, 6144, 28, 16),
        preprocessor=PREPROCESSOR_3,
        video_preprocessor=VIDEO_PREPROCESSOR_3,
        read={
            "config": "the spelling is that of the 4B, the sizes read in public repositories",
            "names": "transformers",
            "parameters": "2,127,532,032, read in public repositories",
        },
    ),
    "Qwen3-VL-4B-Instruct": Published(
        hub="Qwen/Qwen3-VL-4B-Instruct",
        family="qwen3_vl",
        dtype="BF16",
        shards=2,
        config=qwen3_vl(2560, 9728, 36, 32),
        preprocessor=PREPROCESSOR_3,
        video_preprocessor=VIDEO_PREPROCESSOR_3,
        read={
            "config": "read as quoted in several public repositories",
            "names": "transformers",
            "parameters": "4,437,815,808, read in public repositories",
        },
    ),
    "Qwen3-VL-8B-Instruct": Published(
        hub="Qwen/Qwen3-VL-8B-Instruct",
        family="qwen3_vl",
        dtype="BF16",
        shards=4,
        config=qwen3_vl(4096, 12288, 36, 32, LARGE_TOWER, tied=False),
        preprocessor=PREPROCESSOR_3,
        video_preprocessor=VIDEO_PREPROCESSOR_3,
        read={
            "config": "the spelling is that of the 4B, the sizes read in public repositories",
            "names": "transformers",
            "parameters": "8,767,123,696 in 750 tensors, read in public repositories",
        },
    ),
    "Qwen3.5-0.8B": published_3_5("0.8B", (1024, 3584, 24, 8), "0.8B", "873,438,784", file_bytes=1_746_942_600),
    "Qwen3.5-2B": published_3_5("2B", (2048, 6144, 24, 8), "2B", "2,274,069,824", file_bytes=4_548_221_488),
    "Qwen3.5-4B": published_3_5("4B", (2560, 9216, 32, 16), "2B", "4,659,865,088", shards=2),
    "Qwen3.5-9B": published_3_5("9B", (4096, 12288, 32, 16), "9B", "9,653,104,368", shards=4),
}
