"""The tiny Qwen-VL checkpoints: configs in the spelling of the published files, and their chat formats."""

from dataclasses import replace

from checkpoint_files import EDGE, PIPELINE, substituted
from qwen_checkpoint import Family

# images and videos in a turn, numbered if asked for; the format's facts, not its published text
MEDIA = (
    "{%- macro media(kind, number) -%}"
    "{%- if add_vision_id -%}{{ ('Picture ' if kind == 'image' else 'Video ') ~ number ~ ': ' }}{%- endif -%}"
    "<|vision_start|><|{{ kind }}_pad|><|vision_end|>"
    "{%- endmacro -%}"
    "{%- set seen = namespace(image=0, video=0) -%}"
)
PARTS = (
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}"
    "{%- set seen.image = seen.image + 1 -%}{{ media('image', seen.image) }}"
    "{%- elif part.type == 'video' or 'video' in part -%}"
    "{%- set seen.video = seen.video + 1 -%}{{ media('video', seen.video) }}"
    "{%- elif 'text' in part -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}"
)
TURN = (
    "{{ '<|im_start|>' ~ message.role ~ '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}" + PARTS + "{%- endif -%}"
    "{{ '<|im_end|>\\n' }}"
)
REPLY = "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
TEMPLATE_2_5 = (
    MEDIA
    + "{%- if messages[0].role != 'system' -%}"
    + "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif -%}"
    + "{%- for message in messages -%}"
    + TURN
    + "{%- endfor -%}"
    + REPLY
)
TEMPLATE_3 = (
    MEDIA
    + "{%- for message in messages -%}"
    + "{%- if message.role not in ['system', 'user', 'assistant'] -%}"
    + "{{ raise_exception('unknown role ' ~ message.role) }}{%- endif -%}"
    + TURN
    + "{%- endfor -%}"
    + REPLY
)
SPECIAL_IDS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
GENERATION = {
    "bos_token_id": "<|endoftext|>",
    "pad_token_id": "<|endoftext|>",
    "do_sample": True,
    "eos_token_id": ["<|im_end|>", "<|endoftext|>"],
}

QWEN2_VL = Family(
    name="qwen2_vl",
    seed=5,
    config={
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|im_end|>",
        **SPECIAL_IDS,
        "vision_token_id": "<|vision_pad|>",
        "hidden_act": "silu",
        "hidden_size": 72,
        "initializer_range": 0.02,
        "intermediate_size": 44,
        "max_position_embeddings": 1024,
        "max_window_layers": 2,
        "model_type": "qwen2_vl",
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-3,
        "rope_theta": 2500.0,
        "sliding_window": 64,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 2,
            "embed_dim": 32,
            "mlp_ratio": 3,
            "num_heads": 2,
            "in_chans": 3,
            "hidden_size": 72,
            "patch_size": 3,
            "spatial_merge_size": 2,
            "spatial_patch_size": 3,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 3]},
        "vocab_size": 296,
    },
    generation={**GENERATION, "temperature": 0.01, "top_p": 0.001, "top_k": 1},
    preprocessor={
        "min_pixels": 700,
        "max_pixels": 1260,
        "patch_size": 3,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    },
    template=TEMPLATE_2_5,
    renamed={"model.language_model.": "model.", "model.visual.": "visual."},
)

QWEN2_5_VL = Family(
    name="qwen2_5_vl",
    seed=48,
    config={
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|im_end|>",
        **SPECIAL_IDS,
        "vision_token_id": "<|vision_pad|>",
        "hidden_act": "silu",
        "hidden_size": 60,
        "initializer_range": 0.02,
        "intermediate_size": 44,
        "max_position_embeddings": 1024,
        "max_window_layers": 2,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-3,
        "rope_theta": 2500.0,
        "sliding_window": 64,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 3,
            "hidden_act": "silu",
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_heads": 3,
            "in_chans": 3,
            "out_hidden_size": 60,
            "patch_size": 3,
            "spatial_merge_size": 2,
            "spatial_patch_size": 3,
            "window_size": 18,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 2]},
        "vocab_size": 296,
    },
    generation={**GENERATION, "repetition_penalty": 1.05, "temperature": 1e-6},
    preprocessor={
        "min_pixels": 700,
        "max_pixels": 1260,
        "patch_size": 3,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    },
    template=TEMPLATE_2_5,
    renamed={"model.language_model.": "model.", "model.visual.": "visual."},
)

QWEN3_VL = Family(
    name="qwen3_vl",
    seed=50,
    config={
        "architectures": ["Qwen3VLForConditionalGeneration"],
        **SPECIAL_IDS,
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": "<|endoftext|>",
            "dtype": "float32",
            "eos_token_id": "<|im_end|>",
            "head_dim": 16,
            "hidden_act": "silu",
            "hidden_size": 40,
            "initializer_range": 0.02,
            "intermediate_size": 44,
            "max_position_embeddings": 1024,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": 6,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-3,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
            "rope_theta": 3000,
            "use_cache": True,
            "vocab_size": 296,
        },
        "tie_word_embeddings": False,
        "transformers_version": "4.57.0.dev0",
        "vision_config": {
            "deepstack_visual_indexes": [0, 2],
            "depth": 5,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 16,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 40,
            "model_type": "qwen3_vl",
            "num_heads": 2,
            "num_position_embeddings": 25,
            "out_hidden_size": 40,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    },
    generation={**GENERATION, "top_k": 20, "top_p": 0.8, "temperature": 0.7},
    preprocessor={
        "size": {"longest_edge": 1920, "shortest_edge": 1200},
        "patch_size": 4,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast",
    },
    video={
        "size": {"longest_edge": 19200, "shortest_edge": 1200},
        "patch_size": 4,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        "video_processor_type": "Qwen3VLVideoProcessor",
    },
    template=TEMPLATE_3,
    renamed={},
)


