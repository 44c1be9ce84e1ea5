//! Cosmos 3 Nano and Super (arXiv 2606.02800): Qwen3-VL under other names, beside a generator of pictures, videos, sound and actions that shares
//! its embeddings and tower. Only what turns pictures and text into text is read.
//!
//! The files are those of a diffusers pipeline: `model.safetensors.index.json` names tensors in `transformer/` and `vision_encoder/`.

use super::checkpoint::Checkpoint;
use super::family::{FamilyConfig, OtherPart};
use super::qwen3_vl;
use super::weights::Names;
use super::ModelError;

/// The hub's names, which are diffusers' and have no tower or decoder in front, in the spelling of Qwen3-VL's, as conversion_mapping.py of
/// transformers 5.23 has them.
pub const NAMES: Names = Names(&[
    ("layers.", "model.language_model.layers."),
    ("embed_tokens.", "model.language_model.embed_tokens."),
    ("norm.", "model.language_model.norm."),
    ("blocks.", "model.visual.blocks."),
    ("merger.", "model.visual.merger."),
    ("patch_embed.", "model.visual.patch_embed."),
    ("pos_embed.", "model.visual.pos_embed."),
    (
        "deepstack_merger_list.",
        "model.visual.deepstack_merger_list.",
    ),
    (".self_attn.to_q.", ".self_attn.q_proj."),
    (".self_attn.to_k.", ".self_attn.k_proj."),
    (".self_attn.to_v.", ".self_attn.v_proj."),
    (".self_attn.to_out.", ".self_attn.o_proj."),
    (".self_attn.norm_q.", ".self_attn.q_norm."),
    (".self_attn.norm_k.", ".self_attn.k_norm."),
]);

/// What the files hold beside (`_keys_to_ignore_on_load_unexpected` of transformers' model).
pub const OTHER_PARTS: &[OtherPart] = &[
    OtherPart {
        what: "generator of pictures and videos",
        names: &[
            ".add_q_proj.",
            ".add_k_proj.",
            ".add_v_proj.",
            ".to_add_out.",
            ".norm_added_q.",
            ".norm_added_k.",
            ".k_norm_und_for_gen.",
            "_moe_gen.",
            ".proj_in.",
            ".proj_out.",
            ".time_embedder.",
        ],
    },
    OtherPart {
        what: "generator of sound",
        names: &[
            ".audio_proj_in.",
            ".audio_proj_out.",
            ".audio_modality_embed",
        ],
    },
    OtherPart {
        what: "generator of actions",
        names: &[
            ".action_proj_in.",
            ".action_proj_out.",
            ".action_modality_embed",
        ],
    },
];

/// Reads and checks `config.json`.
pub fn open(checkpoint: &Checkpoint) -> Result<Box<dyn FamilyConfig>, ModelError> {
    qwen3_vl::open_beside(checkpoint, OTHER_PARTS)
}
