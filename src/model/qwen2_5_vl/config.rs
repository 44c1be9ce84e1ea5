//! `vision_config` of Qwen2.5-VL.

use candle_core::Result;
use serde::Deserialize;

use super::tower::WindowTower;
use crate::model::decoder::Unsupported;
use crate::model::family::VideoAxis;
use crate::model::fields::side;
use crate::model::qwen_vl::{AxialRope, Measures, Tower, VisionConfig};
use crate::model::weights::Weights;

/// More positions for a second belong to no model.
const MOST_PER_SECOND: f64 = 1000.0;

/// Mirrors `vision_config`; missing fields have the values of transformers' `Qwen2_5_VLVisionConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    pub depth: usize,
    pub hidden_size: usize,
    pub hidden_act: String,
    pub intermediate_size: usize,
    pub num_heads: usize,
    pub in_channels: Option<usize>,
    /// The spelling of the hub's files.
    pub in_chans: Option<usize>,
    #[serde(deserialize_with = "side")]
    pub patch_size: usize,
    pub spatial_merge_size: usize,
    #[serde(deserialize_with = "side")]
    pub temporal_patch_size: usize,
    /// Side of a window, pixels.
    pub window_size: usize,
    pub out_hidden_size: usize,
    /// Positions on the axis of time for a second of a video.
    pub tokens_per_second: f64,
    /// Layers whose attention is not kept within windows.
    pub fullatt_block_indexes: Vec<usize>,
    pub rope_parameters: AxialRope,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            depth: 32,
            hidden_size: 3584,
            hidden_act: "silu".to_string(),
            intermediate_size: 3420,
            num_heads: 16,
            in_channels: None,
            in_chans: None,
            patch_size: 14,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
            window_size: 112,
            out_hidden_size: 3584,
            tokens_per_second: 4.0,
            fullatt_block_indexes: vec![7, 15, 23, 31],
            rope_parameters: AxialRope::default(),
        }
    }
}

impl VisionConfig for Config {
    fn measures(&self) -> std::result::Result<Measures, Unsupported> {
        let square = self.patch_size.saturating_mul(self.spatial_merge_size);
        if self.window_size < square {
            let expected = format!("at least {square}, the side of a token");
            return Err(Unsupported::new("window_size", self.window_size, expected));
        }
        if !(0.0..=MOST_PER_SECOND).contains(&self.tokens_per_second) {
            let expected = format!("a number from 0 to {MOST_PER_SECOND}");
            return Err(Unsupported::new(
                "tokens_per_second",
                self.tokens_per_second,
                expected,
            ));
        }
        Ok(Measures {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_heads: self.num_heads,
            hidden_act: self.hidden_act.clone(),
            channels: [self.in_channels, self.in_chans],
            out_hidden_size: self.out_hidden_size,
            patch_size: self.patch_size,
            temporal_patch_size: self.temporal_patch_size,
            spatial_merge_size: self.spatial_merge_size,
            theta: self.rope_parameters.theta()?,
        })
    }

    fn tower(&self, measures: &Measures, w: &Weights) -> Result<Box<dyn Tower>> {
        Ok(Box::new(WindowTower::new(self, measures, w)?))
    }

    fn video_axis(&self) -> Option<VideoAxis> {
        Some(VideoAxis::Seconds(self.tokens_per_second))
    }
}

impl Config {
    /// Side of a window, squares of patches.
    pub fn window_side(&self) -> usize {
        self.window_size / self.spatial_merge_size / self.patch_size
    }
}
