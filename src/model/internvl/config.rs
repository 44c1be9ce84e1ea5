//! `config.json` of the InternVL family, with what it leaves out.

use std::fmt::Display;

use serde::Deserialize;
use serde_json::{json, Value};

use crate::model::activation::Activation;
use crate::model::decoder::Unsupported;
use crate::model::fields::{side, without_nulls};
use crate::model::json;
use crate::model::vision::vit::{activation_of, Sizes, CHANNELS};

/// Mirrors `config.json`; missing fields have the values of transformers' `InternVLConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    pub image_token_id: u32,
    /// By which the rows and columns of patches become rows and columns of tokens.
    downsample_ratio: f64,
    projector_hidden_act: String,
    vision_feature_layer: Value,
    vision_feature_select_strategy: String,
    pub tie_word_embeddings: Option<bool>,
    text_config: Value,
    vision_config: Value,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            image_token_id: 151_667,
            downsample_ratio: 0.5,
            projector_hidden_act: "gelu".to_string(),
            vision_feature_layer: LAST_LAYER.into(),
            vision_feature_select_strategy: WITHOUT_CLASS_TOKEN.to_string(),
            tie_word_embeddings: None,
            text_config: json!({}),
            vision_config: json!({}),
        }
    }
}

const LAST_LAYER: i64 = -1;
const WITHOUT_CLASS_TOKEN: &str = "default";
const MODEL_TYPE: &str = "internvl_vision";

/// Which norms the tower has: those of InternViT-300M, or those of InternViT-6B.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormType {
    LayerNorm,
    RmsNorm,
}

/// Mirrors `vision_config`; missing fields have the values of transformers' `InternVLVisionConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct VisionConfig {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    #[serde(deserialize_with = "side")]
    image_size: usize,
    #[serde(deserialize_with = "side")]
    patch_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    norm_type: NormType,
    attention_bias: bool,
    use_qk_norm: bool,
    use_absolute_position_embeddings: bool,
    use_mean_pooling: bool,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            model_type: MODEL_TYPE.to_string(),
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            num_channels: CHANNELS,
            image_size: 448,
            patch_size: 14,
            hidden_act: "gelu".to_string(),
            layer_norm_eps: 1e-6,
            norm_type: NormType::LayerNorm,
            attention_bias: false,
            use_qk_norm: false,
            use_absolute_position_embeddings: true,
            use_mean_pooling: true,
        }
    }
}

/// What tower and projector need to know, checked.
#[derive(Debug, Clone)]
pub struct Shape {
    pub tower: Sizes,
    pub norms: NormType,
    /// Queries, keys and values of the tower have biases.
    pub qkv_bias: bool,
    /// Queries and keys of the tower are normalised, all heads together.
    pub qk_norm: bool,
    /// Side of the squares of patches that become a token.
    pub scale: usize,
    pub projector_activation: Activation,
}

impl Shape {
    /// Tokens of a tile.
    pub fn tokens(&self) -> usize {
        (self.tower.side() / self.scale).pow(2)
    }
}

fn only<T: PartialEq + Display>(field: &str, value: T, expected: T) -> Result<(), Unsupported> {
    match value == expected {
        true => Ok(()),
        false => Err(Unsupported::new(field, value, expected)),
    }
}

impl Config {
    pub fn from_json(json: Value) -> Result<Self, Unsupported> {
        json::of_value(&without_nulls(json, &[]))
    }

    /// The text part, all of whose values may be those of its class.
    pub fn text(&self) -> Value {
        self.text_config.clone()
    }

    /// Checks what is said of tower and projector.
    pub fn shape(&self) -> Result<Shape, Unsupported> {
        let layer = &self.vision_feature_layer;
        only("vision_feature_layer", layer, &LAST_LAYER.into())?;
        let strategy = self.vision_feature_select_strategy.as_str();
        only(
            "vision_feature_select_strategy",
            strategy,
            WITHOUT_CLASS_TOKEN,
        )?;
        let (vision, tower) =
            json::of_value::<VisionConfig>(&without_nulls(self.vision_config.clone(), &[]))
                .and_then(|vision| vision.sizes().map(|sizes| (vision, sizes)))
                .map_err(|unsupported| unsupported.within("vision_config"))?;
        let activation = activation_of("projector_hidden_act", &self.projector_hidden_act)?;
        Ok(Shape {
            scale: self.scale(tower.side())?,
            projector_activation: activation,
            tower,
            norms: vision.norm_type,
            qkv_bias: vision.attention_bias,
            qk_norm: vision.use_qk_norm,
        })
    }

    /// Side of the squares of patches that become a token, where a tile has `side` x `side`.
    fn scale(&self, side: usize) -> Result<usize, Unsupported> {
        let ratio = self.downsample_ratio;
        let scale = (1.0 / ratio).round();
        let divides = |scale: usize| scale >= 1 && side.is_multiple_of(scale);
        match ratio.is_finite() && ratio > 0.0 && (scale * ratio - 1.0).abs() < 1e-6 {
            true if divides(scale as usize) => Ok(scale as usize),
            _ => {
                let expected = format!("1 / n with n a divisor of the patches per side ({side})");
                Err(Unsupported::new("downsample_ratio", ratio, expected))
            }
        }
    }
}

impl VisionConfig {
    /// The tower's sizes, if it can be computed.
    fn sizes(&self) -> Result<Sizes, Unsupported> {
        only("model_type", self.model_type.as_str(), MODEL_TYPE)?;
        let positions = self.use_absolute_position_embeddings;
        only("use_absolute_position_embeddings", positions, true)?;
        // Without it a norm stands behind the tower, which no published checkpoint has.
        only("use_mean_pooling", self.use_mean_pooling, true)?;
        let sizes = Sizes {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            image: self.image_size,
            patch: self.patch_size,
            activation: activation_of("hidden_act", &self.hidden_act)?,
            epsilon: self.layer_norm_eps,
        };
        sizes.check(self.num_channels)?;
        Ok(sizes)
    }
}
