//! `config.json` of the SmolVLM / Idefics3 family.

use std::fmt::Display;

use serde::Deserialize;
use serde_json::Value;

use crate::model::activation::Activation;
use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::Unsupported;
use crate::model::family::CONFIG;
use crate::model::fields::{side, without_nulls};
use crate::model::json;
use crate::model::vision::vit::{Kind, Shape, Sizes};
use crate::model::ModelError;

/// Mirrors `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    #[serde(default = "image_token_of_the_class")]
    pub image_token_id: u32,
    /// Side of the square of patches that the connector joins into one token.
    #[serde(default = "scale_of_the_class")]
    pub scale_factor: usize,
    pub tie_word_embeddings: Option<bool>,
    pub text_config: Value,
    pub vision_config: VisionConfig,
}

/// The values of transformers' `SmolVLMConfig` and `Idefics3Config`.
fn image_token_of_the_class() -> u32 {
    128_257
}

fn scale_of_the_class() -> usize {
    2
}

/// Mirrors `vision_config`; missing fields have the values of transformers' `SmolVLMVisionConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_channels: usize,
    #[serde(deserialize_with = "side")]
    pub image_size: usize,
    #[serde(deserialize_with = "side")]
    pub patch_size: usize,
    pub hidden_act: String,
    pub layer_norm_eps: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1152,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 16,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: "gelu_pytorch_tanh".to_string(),
            layer_norm_eps: 1e-6,
        }
    }
}

impl Config {
    /// Reads `config.json`.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        let mut json = without_nulls(checkpoint.json(CONFIG)?, &[]);
        if let Some(vision) = json.get_mut("vision_config") {
            *vision = without_nulls(vision.take(), &[]);
        }
        json::of_value(&json).map_err(|unsupported| unsupported.of(checkpoint.path(CONFIG)))
    }

    /// Checks the vision part.
    pub fn check(&self) -> Result<(), Unsupported> {
        let vision = &self.vision_config;
        let fail = |field: &str, value: &dyn Display, expected: String| {
            Err(Unsupported::new(field, value, expected))
        };
        Unsupported::too_large(&[
            ("vision_config.hidden_size", vision.hidden_size),
            ("vision_config.intermediate_size", vision.intermediate_size),
            ("vision_config.image_size", vision.image_size),
        ])?;
        if vision.hidden_act != "gelu_pytorch_tanh" {
            let expected = "gelu_pytorch_tanh".to_string();
            return fail("vision_config.hidden_act", &vision.hidden_act, expected);
        }
        Unsupported::negative(&[("vision_config.layer_norm_eps", vision.layer_norm_eps)])?;
        if vision.num_channels != 3 {
            let expected = "3".to_string();
            return fail("vision_config.num_channels", &vision.num_channels, expected);
        }
        if vision.patch_size == 0 || vision.image_size < vision.patch_size {
            let expected = format!("1 to image_size ({})", vision.image_size);
            return fail("vision_config.patch_size", &vision.patch_size, expected);
        }
        let side = vision.patches_per_side();
        if UNEVEN_GRIDS.contains(&side) {
            let expected = format!(
                "another grid than {side} x {side} patches, whose published position ids are not consecutive"
            );
            return fail("vision_config.image_size", &vision.image_size, expected);
        }
        let heads = vision.num_attention_heads;
        if heads == 0 || !vision.hidden_size.is_multiple_of(heads) {
            let expected = format!("a divisor of hidden_size ({})", vision.hidden_size);
            return fail("vision_config.num_attention_heads", &heads, expected);
        }
        if self.scale_factor == 0 || !side.is_multiple_of(self.scale_factor) {
            let expected = format!("a divisor of the patches per side ({side})");
            return fail("scale_factor", &self.scale_factor, expected);
        }
        Ok(())
    }

    /// Tokens that one tile becomes.
    pub fn tokens_per_tile(&self) -> usize {
        (self.vision_config.patches_per_side() / self.scale_factor).pow(2)
    }
}

/// Grids (patches per side, up to 64) whose position ids are not 0, 1, 2, ... in the published code.
///
/// It sorts the fractions i / n into buckets with borders k / n, both in f32, and for these n rounding puts neighbouring rows
/// into one bucket. Found by running transformers' formula (tests/golden/README.md); no published checkpoint has such a grid.
const UNEVEN_GRIDS: [usize; 17] = [
    19, 25, 29, 31, 38, 40, 41, 43, 47, 49, 50, 54, 55, 58, 59, 61, 62,
];

impl VisionConfig {
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// The tower.
    pub fn shape(&self) -> Shape {
        Shape {
            kind: Kind::Siglip,
            sizes: Sizes {
                hidden: self.hidden_size,
                intermediate: self.intermediate_size,
                layers: self.num_hidden_layers,
                heads: self.num_attention_heads,
                image: self.image_size,
                patch: self.patch_size,
                activation: Activation::GeluTanh,
                epsilon: self.layer_norm_eps,
            },
        }
    }
}
