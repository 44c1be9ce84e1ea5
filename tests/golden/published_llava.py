"""Published LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision, as converted for transformers."""

from published_models import CLIP_MEAN, CLIP_STD, HALF, Published

RENAMED = (
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.", ""),
)
CLIP = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
VICUNA = {
    "_name_or_path": "lmsys/vicuna-7b-v1.5",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "torch_dtype": "float16",
    "vocab_size": 32064,
}
MISTRAL = {
    "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
    "architectures": ["MistralForCausalLM"],
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "vocab_size": 32064,
}
CLIP_PIXELS = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}
NEXT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION_PINPOINTS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]


def llava_next(text: dict) -> dict:
    return {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": NEXT_PINPOINTS,
        "image_token_index": 32000,
        "model_type": "llava_next",
        "projector_hidden_act": "gelu",
        "text_config": text,
        "torch_dtype": "float16",
        "transformers_version": "4.39.0.dev0",
        "use_image_newline_parameter": True,
        "vision_config": CLIP,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    }


def llava_onevision(text: dict) -> dict:
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": ONEVISION_PINPOINTS,
        "image_token_index": 151646,
        "model_type": "llava_onevision",
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "model_type": "qwen2",
            "rope_theta": 1000000.0,
            "torch_dtype": "bfloat16",
            **text,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.45.0.dev0",
        "use_image_newline_parameter": True,
        "video_token_index": 151647,
        "vision_aspect_ratio": "anyres_max_9",
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 384,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 26,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


NEXT_PREPROCESSOR = {
    "aspect_ratio_setting": "anyres",
    **CLIP_PIXELS,
    "image_grid_pinpoints": NEXT_PINPOINTS,
    "image_processor_type": "LlavaNextImageProcessor",
    "processor_class": "LlavaNextProcessor",
}
ONEVISION_PREPROCESSOR = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_grid_pinpoints": ONEVISION_PINPOINTS,
    "image_mean": HALF,
    "image_processor_type": "LlavaOnevisionImageProcessor",
    "image_std": HALF,
    "processor_class": "LlavaOnevisionProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 384, "width": 384},
}
NAMES = "transformers, with the beginnings that the converted files have (see families/llava*/fresh/names.json)"

MODELS = {
    "llava-1.5-7b-hf": Published(
        hub="llava-hf/llava-1.5-7b-hf",
        family="llava",
        dtype="F16",
        shards=3,
        renamed=RENAMED,
        config={
            "architectures": ["LlavaForConditionalGeneration"],
            "ignore_index": -100,
            "image_token_index": 32000,
            "model_type": "llava",
            "pad_token_id": 32001,
            "projector_hidden_act": "gelu",
            "text_config": VICUNA,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "transformers_version": "4.36.0.dev0",
            "vision_config": CLIP,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "vocab_size": 32064,
        },
        preprocessor={**CLIP_PIXELS, "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor"},
        read={
            "config": "read as quoted in several public repositories",
            "names": NAMES,
            "parameters": "7,063,427,072, read in public repositories",
        },
    ),
    "llava-v1.6-mistral-7b-hf": Published(
        hub="llava-hf/llava-v1.6-mistral-7b-hf",
        family="llava_next",
        dtype="F16",
        shards=4,
        renamed=RENAMED,
        config=llava_next(MISTRAL),
        preprocessor=NEXT_PREPROCESSOR,
        read={
            "config": "read as quoted in TensorRT-LLM's tests (test_modeling_llava_next.py), which say what they changed",
            "names": NAMES,
            "parameters": "7.57 billion, from memory",
        },
    ),
    "llava-v1.6-vicuna-7b-hf": Published(
        hub="llava-hf/llava-v1.6-vicuna-7b-hf",
        family="llava_next",
        dtype="F16",
        shards=3,
        renamed=RENAMED,
        config=llava_next(VICUNA),
        preprocessor=NEXT_PREPROCESSOR,
        read={
            "config": "from memory: the text part of llava-1.5-7b-hf, the rest as llava-v1.6-mistral-7b-hf",
            "names": NAMES,
            "parameters": "7.06 billion, from memory",
        },
    ),
    "llava-onevision-qwen2-0.5b-ov-hf": Published(
        hub="llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        family="llava_onevision",
        dtype="F16",
        renamed=RENAMED,
        config=llava_onevision(
            {
                "_name_or_path": "Qwen/Qwen2-0.5B-Instruct",
                "hidden_size": 896,
                "intermediate_size": 4864,
                "max_window_layers": 24,
                "num_attention_heads": 14,
                "num_hidden_layers": 24,
                "num_key_value_heads": 2,
                "sliding_window": 32768,
                "tie_word_embeddings": True,
                "vocab_size": 152000,
            }
        ),
        preprocessor=ONEVISION_PREPROCESSOR,
        read={
            "config": "from memory; the image token and the tower's layers also in public repositories",
            "names": f"{NAMES}; that there is no output layer, from memory",
            "parameters": "0.89 billion, from memory",
        },
    ),
    "llava-onevision-qwen2-7b-ov-hf": Published(
        hub="llava-hf/llava-onevision-qwen2-7b-ov-hf",
        family="llava_onevision",
        dtype="F16",
        shards=4,
        renamed=RENAMED,
        config=llava_onevision(
            {
                "_name_or_path": "Qwen/Qwen2-7B-Instruct",
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "max_window_layers": 28,
                "num_attention_heads": 28,
                "num_hidden_layers": 28,
                "num_key_value_heads": 4,
                "sliding_window": 131072,
                "vocab_size": 152128,
            }
        ),
        preprocessor=ONEVISION_PREPROCESSOR,
        read={
            "config": "from memory; the layers of both parts also in a public repository",
            "names": NAMES,
            "parameters": "8.03 billion, from memory",
        },
    ),
}
