//! LLaVA-1.5 (arXiv 2310.03744): a CLIP or SigLIP tower, two projecting layers, a Llama-like decoder; and what the later LLaVA
//! families share with it.
//!
//! Names follow the published tensors: `vision_tower.vision_model`, `multi_modal_projector`, `language_model.model`,
//! `language_model.lm_head`.
//!
//! A frame of the stream shows all of its picture: where the image processor would cut out the middle, it is put in a square of the
//! mean colour instead, which is how the original code prepared pictures when the checkpoints were trained.
//!
//! - this file: the family, in which a picture is one tile
//! - `config`: the checkpoint's configuration
//! - `processor`: pictures to tiles
//! - `vision`: tower and connector
//! - `anyres`: pictures of any size as grids of tiles, for the later families

pub mod anyres;
pub mod config;
pub mod processor;
pub mod vision;

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::checkpoint::Checkpoint;
use super::decoder::{self, Unsupported};
use super::family::{text_config, FamilyConfig, CONFIG};
use super::preprocess::picture::Picture;
use super::vision::{Layout, Tile, View, Vision};
use super::weights::{Names, Weights};
use super::ModelError;
use config::{clip_large, Config, Defaults, VisionConfig};
use processor::Processor;
use vision::{Arrangement, LlavaVision, IMAGE};

/// The spellings of names beside the hub's.
///
/// A fresh save of transformers 5 writes the tower without `vision_model` (fresh/names.json of tests/golden/families); its modules carry
/// `model.` in front of everything but the output layer (`conversion_mapping.py` there), and so do checkpoints whose names were
/// not turned back when they were saved.
pub const NAMES: Names = Names(&[
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
    (
        "vision_tower.embeddings.",
        "vision_tower.vision_model.embeddings.",
    ),
    (
        "vision_tower.pre_layrnorm.",
        "vision_tower.vision_model.pre_layrnorm.",
    ),
    (
        "vision_tower.encoder.",
        "vision_tower.vision_model.encoder.",
    ),
]);

/// Of LLaVA-1.5 and of LLaVA-NeXT.
pub const DEFAULTS: Defaults = Defaults {
    image_token: 32000,
    video_token: None,
    text_type: "llama",
    vision_type: "clip_vision_model",
    vision: clip_large,
    feature_layer: -2,
    select_strategy: "default",
};

/// Reads and checks `config.json`.
pub fn open(checkpoint: &Checkpoint) -> std::result::Result<Box<dyn FamilyConfig>, ModelError> {
    Llava::open(checkpoint, &DEFAULTS, |_, vision| {
        Ok(Arc::new(OneTile {
            rows: vision.rows(),
        }))
    })
}

/// Every picture is one tile.
struct OneTile {
    rows: usize,
}

impl Arrangement for OneTile {
    fn grid(&self, _: (usize, usize), _: View) -> [usize; 3] {
        [1, 0, 0]
    }

    fn tokens(&self, _: &Layout) -> usize {
        self.rows
    }

    fn tiles(&self, processor: &Processor, picture: &dyn Picture, layout: &Layout) -> Vec<Tile> {
        match layout.view {
            View::Image { .. } => vec![processor.image(picture)],
            View::Frame => vec![processor.frame(picture)],
        }
    }

    fn frames_in_square(&self, processor: &Processor) -> bool {
        processor.frames_in_square()
    }

    fn arranged(&self, projected: &Tensor, _: &Tensor, _: &Layout) -> Result<Tensor> {
        projected.flatten_to(1)
    }
}

/// How a family arranges tiles, as its configuration has it.
pub type Arrange =
    fn(&Config, &VisionConfig) -> std::result::Result<Arc<dyn Arrangement>, Unsupported>;

/// A checkpoint's configuration, read and checked, of any of the LLaVA families.
pub struct Llava {
    image_token: u32,
    video_token: Option<u32>,
    text: decoder::Config,
    vision: VisionConfig,
    arrangement: Arc<dyn Arrangement>,
}

impl Llava {
    /// Reads and checks `config.json`; `arrange` says how the family arranges tiles.
    pub fn open(
        checkpoint: &Checkpoint,
        defaults: &Defaults,
        arrange: Arrange,
    ) -> std::result::Result<Box<dyn FamilyConfig>, ModelError> {
        let config: Config = checkpoint.json(CONFIG)?;
        let checked = || {
            let vision = config.vision(defaults)?;
            Ok((arrange(&config, &vision)?, vision))
        };
        let (arrangement, vision) = checked()
            .map_err(|unsupported: Unsupported| unsupported.of(checkpoint.path(CONFIG)))?;
        let text = text_config(checkpoint, config.text(), defaults.text_type, config.tied())?;
        Ok(Box::new(Self {
            image_token: config.image_token(defaults),
            video_token: config.video_token(defaults),
            text,
            vision,
            arrangement,
        }))
    }
}

impl FamilyConfig for Llava {
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

    fn video_token(&self) -> Option<u32> {
        self.video_token
    }

    fn vision(
        &self,
        checkpoint: &Checkpoint,
        weights: &Weights,
    ) -> std::result::Result<Box<dyn Vision>, ModelError> {
        let config = &self.vision;
        let pinpoints = self.arrangement.pinpoints();
        let processor = Processor::load(checkpoint, config.tower.sizes.image, pinpoints)?;
        let arrangement = self.arrangement.clone();
        let hidden = self.text.hidden_size();
        LlavaVision::new(config, hidden, processor, arrangement, weights)
            .map(|vision| Box::new(vision) as Box<dyn Vision>)
            .map_err(|e| checkpoint.weight_error(e, weights.device()))
    }
}
