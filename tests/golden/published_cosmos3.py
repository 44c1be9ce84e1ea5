"""Published Cosmos 3: pipelines of diffusers, whose transformer holds the decoder and generators, with the tower in a folder of its own."""

from checkpoint_files import EDGE, PIPELINE
from published_models import HALF, Published
from published_qwen import LARGE_TOWER, PREPROCESSOR_3, VIDEO_PREPROCESSOR_3, qwen3_vl

Shapes = dict[str, tuple[str, list[int]]]

TOWER = ["blocks.", "merger.", "patch_embed.", "pos_embed.", "deepstack_merger_list."]
"""Beginnings of the names that lie in vision_encoder/."""


def generators(hidden: int, intermediate: int, layers: int, heads: int, gated: bool, sound: int | None) -> Shapes:
    """What the transformer holds beside, as diffusers' Cosmos3OmniTransformer has it: 8 heads of keys, 128 numbers each."""
    run = f"layers.{{0..{layers - 1}}}."
    bf16 = {
        run + "input_layernorm_moe_gen.weight": [hidden],
        run + "post_attention_layernorm_moe_gen.weight": [hidden],
        run + "self_attn.add_q_proj.weight": [heads * 128, hidden],
        run + "self_attn.add_k_proj.weight": [1024, hidden],
        run + "self_attn.add_v_proj.weight": [1024, hidden],
        run + "self_attn.to_add_out.weight": [hidden, heads * 128],
        run + "self_attn.norm_added_q.weight": [128],
        run + "self_attn.norm_added_k.weight": [128],
        run + "mlp_moe_gen.up_proj.weight": [intermediate, hidden],
        run + "mlp_moe_gen.down_proj.weight": [hidden, intermediate],
        "norm_moe_gen.weight": [hidden],
        "proj_in.weight": [hidden, 192],
        "proj_in.bias": [hidden],
        "proj_out.weight": [192, hidden],
        "proj_out.bias": [192],
    }
    if gated:
        bf16[run + "mlp_moe_gen.gate_proj.weight"] = [intermediate, hidden]
    else:
        bf16[run + "self_attn.k_norm_und_for_gen.weight"] = [128]
    if sound is not None:
        bf16 |= {
            "audio_proj_in.weight": [hidden, sound],
            "audio_proj_in.bias": [hidden],
            "audio_proj_out.weight": [sound, hidden],
            "audio_proj_out.bias": [sound],
            "audio_modality_embed": [hidden],
        }
    actions, domains = 64, 32
    bf16 |= {
        "action_proj_in.fc.weight": [domains, hidden * actions],
        "action_proj_in.bias.weight": [domains, hidden],
        "action_proj_out.fc.weight": [domains, hidden * actions],
        "action_proj_out.bias.weight": [domains, actions],
        "action_modality_embed": [hidden],
    }
    f32 = {
        "time_embedder.linear_1.weight": [hidden, 256],
        "time_embedder.linear_1.bias": [hidden],
        "time_embedder.linear_2.weight": [hidden, hidden],
        "time_embedder.linear_2.bias": [hidden],
    }
    return {name: ("BF16", shape) for name, shape in bf16.items()} | {n: ("F32", shape) for n, shape in f32.items()}


NANO = qwen3_vl(4096, 12288, 36, 32, LARGE_TOWER, tied=False)

MODELS = {
    "Cosmos3-Nano": Published(
        hub="nvidia/Cosmos3-Nano",
        family="cosmos3_omni",
        dtype="BF16",
        shards=7,
        patterns=tuple(PIPELINE),
        folders={"vision_encoder": TOWER},
        config=NANO
        | {
            "architectures": ["Cosmos3ForConditionalGeneration"],
            "model_type": "cosmos3_omni",
            "allow_patterns_overrides": ["transformer/*.safetensors", "vision_encoder/*.safetensors"],
        },
        preprocessor=PREPROCESSOR_3,
        video_preprocessor=VIDEO_PREPROCESSOR_3,
        buffers=generators(4096, 12288, 36, 32, gated=True, sound=64),
        read={
            "config": "the spelling is that of Qwen3-VL-4B, the sizes read in public repositories",
            "names": "conversion_mapping.py of transformers 5.23; those of the generators in diffusers, where the widths of sound and actions "
            "and their element types are not known",
            "parameters": "those of Qwen3-VL-8B; 15.16 G in the transformer, generators among them, read in a public repository",
        },
    ),
    "Cosmos3-Edge": Published(
        hub="nvidia/Cosmos3-Edge",
        family="cosmos3_edge",
        dtype="BF16",
        shards=2,
        patterns=tuple(EDGE),
        folders={"vision_encoder": ["model.visual.", "model.projector."]},
        config={
            "allow_patterns_overrides": ["*/*.safetensors"],
            "architectures": ["Cosmos3EdgeForConditionalGeneration"],
            "image_token_id": 19,
            "model_type": "cosmos3_edge",
            "projector_config": {
                "input_hidden_size": 1152,
                "merger_intermediate_size": 11520,
                "model_type": "cosmos3_edge_projector",
                "out_hidden_size": 2048,
                "spatial_merge_size": 2,
                "use_postshuffle_norm": False,
            },
            "projector_hidden_size": 11520,
            "text_config": {
                "attention_bias": False,
                "head_dim": 128,
                "hidden_act": "relu2",
                "hidden_size": 2048,
                "intermediate_size": 9216,
                "max_position_embeddings": 131072,
                "mlp_bias": False,
                "model_type": "cosmos3_edge_text",
                "num_attention_heads": 16,
                "num_hidden_layers": 28,
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-05,
                "rope_parameters": {"mrope_section": [24, 20, 20], "rope_theta": 100000000.0, "rope_type": "default"},
                "vocab_size": 131072,
            },
            "tie_word_embeddings": False,
            "video_token_id": 18,
            "vision_config": {
                "hidden_act": "gelu_pytorch_tanh",
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "layer_norm_eps": 1e-06,
                "model_type": "cosmos3_edge_vision",
                "num_attention_heads": 16,
                "num_channels": 3,
                "num_hidden_layers": 27,
                "num_patches": 256,
                "patch_size": 16,
                "spatial_merge_size": 2,
            },
            "vision_end_token_id": 21,
            "vision_start_token_id": 20,
        },
        preprocessor=PREPROCESSOR_3
        | {
            "temporal_patch_size": 1,
            "image_processor_type": "Cosmos3EdgeImageProcessor",
            "processor_class": "Cosmos3EdgeProcessor",
        },
        video_preprocessor={
            "size": {"longest_edge": 25165824, "shortest_edge": 4096},
            "patch_size": 16,
            "temporal_patch_size": 1,
            "merge_size": 2,
            "return_metadata": True,
            "image_mean": HALF,
            "image_std": HALF,
            "video_processor_type": "Cosmos3EdgeVideoProcessor",
            "processor_class": "Cosmos3EdgeProcessor",
        },
        buffers=generators(2048, 9216, 28, 16, gated=False, sound=None),
        read={
            "config": "the defaults of transformers' Cosmos3EdgeConfig, spelled as the converter of diffusers writes it",
            "names": "conversion_mapping.py of transformers 5.23; those of the generators in diffusers and in public repositories",
            "parameters": "2.4 G, 443 tensors of tower and projector, read in public repositories",
        },
    ),
}
