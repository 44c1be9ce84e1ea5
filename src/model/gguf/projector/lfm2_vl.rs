//! LFM2-VL, LFM2.5-VL. Which of them it is, is told by the norm in front of the connector: the first has one, and no thumbnail behind tiles.

use serde_json::{json, Value as Json};

use super::{vision_config, Kind, IMAGE, VIT};
use crate::model::decoder::lfm2::LFM2;
use crate::model::gguf::decoder::{Paths, OUTPUT};
use crate::model::gguf::spelling::{Cut, Spelling};
use crate::model::gguf::tensors::Form;
use crate::model::gguf::Gguf;
use crate::model::ModelError;

pub const KIND: Kind = Kind {
    name: "lfm2",
    decoders: &[LFM2],
    paths: Paths {
        text: "model.language_model",
        head: "lm_head",
    },
    prefix: "model.",
    names: &[VIT, NAMES],
    cut: &[Cut {
        hub: "vision_tower.vision_model.embeddings.patch_embedding.weight",
        pieces: &["v.patch_embd.weight"],
        form: Form::Patches,
    }],
    unused: &[],
    config,
    processor,
    video_size: None,
    output: "mm.2.weight",
    plain_decoder: false,
};

const NAMES: Spelling = Spelling(&[
    ("mm.input_norm", "multi_modal_projector.layer_norm"),
    ("mm.1", "multi_modal_projector.linear_1"),
    ("mm.2", "multi_modal_projector.linear_2"),
]);

/// Side of the squares of patches that become a token; older files do not say it.
fn factor(projector: &Gguf) -> Result<usize, ModelError> {
    let factor = projector.optional_size("clip.vision.projector.scale_factor")?;
    Ok(factor.unwrap_or(2))
}

fn is_first(projector: &Gguf) -> bool {
    let tensors = &projector.header.tensors;
    tensors.contains_key("mm.input_norm.weight")
}

fn config(projector: &Gguf, decoder: &Gguf) -> Result<Json, ModelError> {
    let Some(image) = decoder.token_id(IMAGE)? else {
        return Err(decoder.fail(format!("the control token {IMAGE} is missing")));
    };
    let rows = |name: &str| Ok::<_, ModelError>(projector.tensor(name)?.dims[0]);
    let mut config = json!({
        "model_type": "lfm2_vl",
        "image_token_id": image,
        "projector_hidden_size": rows("mm.1.weight")?,
        "projector_bias": projector.header.tensors.contains_key("mm.1.bias"),
        "projector_use_layernorm": is_first(projector),
        "downsample_factor": factor(projector)?,
        "tie_word_embeddings": !decoder.header.tensors.contains_key(OUTPUT),
        "vision_config": vision_config(projector)?,
    });
    config["vision_config"]["model_type"] = "siglip2_vision_model".into();
    config["vision_config"]["num_patches"] = rows("v.position_embd.weight")?.into();
    Ok(config)
}

/// Limits and tiles, which the file does not say, are those of the published checkpoints.
fn processor(projector: &Gguf) -> Result<Json, ModelError> {
    Ok(json!({
        "encoder_patch_size": projector.size("clip.vision.patch_size")?,
        "downsample_factor": factor(projector)?,
        "use_thumbnail": !is_first(projector),
    }))
}
