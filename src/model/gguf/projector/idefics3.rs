//! SmolVLM, SmolVLM2, Idefics3.

use serde_json::{json, Value as Json};

use super::{vision_config, Kind, IMAGE, IMAGE_SIZE, TEXT_DECODERS};
use crate::model::gguf::decoder::Paths;
use crate::model::gguf::spelling::Spelling;
use crate::model::gguf::Gguf;
use crate::model::ModelError;

pub const KIND: Kind = Kind {
    name: "idefics3",
    decoders: &TEXT_DECODERS,
    paths: Paths {
        text: "model.text_model",
        head: "lm_head",
    },
    prefix: "",
    names: &[NAMES],
    cut: &[],
    unused: &[],
    config,
    processor,
    video_size: None,
    output: "mm.model.fc.weight",
    plain_decoder: false,
};

const NAMES: Spelling = Spelling(&[
    (
        "v.patch_embd",
        "model.vision_model.embeddings.patch_embedding",
    ),
    (
        "v.position_embd",
        "model.vision_model.embeddings.position_embedding",
    ),
    (
        "v.blk.#.ln1",
        "model.vision_model.encoder.layers.#.layer_norm1",
    ),
    (
        "v.blk.#.ln2",
        "model.vision_model.encoder.layers.#.layer_norm2",
    ),
    (
        "v.blk.#.attn_q",
        "model.vision_model.encoder.layers.#.self_attn.q_proj",
    ),
    (
        "v.blk.#.attn_k",
        "model.vision_model.encoder.layers.#.self_attn.k_proj",
    ),
    (
        "v.blk.#.attn_v",
        "model.vision_model.encoder.layers.#.self_attn.v_proj",
    ),
    (
        "v.blk.#.attn_out",
        "model.vision_model.encoder.layers.#.self_attn.out_proj",
    ),
    (
        "v.blk.#.ffn_up",
        "model.vision_model.encoder.layers.#.mlp.fc1",
    ),
    (
        "v.blk.#.ffn_down",
        "model.vision_model.encoder.layers.#.mlp.fc2",
    ),
    ("v.post_ln", "model.vision_model.post_layernorm"),
    ("mm.model.fc", "model.connector.modality_projection.proj"),
]);

fn config(projector: &Gguf, decoder: &Gguf) -> Result<Json, ModelError> {
    let Some(image) = decoder.token_id(IMAGE)? else {
        return Err(decoder.fail(format!("the control token {IMAGE} is missing")));
    };
    Ok(json!({
        "model_type": "idefics3",
        "image_token_id": image,
        "scale_factor": projector.size("clip.vision.projector.scale_factor")?,
        "vision_config": vision_config(projector)?,
    }))
}

/// Files without the size that pictures go to first are older than the key; the published checkpoints have four tiles there.
fn processor(projector: &Gguf) -> Result<Json, ModelError> {
    let tile = projector.size(IMAGE_SIZE)?;
    let longest = projector.optional_size("clip.vision.preproc_image_size")?;
    Ok(json!({
        "size": { "longest_edge": longest.unwrap_or(tile.saturating_mul(4)) },
        "max_image_size": { "longest_edge": tile },
    }))
}
