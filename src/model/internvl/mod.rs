//! InternVL3 (arXiv 2504.10479) and InternVL3.5 (arXiv 2508.18265), as converted for transformers: InternViT, pixel shuffle and two
//! projecting layers, a Qwen2 or Qwen3 decoder.
//!
//! Names follow the published tensors: `vision_tower`, `multi_modal_projector`, `language_model.model`, `language_model.lm_head`.
//!
//! - this file: the family
//! - `config`: the checkpoint's configuration
//! - `processor`: pictures to tiles
//! - `tower`: InternViT
//! - `vision`: from pictures to rows of the decoder's input

mod config;
mod processor;
mod tower;
mod vision;

use super::checkpoint::Checkpoint;
use super::decoder::{self, Unsupported};
use super::family::{text_config, FamilyConfig, CONFIG};
use super::vision::Vision;
use super::weights::{Names, Weights};
use super::ModelError;
use config::{Config, Shape};
use processor::Processor;
use vision::InternVlVision;

const IMAGE: &str = "<IMG_CONTEXT>";
const IMAGE_START: &str = "<img>";
const IMAGE_END: &str = "</img>";

/// The spellings of names beside the hub's: those of transformers' modules, in which checkpoints are written whose names were not turned
/// back when they were saved.
pub const NAMES: Names = Names(&[
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
]);

/// A checkpoint's configuration, read and checked.
struct InternVl {
    image_token: u32,
    text: decoder::Config,
    shape: Shape,
}

/// Reads and checks `config.json`.
pub fn open(checkpoint: &Checkpoint) -> Result<Box<dyn FamilyConfig>, ModelError> {
    let json = checkpoint.json(CONFIG)?;
    let checked = || {
        let config = Config::from_json(json)?;
        let shape = config.shape()?;
        Ok((config, shape))
    };
    let (config, shape) =
        checked().map_err(|unsupported: Unsupported| unsupported.of(checkpoint.path(CONFIG)))?;
    let tied = config.tie_word_embeddings;
    Ok(Box::new(InternVl {
        image_token: config.image_token_id,
        text: text_config(checkpoint, config.text(), "qwen2", tied)?,
        shape,
    }))
}

impl FamilyConfig for InternVl {
    fn text(&self) -> &decoder::Config {
        &self.text
    }

    fn text_path(&self) -> &str {
        "language_model.model"
    }

    fn head_path(&self) -> &str {
        "language_model.lm_head"
    }

    fn image_token(&self) -> (u32, &str) {
        (self.image_token, IMAGE)
    }

    fn markup_tokens(&self) -> &[&str] {
        &[IMAGE_START, IMAGE_END]
    }

    /// The published processor writes frames in the place of a video's token; in InternVL3 it is the one behind the embeddings.
    fn unfed_token(&self) -> Option<&str> {
        Some("<video>")
    }

    fn vision(
        &self,
        checkpoint: &Checkpoint,
        weights: &Weights,
    ) -> Result<Box<dyn Vision>, ModelError> {
        let processor = Processor::load(checkpoint, self.shape.tower.image)?;
        let hidden = self.text.hidden_size();
        InternVlVision::new(&self.shape, hidden, self.image_token, processor, weights)
            .map(|vision| Box::new(vision) as Box<dyn Vision>)
            .map_err(|e| checkpoint.weight_error(e, weights.device()))
    }
}
