//! Qwen3.5: the tower of Qwen3-VL without DeepStack, and a decoder of which every fourth layer attends, with three axes of positions; the
//! others are Gated DeltaNet (arXiv 2412.06464).
//!
//! Names follow the published tensors: `model.language_model`, `lm_head`, `model.visual`.

use candle_core::Result;
use serde::Deserialize;

use super::checkpoint::Checkpoint;
use super::decoder::qwen3_5::QWEN3_5;
use super::decoder::Unsupported;
use super::family::{FamilyConfig, OtherPart};
use super::qwen3_vl;
use super::qwen_vl::{Kind, Measures, QwenVl, Tower, VideoSizes, VisionConfig};
use super::weights::Weights;
use super::ModelError;

const KIND: Kind = Kind {
    text_type: QWEN3_5,
    text_path: "model.language_model",
    visual_path: "model.visual",
    interleaved: true,
    video_sizes: VideoSizes::WholeVideo,
};

/// What the files hold beside (`_keys_to_ignore_on_load_unexpected` of transformers' model).
const OTHER_PARTS: &[OtherPart] = &[OtherPart {
    what: "prediction of several tokens at once",
    names: &[".mtp."],
}];

/// Mirrors `vision_config`, whose fields are those of Qwen3-VL.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "qwen3_vl::Config")]
struct Config(qwen3_vl::Config);

impl From<qwen3_vl::Config> for Config {
    fn from(mut config: qwen3_vl::Config) -> Self {
        config.deepstack_visual_indexes.clear();
        Self(config)
    }
}

impl Default for Config {
    fn default() -> Self {
        qwen3_vl::Config::default().into()
    }
}

impl VisionConfig for Config {
    fn measures(&self) -> std::result::Result<Measures, Unsupported> {
        self.0.measures()
    }

    fn tower(&self, measures: &Measures, w: &Weights) -> Result<Box<dyn Tower>> {
        self.0.tower(measures, w)
    }
}

/// Reads and checks `config.json`.
pub fn open(checkpoint: &Checkpoint) -> std::result::Result<Box<dyn FamilyConfig>, ModelError> {
    QwenVl::<Config>::open(checkpoint, &KIND, OTHER_PARTS)
}
