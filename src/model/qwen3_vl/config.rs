//! `vision_config` of Qwen3-VL.

use candle_core::Result;
use serde::Deserialize;

use super::tower::DeepTower;
use crate::model::decoder::Unsupported;
use crate::model::fields::side;
use crate::model::qwen_vl::{AxialRope, Measures, Tower, VisionConfig};
use crate::model::weights::Weights;

/// Mirrors `vision_config`; missing fields have the values of transformers' `Qwen3VLVisionConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    pub depth: usize,
    pub hidden_size: usize,
    pub hidden_act: String,
    pub intermediate_size: usize,
    pub num_heads: usize,
    pub in_channels: Option<usize>,
    #[serde(deserialize_with = "side")]
    pub patch_size: usize,
    pub spatial_merge_size: usize,
    #[serde(deserialize_with = "side")]
    pub temporal_patch_size: usize,
    pub out_hidden_size: usize,
    /// Places of the table of learned positions, which is a square.
    pub num_position_embeddings: usize,
    /// Layers whose output reaches the decoder's first layers, in order.
    pub deepstack_visual_indexes: Vec<usize>,
    pub rope_parameters: AxialRope,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            depth: 27,
            hidden_size: 1152,
            hidden_act: "gelu_pytorch_tanh".to_string(),
            intermediate_size: 4304,
            num_heads: 16,
            in_channels: None,
            patch_size: 16,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
            out_hidden_size: 3584,
            num_position_embeddings: 2304,
            deepstack_visual_indexes: vec![8, 16, 24],
            rope_parameters: AxialRope::default(),
        }
    }
}

impl VisionConfig for Config {
    fn measures(&self) -> std::result::Result<Measures, Unsupported> {
        let places = self.num_position_embeddings;
        Unsupported::too_large(&[("num_position_embeddings", places)])?;
        if places == 0 || self.table_side().pow(2) != places {
            let expected = "the square of a number from 1 on";
            return Err(Unsupported::new(
                "num_position_embeddings",
                places,
                expected,
            ));
        }
        let layers = &self.deepstack_visual_indexes;
        let ascending = layers.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || layers.last().is_some_and(|&last| last >= self.depth) {
            let expected = format!("ascending layers below depth ({})", self.depth);
            let found = format!("{layers:?}");
            return Err(Unsupported::new(
                "deepstack_visual_indexes",
                found,
                expected,
            ));
        }
        Ok(Measures {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_heads: self.num_heads,
            hidden_act: self.hidden_act.clone(),
            channels: [self.in_channels, None],
            out_hidden_size: self.out_hidden_size,
            patch_size: self.patch_size,
            temporal_patch_size: self.temporal_patch_size,
            spatial_merge_size: self.spatial_merge_size,
            theta: self.rope_parameters.theta()?,
        })
    }

    fn tower(&self, measures: &Measures, w: &Weights) -> Result<Box<dyn Tower>> {
        Ok(Box::new(DeepTower::new(self, measures, w)?))
    }
}

impl Config {
    /// Side of the table of learned positions.
    pub fn table_side(&self) -> usize {
        self.num_position_embeddings.isqrt()
    }
}
