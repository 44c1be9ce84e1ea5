//! `config.json` and `preprocessor_config.json` of the SmolVLM / Idefics3 family.

use candle_nn::Activation;
use candle_transformers::models::siglip;
use serde::Deserialize;

use crate::model::checkpoint::Checkpoint;
use crate::model::{llama, ModelError};

const CONFIG: &str = "config.json";

/// Mirrors `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    pub model_type: String,
    pub image_token_id: u32,
    /// Side of the square of patches that the connector joins into one token.
    pub scale_factor: usize,
    pub tie_word_embeddings: Option<bool>,
    pub text_config: llama::Config,
    pub vision_config: VisionConfig,
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
    pub image_size: usize,
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
    /// Reads and checks `config.json`.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        let config: Self = checkpoint.json(CONFIG)?;
        let unsupported = |field: &str, value: String, expected: String| {
            Err(ModelError::Unsupported {
                file: checkpoint.path(CONFIG),
                field: field.to_string(),
                value,
                expected,
            })
        };
        if !["smolvlm", "idefics3"].contains(&config.model_type.as_str()) {
            return unsupported(
                "model_type",
                config.model_type,
                "smolvlm or idefics3".to_string(),
            );
        }
        if let Some((field, value, expected)) = config.text_config.unsupported() {
            return unsupported(&format!("text_config.{field}"), value, expected);
        }
        let vision = &config.vision_config;
        if vision.hidden_act != "gelu_pytorch_tanh" {
            return unsupported(
                "vision_config.hidden_act",
                vision.hidden_act.clone(),
                "gelu_pytorch_tanh".to_string(),
            );
        }
        if vision.num_channels != 3 {
            return unsupported(
                "vision_config.num_channels",
                vision.num_channels.to_string(),
                "3".to_string(),
            );
        }
        if vision.patch_size == 0 || vision.image_size < vision.patch_size {
            return unsupported(
                "vision_config.patch_size",
                vision.patch_size.to_string(),
                format!("1 to image_size ({})", vision.image_size),
            );
        }
        if UNEVEN_GRIDS.contains(&vision.patches_per_side()) {
            return unsupported(
                "vision_config.image_size",
                vision.image_size.to_string(),
                format!(
                    "another grid than {0} x {0} patches, whose published position ids are not consecutive",
                    vision.patches_per_side()
                ),
            );
        }
        if vision.num_attention_heads == 0
            || !vision
                .hidden_size
                .is_multiple_of(vision.num_attention_heads)
        {
            return unsupported(
                "vision_config.num_attention_heads",
                vision.num_attention_heads.to_string(),
                format!("a divisor of hidden_size ({})", vision.hidden_size),
            );
        }
        if config.scale_factor == 0
            || !vision
                .patches_per_side()
                .is_multiple_of(config.scale_factor)
        {
            return unsupported(
                "scale_factor",
                config.scale_factor.to_string(),
                format!(
                    "a divisor of the patches per side ({})",
                    vision.patches_per_side()
                ),
            );
        }
        Ok(config)
    }

    /// Tokens that one image becomes.
    pub fn tokens_per_image(&self) -> usize {
        (self.vision_config.patches_per_side() / self.scale_factor).pow(2)
    }

    /// Whether the output layer is the input embedding. Either level may say so; the top level wins.
    pub fn tied(&self) -> bool {
        self.tie_word_embeddings
            .or(self.text_config.tie_word_embeddings)
            .unwrap_or(false)
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

    pub fn to_siglip(&self) -> siglip::VisionConfig {
        siglip::VisionConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_channels: self.num_channels,
            image_size: self.image_size,
            patch_size: self.patch_size,
            hidden_act: Activation::GeluPytorchTanh,
            layer_norm_eps: self.layer_norm_eps,
        }
    }
}
