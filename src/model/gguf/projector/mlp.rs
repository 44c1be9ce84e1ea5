//! LLaVA-1.5, and LLaVA-NeXT (LLaVA-1.6), whose files say how pictures are cut into tiles.

use serde_json::{json, Value as Json};

use super::{vision_config, Kind, IMAGE, IMAGE_SIZE, LAYERS, TEXT_DECODERS, VIT};
use crate::model::gguf::decoder::Paths;
use crate::model::gguf::spelling::Spelling;
use crate::model::gguf::value::Value;
use crate::model::gguf::Gguf;
use crate::model::ModelError;

pub const KIND: Kind = Kind {
    name: "mlp",
    decoders: &TEXT_DECODERS,
    paths: Paths {
        text: "language_model.model",
        head: "language_model.lm_head",
    },
    prefix: "",
    names: &[VIT, NAMES],
    cut: &[],
    unused: &[],
    config,
    processor,
    video_size: None,
    output: "mm.2.weight",
    plain_decoder: true,
};

const NAMES: Spelling = Spelling(&[
    (
        "v.class_embd",
        "vision_tower.vision_model.embeddings.class_embedding",
    ),
    ("v.pre_ln", "vision_tower.vision_model.pre_layrnorm"),
    ("mm.0", "multi_modal_projector.linear_1"),
    ("mm.2", "multi_modal_projector.linear_2"),
    ("model.image_newline", "image_newline"),
]);

const FEATURES: &str = "clip.vision.feature_layer";
const MERGE: &str = "clip.vision.mm_patch_merge_type";
const PINPOINTS: &str = "clip.vision.image_grid_pinpoints";

fn config(projector: &Gguf, decoder: &Gguf) -> Result<Json, ModelError> {
    let layers = match projector.optional_elements(FEATURES, "a whole number", Value::whole)? {
        Some(layers) => layers,
        // The first converters left out the layers behind the features.
        None => vec![projector.size(LAYERS)? as u64],
    };
    // A decoder without the token gets one behind its vocabulary.
    let image = match decoder.token_id(IMAGE)? {
        Some(id) => id,
        None => decoder.vocabulary_size()?,
    };
    let mut config = json!({
        "model_type": "llava",
        "image_token_index": image,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": layers,
        "vision_feature_select_strategy": "default",
        "vision_config": vision_config(projector)?,
    });
    config["vision_config"]["model_type"] = "clip_vision_model".into();
    if let Some(pinpoints) = pinpoints(projector)? {
        config["model_type"] = "llava_next".into();
        config["image_grid_pinpoints"] = pinpoints;
    }
    Ok(config)
}

/// As LLaVA and llama.cpp prepare pictures (the published LLaVA-1.5 cuts out the middle): in a square of the mean colour.
fn processor(projector: &Gguf) -> Result<Json, ModelError> {
    let tile = projector.size(IMAGE_SIZE)?;
    let sides = json!({ "height": tile, "width": tile });
    Ok(match pinpoints(projector)? {
        None => json!({ "size": sides, "do_center_crop": false, "do_pad": true }),
        Some(pinpoints) => json!({
            "size": { "shortest_edge": tile }, "do_center_crop": true, "crop_size": sides,
            "image_grid_pinpoints": pinpoints,
        }),
    })
}

/// The sizes that pictures are brought to before they are cut into tiles; nothing if each is one tile.
fn pinpoints(projector: &Gguf) -> Result<Option<Json>, ModelError> {
    match projector.optional_text(MERGE)? {
        None | Some("flat") => return Ok(None),
        Some("spatial_unpad") => {}
        Some(other) => {
            let expected = "\"flat\" or \"spatial_unpad\"";
            return Err(projector.unsupported(MERGE, format!("{other:?}"), expected));
        }
    }
    let sides = projector.elements(PINPOINTS, "a whole number", Value::whole)?;
    let (pairs, rest) = sides.as_chunks::<2>();
    match rest {
        [] => Ok(Some(json!(pairs))),
        _ => Err(projector.unsupported(
            &format!("length of {PINPOINTS}"),
            sides.len(),
            "an even number",
        )),
    }
}
