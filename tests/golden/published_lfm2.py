"""Published LFM2-VL and LFM2.5-VL."""

from published_models import HALF, Published

RENAMED = (("model.vision_tower.", "model.vision_tower.vision_model."),)
ATTENTION = (2, 5, 8, 10, 12, 14)
PREPROCESSOR = {
    "do_image_splitting": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "downsample_factor": 2,
    "encoder_patch_size": 16,
    "image_mean": HALF,
    "image_processor_type": "Lfm2VlImageProcessorFast",
    "image_std": HALF,
    "max_image_tokens": 256,
    "max_pixels_tolerance": 2.0,
    "max_tiles": 10,
    "min_image_tokens": 64,
    "min_tiles": 2,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "tile_size": 512,
    "use_thumbnail": True,
}


def lfm2(**sizes: int) -> dict:
    return {
        "architectures": ["Lfm2ForCausalLM"],
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "block_norm_eps": 1e-05,
        "block_use_swiglu": True,
        "conv_L_cache": 3,
        "conv_bias": False,
        "eos_token_id": 7,
        "initializer_range": 0.02,
        "layer_types": ["full_attention" if i in ATTENTION else "conv" for i in range(16)],
        "max_position_embeddings": 128000,
        "model_type": "lfm2",
        "norm_eps": 1e-05,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rope_theta": 1000000.0,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_pos_enc": True,
        "vocab_size": 65536,
        **sizes,
    }


def siglip2(hidden: int, inner: int, layers: int, heads: int) -> dict:
    return {
        "attention_dropout": 0.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "layer_norm_eps": 1e-06,
        "model_type": "siglip2_vision_model",
        "num_attention_heads": heads,
        "num_channels": 3,
        "num_hidden_layers": layers,
        "num_patches": 256,
        "patch_size": 16,
        "torch_dtype": "bfloat16",
        "vision_use_head": False,
    }


def lfm2_vl(text: dict, vision: dict, **projector: object) -> dict:
    return {
        "architectures": ["Lfm2VlForConditionalGeneration"],
        "do_image_splitting": True,
        "downsample_factor": 2,
        "image_token_id": 396,
        "model_type": "lfm2_vl",
        "projector_bias": True,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "torch_dtype": "bfloat16",
        "use_image_special_tokens": True,
        "vision_config": vision,
        "vision_feature_layer": -1,
        **projector,
    }


SMALL = lfm2(block_ff_dim=6656, hidden_size=1024, intermediate_size=6656, num_attention_heads=16)
LARGE = lfm2(block_ff_dim=12288, hidden_size=2048, intermediate_size=12288, num_attention_heads=32)
BASE, SO400M = siglip2(768, 3072, 12, 12), siglip2(1152, 4304, 27, 16)
NAMES = (
    "beginnings quoted in public repositories; the digest of all names and shapes of LFM2.5-VL that a public repository"
    " took from the headers of its files is that of these"
)
PROCESSOR = "the processor's values as LFM2-VL-450M's processor_config.json has them, but for use_thumbnail"

MODELS = {
    "LFM2-VL-450M": Published(
        hub="LiquidAI/LFM2-VL-450M",
        family="lfm2_vl",
        dtype="BF16",
        renamed=RENAMED,
        config=lfm2_vl(SMALL, BASE, projector_hidden_size=2560),
        preprocessor=PREPROCESSOR | {"use_thumbnail": False},
        read={
            "config": "a copy of its first revision in a public repository, with the names of fields that later ones have",
            "names": "as LFM2.5-VL's, with the norm of the projector",
            "parameters": "450 million, read in a public repository",
        },
    ),
    "LFM2.5-VL-450M": Published(
        hub="LiquidAI/LFM2.5-VL-450M",
        family="lfm2_5_vl",
        dtype="BF16",
        renamed=RENAMED,
        config=lfm2_vl(SMALL, BASE, projector_hidden_size=2048, projector_use_layernorm=False),
        preprocessor=PREPROCESSOR,
        read={
            "config": f"sizes quoted in a public repository; {PROCESSOR}",
            "names": NAMES,
            "parameters": "349 tensors, read in a public repository",
        },
    ),
    "LFM2.5-VL-1.6B": Published(
        hub="LiquidAI/LFM2.5-VL-1.6B",
        family="lfm2_5_vl",
        dtype="BF16",
        renamed=RENAMED,
        config=lfm2_vl(LARGE, SO400M, projector_hidden_size=2048, projector_use_layernorm=False),
        preprocessor=PREPROCESSOR,
        file_bytes=3193334216,
        read={
            "config": f"sizes quoted in a public repository; {PROCESSOR}",
            "names": NAMES,
            "parameters": "589 tensors in a file of 3,193,334,216 bytes, read in public repositories",
        },
    ),
}
