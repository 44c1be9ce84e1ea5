//! `config.json` of Qwen3-VL.

use serde::Deserialize;
use serde_json::Value;

use crate::model::decoder::Unsupported;
use crate::model::qwen_vl::{AxialRope, Measures};

/// What the decoder's part is where it does not say so.
pub const TEXT: &str = "qwen3_vl_text";

/// Mirrors `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    #[serde(default = "image_pad")]
    pub image_token_id: u32,
    pub tie_word_embeddings: Option<bool>,
    pub text_config: Value,
    #[serde(default)]
    pub vision_config: VisionConfig,
}

/// The published vocabulary's `<|image_pad|>`.
fn image_pad() -> u32 {
    151_655
}

/// Mirrors `vision_config`; missing fields have the values of transformers' `Qwen3VLVisionConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    pub depth: usize,
    pub hidden_size: usize,
    pub hidden_act: String,
    pub intermediate_size: usize,
    pub num_heads: usize,
    pub in_channels: Option<usize>,
    pub patch_size: usize,
    pub spatial_merge_size: usize,
    pub temporal_patch_size: usize,
    pub out_hidden_size: usize,
    /// Places of the table of learned positions, which is a square.
    pub num_position_embeddings: usize,
    /// Layers whose output reaches the decoder's first layers, in order.
    pub deepstack_visual_indexes: Vec<usize>,
    pub rope_parameters: AxialRope,
}

impl Default for VisionConfig {
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

impl Config {
    /// Checks the vision part, for a decoder of `width`.
    pub fn check(&self, width: usize) -> Result<Measures, Unsupported> {
        let vision = &self.vision_config;
        let measures = Measures {
            hidden_size: vision.hidden_size,
            intermediate_size: vision.intermediate_size,
            num_heads: vision.num_heads,
            hidden_act: vision.hidden_act.clone(),
            out_hidden_size: vision.out_hidden_size,
            patch_size: vision.patch_size,
            temporal_patch_size: vision.temporal_patch_size,
            spatial_merge_size: vision.spatial_merge_size,
            theta: vision.rope_parameters.theta()?,
        };
        measures.check([vision.in_channels, None], width)?;
        let fail = |field: &str, value: String, expected: String| {
            Err(Unsupported::new(field, value, expected).within("vision_config"))
        };
        let places = vision.num_position_embeddings;
        Unsupported::too_large(&[("vision_config.num_position_embeddings", places)])?;
        if places == 0 || vision.table_side().pow(2) != places {
            let expected = "the square of a number from 1 on".to_string();
            return fail("num_position_embeddings", places.to_string(), expected);
        }
        let indexes = &vision.deepstack_visual_indexes;
        let ascending = indexes.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || indexes.last().is_some_and(|&last| last >= vision.depth) {
            let expected = format!("ascending layers below depth ({})", vision.depth);
            return fail("deepstack_visual_indexes", format!("{indexes:?}"), expected);
        }
        Ok(measures)
    }
}

impl VisionConfig {
    /// Side of the table of learned positions.
    pub fn table_side(&self) -> usize {
        self.num_position_embeddings.isqrt()
    }
}
