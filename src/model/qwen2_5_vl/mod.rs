//! Qwen2.5-VL (arXiv 2502.13923): a tower whose layers attend within windows but for a few, a Qwen2 decoder with three axes of positions.
//!
//! Names follow the published tensors: `model`, `lm_head`, `visual`.
//!
//! - `config`: the checkpoint's configuration
//! - `tower`: the tower and its merger

mod config;
mod tower;

use super::checkpoint::Checkpoint;
use super::decoder;
use super::family::{text_config, FamilyConfig, CONFIG};
use super::qwen_vl::{Measures, QwenVision, AROUND_IMAGE, IMAGE_PAD};
use super::vision::Vision;
use super::weights::Weights;
use super::ModelError;
use config::Config;
use tower::WindowTower;

/// A checkpoint's configuration, read and checked.
struct Qwen2_5Vl {
    config: Config,
    measures: Measures,
    text: decoder::Config,
}

/// Reads and checks `config.json`.
pub fn open(checkpoint: &Checkpoint) -> Result<Box<dyn FamilyConfig>, ModelError> {
    let json = checkpoint.json(CONFIG)?;
    let config = Config::from_json(json).map_err(|e| ModelError::File {
        file: checkpoint.path(CONFIG),
        what: e.to_string(),
    })?;
    let tied = config.tie_word_embeddings;
    let text = text_config(checkpoint, config.text_config.clone(), config::TEXT, tied)?;
    let measures = config
        .check(text.hidden_size())
        .map_err(|unsupported| unsupported.of(checkpoint.path(CONFIG)))?;
    Ok(Box::new(Qwen2_5Vl {
        config,
        measures,
        text,
    }))
}

impl FamilyConfig for Qwen2_5Vl {
    fn text(&self) -> &decoder::Config {
        &self.text
    }

    fn text_path(&self) -> &str {
        "model"
    }

    fn head_path(&self) -> &str {
        "lm_head"
    }

    fn image_token(&self) -> (u32, &str) {
        (self.config.image_token_id, IMAGE_PAD)
    }

    fn markup_tokens(&self) -> &[&str] {
        &AROUND_IMAGE
    }

    fn vision(
        &self,
        checkpoint: &Checkpoint,
        weights: &Weights,
    ) -> Result<Box<dyn Vision>, ModelError> {
        let measures = &self.measures;
        let at = (weights.dtype(), weights.device());
        let vision = QwenVision::new(checkpoint, measures, at, || {
            let vb = weights.pp("visual").var_builder();
            let tower = WindowTower::new(&self.config.vision_config, measures, vb)?;
            Ok(Box::new(tower))
        })?;
        Ok(Box::new(vision))
    }
}
