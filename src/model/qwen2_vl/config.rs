//! `vision_config` of Qwen2-VL.

use candle_core::Result;
use serde::Deserialize;

use super::tower::WholeTower;
use crate::model::decoder::Unsupported;
use crate::model::family::VideoAxis;
use crate::model::fields::side;
use crate::model::qwen_vl::{AxialRope, Measures, Tower, VisionConfig};
use crate::model::weights::Weights;

/// Mirrors `vision_config`; missing fields have the values of transformers' `Qwen2VLVisionConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    pub depth: usize,
    /// Width of the tower.
    pub embed_dim: usize,
    /// Width of the decoder.
    pub hidden_size: usize,
    pub hidden_act: String,
    /// Width within a layer, in widths of the tower.
    pub mlp_ratio: usize,
    pub num_heads: usize,
    pub in_channels: Option<usize>,
    /// The spelling of the hub's files.
    pub in_chans: Option<usize>,
    #[serde(deserialize_with = "side")]
    pub patch_size: usize,
    pub spatial_merge_size: usize,
    #[serde(deserialize_with = "side")]
    pub temporal_patch_size: usize,
    pub rope_parameters: AxialRope,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            depth: 32,
            embed_dim: 1280,
            hidden_size: 3584,
            hidden_act: "quick_gelu".to_string(),
            mlp_ratio: 4,
            num_heads: 16,
            in_channels: None,
            in_chans: None,
            patch_size: 14,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
            rope_parameters: AxialRope::default(),
        }
    }
}

impl VisionConfig for Config {
    fn measures(&self) -> std::result::Result<Measures, Unsupported> {
        Ok(Measures {
            hidden_size: self.embed_dim,
            intermediate_size: self.embed_dim.saturating_mul(self.mlp_ratio),
            num_heads: self.num_heads,
            hidden_act: self.hidden_act.clone(),
            channels: [self.in_channels, self.in_chans],
            out_hidden_size: self.hidden_size,
            patch_size: self.patch_size,
            temporal_patch_size: self.temporal_patch_size,
            spatial_merge_size: self.spatial_merge_size,
            theta: self.rope_parameters.theta()?,
        })
    }

    fn tower(&self, measures: &Measures, w: &Weights) -> Result<Box<dyn Tower>> {
        Ok(Box::new(WholeTower::new(self, measures, w)?))
    }

    fn video_axis(&self) -> Option<VideoAxis> {
        Some(VideoAxis::Parts)
    }
}
