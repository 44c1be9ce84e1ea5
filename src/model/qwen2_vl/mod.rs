//! Qwen2-VL (arXiv 2409.12191): a tower that attends over all patches, a Qwen2 decoder with three axes of positions.
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
use super::weights::Names;
use super::ModelError;
use config::Config;

/// The hub's names are `model.*` and `visual.*`; those of the model of today are what transformers 5.23 makes of them
/// (`Qwen2VLForConditionalGeneration` in its conversion_mapping.py, for Qwen2.5-VL as well).
pub const NAMES: Names = Names(&[
    ("model.language_model.", "model."),
    ("model.visual.", "visual."),
]);

const KIND: Kind = Kind {
    text_type: "qwen2_vl_text",
    text_path: "model",
    visual_path: "visual",
    interleaved: false,
    video_sizes: VideoSizes::EachFrame,
};

/// Reads and checks `config.json`.
pub fn open(checkpoint: &Checkpoint) -> Result<Box<dyn FamilyConfig>, ModelError> {
    QwenVl::<Config>::open(checkpoint, &KIND, &[])
}