def pipeline(name: str) -> tuple[str, str]:
    """File and name of a weight of Cosmos 3 Nano: the decoder lies in the shards of diffusers' transformer."""
    stored = substituted(name, PIPELINE)
    if name.startswith("model.visual."):
        return "vision_encoder/model.safetensors", stored
    shard = 1 + any(part in stored for part in ("layers.2.", "norm.weight", "lm_head."))
    return f"transformer/diffusion_pytorch_model-{shard:05}-of-00002.safetensors", stored


# The other parts of a pipeline, small.
GENERATOR = {
    **{
        f"layers.{layer}.{part}.weight": shape
        for layer in range(3)
        for part, shape in {
            "input_layernorm_moe_gen": (4,),
            "post_attention_layernorm_moe_gen": (4,),
            "self_attn.add_q_proj": (6, 4),
            "self_attn.add_k_proj": (2, 4),
            "self_attn.add_v_proj": (2, 4),
            "self_attn.to_add_out": (4, 6),
            "self_attn.norm_added_q": (2,),
            "self_attn.norm_added_k": (2,),
            "mlp_moe_gen.gate_proj": (5, 4),
            "mlp_moe_gen.up_proj": (5, 4),
            "mlp_moe_gen.down_proj": (4, 5),
        }.items()
    },
    "norm_moe_gen.weight": (4,),
    "proj_in.weight": (4, 3),
    "proj_in.bias": (4,),
    "proj_out.weight": (3, 4),
    "proj_out.bias": (3,),
    "time_embedder.linear_1.weight": (4, 2),
    "time_embedder.linear_1.bias": (4,),
    "time_embedder.linear_2.weight": (4, 4),
    "time_embedder.linear_2.bias": (4,),
    "audio_proj_in.weight": (4, 2),
    "audio_proj_in.bias": (4,),
    "audio_proj_out.weight": (2, 4),
    "audio_proj_out.bias": (2,),
    "audio_modality_embed": (4,),
    "action_proj_in.fc.weight": (2, 8),
    "action_proj_in.bias.weight": (2, 4),
    "action_proj_out.fc.weight": (2, 8),
    "action_proj_out.bias.weight": (2, 2),
    "action_modality_embed": (4,),
}

COSMOS3_OMNI = replace(
    QWEN3_VL,
    name="cosmos3_omni",
    seed=QWEN3_VL.seed,
    config=QWEN3_VL.config
    | {
        "architectures": ["Cosmos3ForConditionalGeneration"],
        "model_type": "cosmos3_omni",
        "allow_patterns_overrides": ["transformer/*.safetensors", "vision_encoder/*.safetensors"],
    },
    placed=pipeline,
    beside=GENERATOR,
)

# an empty system turn where there is none, no thoughts in answers that have been given, one opened in front of the next
TEMPLATE_EDGE = (
    MEDIA
    + "{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\\n<|im_end|>\\n' }}{%- endif -%}"
    + "{%- for message in messages -%}"
    + "{{ '<|im_start|>' ~ message.role ~ '\\n' }}"
    + "{%- if message.role == 'assistant' -%}{{ '<think></think>' }}{%- endif -%}"
    + "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    + PARTS
    + "{%- endif -%}"
    + "{{ '<|im_end|>\\n' }}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}"
    + "{{ '<think>\\n' if enable_thinking is not defined or enable_thinking else '<think></think>' }}{%- endif -%}"
)


def edge_pipeline(name: str) -> tuple[str, str]:
    """File and name of a weight of Cosmos 3 Edge."""
    if name.startswith(("model.visual.", "model.projector.")):
        return "vision_encoder/model.safetensors", name
    return "transformer/diffusion_pytorch_model-00001-of-00001.safetensors", substituted(name, EDGE)


