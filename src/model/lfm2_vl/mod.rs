//! LFM2-VL and LFM2.5-VL (arXiv 2511.23404): SigLIP 2 at any size, squares of patches joined and projected, an LFM2 decoder of which most
//! layers are short convolutions.
//!
//! Names follow the published tensors: `model.vision_tower.vision_model`, `model.multi_modal_projector`, `model.language_model`.
//!
//! - this file: the family
//! - `config`: the checkpoint's configuration
//! - `processor`: pictures to patches
//! - `vision`: from pictures to rows of the decoder's input

mod config;
mod processor;
mod vision;

use super::checkpoint::Checkpoint;
use super::decoder::lfm2::LFM2;
use super::decoder::{self, Unsupported};
use super::family::{text_config, FamilyConfig, CONFIG};
use super::vision::Vision;
use super::weights::{Names, Weights};
use super::ModelError;
use config::{Config, Shape};
use processor::Processor;
use vision::Lfm2VlVision;

const IMAGE: &str = "<image>";
const IMAGE_START: &str = "<|image_start|>";
const IMAGE_END: &str = "<|image_end|>";
const THUMBNAIL: &str = "<|img_thumbnail|>";

/// The spellings of names beside the hub's: those of transformers' modules.
pub const NAMES: Names = Names(&[
    ("model.vision_tower.", "model.vision_tower.vision_model."),
    (
        "model.vision_tower.vision_model.vision_model.",
        "model.vision_tower.vision_model.",
    ),
]);

/// A checkpoint's configuration, read and checked.
struct Lfm2Vl {
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
    let tied = Some(config.tied());
    Ok(Box::new(Lfm2Vl {
        image_token: config.image_token_id,
        text: text_config(checkpoint, config.text(), LFM2, tied)?,
        shape,
    }))
}

impl FamilyConfig for Lfm2Vl {
    fn text(&self) -> &decoder::Config {
        &self.text
    }

    fn text_path(&self) -> &str {
        "model.language_model"
    }

    fn head_path(&self) -> &str {
        "lm_head"
    }

    fn image_token(&self) -> (u32, &str) {
        (self.image_token, IMAGE)
    }

    fn markup_tokens(&self) -> &[&str] {
        &[IMAGE_START, IMAGE_END, THUMBNAIL]
    }

    fn vision(
        &self,
        checkpoint: &Checkpoint,
        weights: &Weights,
    ) -> Result<Box<dyn Vision>, ModelError> {
        let processor = Processor::load(checkpoint, &self.shape)?;
        let hidden = self.text.hidden_size();
        let weights = weights.pp("model");
        Lfm2VlVision::new(&self.shape, hidden, self.image_token, processor, &weights)
            .map(|vision| Box::new(vision) as Box<dyn Vision>)
            .map_err(|e| checkpoint.weight_error(e, weights.device()))
    }
}
