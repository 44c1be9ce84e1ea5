//! `config.json` of Qwen2.5-VL.

use serde::Deserialize;
use serde_json::Value;

use crate::model::decoder::Unsupported;
use crate::model::qwen_vl::{AxialRope, Measures};

/// What the decoder's part is where it does not say so.
pub const TEXT: &str = "qwen2_5_vl_text";

/// Mirrors `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    #[serde(default = "image_pad")]
    pub image_token_id: u32,
    pub tie_word_embeddings: Option<bool>,
    /// Files of the hub have the decoder's fields at the top level.
    #[serde(default)]
    pub text_config: Value,
    #[serde(default)]
    pub vision_config: VisionConfig,
}

/// The published vocabulary's `<|image_pad|>`.
fn image_pad() -> u32 {
    151_655
}

/// Mirrors `vision_config`; missing fields have the values of transformers' `Qwen2_5_VLVisionConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    pub depth: usize,
    pub hidden_size: usize,
    pub hidden_act: String,
    pub intermediate_size: usize,
    pub num_heads: usize,
    pub in_channels: Option<usize>,
    /// The spelling of the hub's files.
    pub in_chans: Option<usize>,
    pub patch_size: usize,
    pub spatial_merge_size: usize,
    pub temporal_patch_size: usize,
    /// Side of a window, pixels.
    pub window_size: usize,
    pub out_hidden_size: usize,
    /// Layers whose attention is not kept within windows.
    pub fullatt_block_indexes: Vec<usize>,
    pub rope_parameters: AxialRope,
}

impl Default for VisionConfig {
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
            fullatt_block_indexes: vec![7, 15, 23, 31],
            rope_parameters: AxialRope::default(),
        }
    }
}

impl Config {
    /// Of `config.json` in either form.
    pub fn from_json(mut json: Value) -> Result<Self, serde_json::Error> {
        if json["text_config"].is_null() {
            let mut text = json.clone();
            if let Some(fields) = text.as_object_mut() {
                fields.remove("model_type");
                fields.remove("vision_config");
            }
            json["text_config"] = text;
        }
        serde_json::from_value(json)
    }

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
        measures.check([vision.in_channels, vision.in_chans], width)?;
        if vision.window_side() == 0 {
            let square = vision.patch_size * vision.spatial_merge_size;
            return Err(Unsupported::new(
                "vision_config.window_size",
                vision.window_size,
                format!("at least {square}, the side of a token"),
            ));
        }
        Ok(measures)
    }
}

impl VisionConfig {
    /// Side of a window, squares of patches.
    pub fn window_side(&self) -> usize {
        self.window_size / self.spatial_merge_size / self.patch_size
    }
}