COSMOS3_EDGE = Family(
    name="cosmos3_edge",
    seed=6,
    config={
        "architectures": ["Cosmos3EdgeForConditionalGeneration"],
        "allow_patterns_overrides": ["*/*.safetensors"],
        **SPECIAL_IDS,
        "model_type": "cosmos3_edge",
        "projector_config": {
            "input_hidden_size": 16,
            "merger_intermediate_size": 52,
            "model_type": "cosmos3_edge_projector",
            "out_hidden_size": 48,
            "spatial_merge_size": 2,
            "use_postshuffle_norm": False,
        },
        "projector_hidden_size": 52,
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": "<|endoftext|>",
            "dtype": "float32",
            "eos_token_id": "<|im_end|>",
            "head_dim": 16,
            "hidden_act": "relu2",
            "hidden_size": 48,
            "initializer_range": 0.02,
            "intermediate_size": 44,
            "max_position_embeddings": 1024,
            "mlp_bias": False,
            "model_type": "cosmos3_edge_text",
            "num_attention_heads": 6,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "pad_token_id": "<|endoftext|>",
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"mrope_section": [4, 2, 2], "rope_theta": 3000, "rope_type": "default"},
            "use_cache": True,
            "vocab_size": 296,
        },
        "tie_word_embeddings": False,
        "vision_config": {
            "attention_dropout": 0.0,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 16,
            "intermediate_size": 40,
            "layer_norm_eps": 1e-3,
            "model_type": "cosmos3_edge_vision",
            "num_attention_heads": 2,
            "num_channels": 3,
            "num_hidden_layers": 3,
            "num_patches": 144,
            "patch_size": 4,
            "spatial_merge_size": 2,
        },
    },
    generation=GENERATION,
    preprocessor=QWEN3_VL.preprocessor
    | {
        "temporal_patch_size": 1,
        "processor_class": "Cosmos3EdgeProcessor",
        "image_processor_type": "Cosmos3EdgeImageProcessor",
    },
    video={
        "size": {"longest_edge": 19200, "shortest_edge": 1200},
        "patch_size": 4,
        "temporal_patch_size": 1,
        "merge_size": 2,
        "return_metadata": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Cosmos3EdgeProcessor",
        "video_processor_type": "Cosmos3EdgeVideoProcessor",
    },
    template=TEMPLATE_EDGE,
    renamed={},
    placed=edge_pipeline,
    beside={name: shape for name, shape in GENERATOR.items() if "gate_proj" not in name and "audio" not in name}
    | {f"layers.{layer}.self_attn.k_norm_und_for_gen.weight": (2,) for layer in range(3)},
)

# in front of an answer a thought without words, unless thoughts are asked for; of those in answers that have been given only the one behind
# the last question is left; blanks around a turn's text are none of it
TEMPLATE_3_5 = (
    MEDIA
    + "{%- set asked = namespace(last=-1) -%}"
    + "{%- for message in messages -%}{%- if message.role == 'user' -%}"
    + "{%- set asked.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    + "{%- if asked.last < 0 -%}{{ raise_exception('nobody asks anything') }}{%- endif -%}"
    + "{%- for message in messages -%}"
    + "{%- if message.role not in ['system', 'user', 'assistant'] or message.role == 'system' and not loop.first -%}"
    + "{{ raise_exception('misplaced role ' ~ message.role) }}{%- endif -%}"
    + "{%- set said -%}{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    + PARTS
    + "{%- endif -%}{%- endset -%}"
    + "{%- set answer = said.split('</think>')[-1]|trim -%}"
    + "{{ '<|im_start|>' ~ message.role ~ '\\n' }}"
    + "{%- if message.role != 'assistant' -%}{{ said|trim }}"
    + "{%- elif loop.index0 > asked.last -%}"
    + "{%- set thought = said.split('</think>')[0].split('<think>')[-1] if '</think>' in said else '' -%}"
    + "{{ '<think>\\n' ~ thought|trim ~ '\\n</think>\\n\\n' ~ answer }}"
    + "{%- else -%}{{ answer }}{%- endif -%}"
    + "{{ '<|im_end|>\\n' }}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n<think>\\n' }}"
    + "{%- if not enable_thinking -%}{{ '\\n</think>\\n\\n' }}{%- endif -%}{%- endif -%}"
)

QWEN3_5 = Family(
    name="qwen3_5",
    seed=63,
    config={
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        **SPECIAL_IDS,
        "model_type": "qwen3_5",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_output_gate": True,
            "dtype": "float32",
            "eos_token_id": "<|im_end|>",
            "full_attention_interval": 4,
            "head_dim": 16,
            "hidden_act": "silu",
            "hidden_size": 40,
            "initializer_range": 0.02,
            "intermediate_size": 44,
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 6,
            "linear_value_head_dim": 12,
            "mamba_ssm_dtype": "float32",
            "max_position_embeddings": 1024,
            "mlp_only_layers": [],
            "model_type": "qwen3_5_text",
            "num_attention_heads": 6,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": [2, 1, 1],
                "partial_rotary_factor": 0.5,
                "rope_theta": 3000,
                "rope_type": "default",
            },
            "use_cache": True,
            "vocab_size": 296,
        },
        "tie_word_embeddings": False,
        "transformers_version": "5.2.0",
        "vision_config": {
            "deepstack_visual_indexes": [],
            "depth": 3,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 16,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 40,
            "model_type": "qwen3_5",
            "num_heads": 2,
            "num_position_embeddings": 25,
            "out_hidden_size": 40,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    },
    generation={**GENERATION, "top_k": 20, "top_p": 0.95, "temperature": 0.6},
    preprocessor=QWEN3_VL.preprocessor,
    video=QWEN3_VL.video,
    template=TEMPLATE_3_5,
    not_special=("<think>", "</think>"),
    renamed={},
)
