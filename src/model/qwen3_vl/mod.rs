//! Qwen3-VL (arXiv 2511.21631): a tower with learned positions beside the rotary ones, whose earlier layers reach the decoder's first
//! layers too (DeepStack, arXiv 2406.04334), and a Qwen3 decoder with three axes of positions.
//!
//! Names follow the published tensors: `model.language_model`, `lm_head`, `model.visual`.
//!
//! - `config`: the tower's configuration
//! - `tower`: the tower and its mergers

mod config;
mod tower;

use super::checkpoint::Checkpoint;
use super::family::{FamilyConfig, OtherPart};
use super::qwen_vl::{Kind, QwenVl, VideoSizes};
use super::ModelError;
pub use config::Config;

const KIND: Kind = Kind {
    text_type: "qwen3_vl_text",
    text_path: "model.language_model",
    visual_path: "model.visual",
    interleaved: true,
    video_sizes: VideoSizes::WholeVideo,
};

/// Reads and checks `config.json`.
pub fn open(checkpoint: &Checkpoint) -> Result<Box<dyn FamilyConfig>, ModelError> {
    open_beside(checkpoint, &[])
}

/// The same of a checkpoint that has other parts in its files.
pub fn open_beside(
    checkpoint: &Checkpoint,
    other_parts: &'static [OtherPart],
) -> Result<Box<dyn FamilyConfig>, ModelError> {
    QwenVl::<Config>::open(checkpoint, &KIND, other_parts)
}
