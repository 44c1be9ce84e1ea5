//! The families of checkpoints: what each says of its decoder and brings for pictures, in one table.
//!
//! A new family is a folder that implements [`FamilyConfig`] and [`Vision`], and a row of [`FAMILIES`]; docs/checkpoints.md goes
//! through it step by step.

use serde::Deserialize;
use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::decoder;
use super::smolvlm;
use super::vision::Vision;
use super::weights::{Names, Weights};
use super::ModelError;

pub const CONFIG: &str = "config.json";

/// A multimodal family's `config.json`, read and checked.
pub trait FamilyConfig: Send + Sync {
    fn text(&self) -> &decoder::Config;

    /// Where the decoder stands in the tree of tensors.
    fn text_path(&self) -> &str;

    /// Where the output layer stands, if it is not tied.
    fn head_path(&self) -> &str;

    /// The token that stands for image features in a prompt: its id and its text.
    fn image_token(&self) -> (u32, &str);

    /// Other control tokens that a picture's markup needs.
    fn markup_tokens(&self) -> &[&str] {
        &[]
    }

    /// The image processor, the tower and the connector.
    fn vision(
        &self,
        checkpoint: &Checkpoint,
        weights: &Weights,
    ) -> Result<Box<dyn Vision>, ModelError>;
}

/// A family of multimodal checkpoints.
pub struct Family {
    pub name: &'static str,
    /// What `model_type` says in their `config.json`.
    model_types: &'static [&'static str],
    /// Spellings of tensor names.
    pub names: Names,
    pub open: fn(&Checkpoint) -> Result<Box<dyn FamilyConfig>, ModelError>,
}

pub const FAMILIES: [Family; 1] = [Family {
    name: "SmolVLM",
    model_types: &["smolvlm", "idefics3"],
    names: Names(&[]),
    open: smolvlm::open,
}];

/// What every `config.json` says.
#[derive(Deserialize)]
struct Kind {
    model_type: String,
}

/// What `model_type` says.
pub fn model_type(checkpoint: &Checkpoint) -> Result<String, ModelError> {
    Ok(checkpoint.json::<Kind>(CONFIG)?.model_type)
}

impl Family {
    /// The multimodal family of `model_type`, if it is one.
    pub fn of(model_type: &str) -> Option<&'static Self> {
        FAMILIES
            .iter()
            .find(|family| family.model_types.contains(&model_type))
    }

    /// The family of a checkpoint that must be multimodal.
    pub fn find(checkpoint: &Checkpoint) -> Result<&'static Self, ModelError> {
        checkpoint.check_vision()?;
        let found = model_type(checkpoint)?;
        Self::of(&found).ok_or_else(|| {
            let known = FAMILIES.iter().flat_map(|family| family.model_types);
            decoder::Unsupported::new(
                "model_type",
                found,
                known.copied().collect::<Vec<_>>().join(", "),
            )
            .of(checkpoint.path(CONFIG))
        })
    }
}

/// The decoder's part of a configuration, checked. `kind` is its model_type if it does not say so, `tied` what the top level says of the
/// output layer, which wins.
pub fn text_config(
    checkpoint: &Checkpoint,
    json: Value,
    kind: &str,
    tied: Option<bool>,
) -> Result<decoder::Config, ModelError> {
    let file = || checkpoint.path(CONFIG);
    let mut config = decoder::Config::from_json(json, kind).map_err(|e| ModelError::File {
        file: file(),
        what: format!("text_config: {e}"),
    })?;
    if let Some(tied) = tied {
        config.set_tied(tied);
    }
    config
        .cache_shape()
        .map_err(|unsupported| unsupported.within("text_config").of(file()))?;
    Ok(config)
}
