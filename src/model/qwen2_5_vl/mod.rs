//! Qwen2.5-VL (arXiv 2502.13923): a tower whose layers attend within windows but for a few, a Qwen2 decoder with three axes of positions.
//!
//! Names follow the published tensors: `model`, `lm_head`, `visual`.
//!
//! - `config`: the tower's configuration
//! - `tower`: the tower and its merger

mod config;
mod tower;

use super::checkpoint::Checkpoint;
use super::family::FamilyConfig;
use super::qwen_vl::{Kind, QwenVl, VideoSizes};
use super::ModelError;
use config::Config;

const KIND: Kind = Kind {
    text_type: "qwen2_5_vl_text",
    text_path: "model",
    visual_path: "visual",
    interleaved: false,
    video_sizes: VideoSizes::EachFrame,
};

/// Reads and checks `config.json`.
pub fn open(checkpoint: &Checkpoint) -> Result<Box<dyn FamilyConfig>, ModelError> {
    QwenVl::<Config>::open(checkpoint, &KIND, &[])
}
