//! `config.json` of the LFM2-VL family, with what it leaves out.

use serde::Deserialize;
use serde_json::{json, Value};

use crate::model::activation::Activation;
use crate::model::decoder::Unsupported;
use crate::model::fields::{side, without_nulls};
use crate::model::json;
use crate::model::vision::vit::{activation_of, Sizes, CHANNELS};

/// Mirrors `config.json`; missing fields have the values of transformers' `Lfm2VlConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    pub image_token_id: u32,
    projector_hidden_act: String,
    projector_hidden_size: usize,
    projector_bias: bool,
    projector_use_layernorm: bool,
    /// By which the rows and columns of patches become rows and columns of tokens.
    downsample_factor: usize,
    tie_word_embeddings: bool,
    /// The same in the hub's files, which wins.
    tie_embedding: Option<bool>,
    text_config: Value,
    vision_config: Value,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            image_token_id: 396,
            projector_hidden_act: "gelu".to_string(),
            projector_hidden_size: 2560,
            projector_bias: true,
            projector_use_layernorm: true,
            downsample_factor: 2,
            tie_word_embeddings: true,
            tie_embedding: None,
            text_config: json!({}),
            vision_config: json!({}),
        }
    }
}

const MODEL_TYPE: &str = "siglip2_vision_model";

/// The most squares of patches by which one becomes a token; published checkpoints have 2 x 2.
const MAX_FACTOR: usize = 16;

/// Mirrors `vision_config`; missing fields have the values of transformers' `Siglip2VisionConfig`.
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
    patch_size: usize,
    /// Entries of the table of positions, a square.
    num_patches: usize,
    hidden_act: String,
    layer_norm_eps: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            model_type: MODEL_TYPE.to_string(),
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: CHANNELS,
            patch_size: 16,
            num_patches: 256,
            hidden_act: "gelu_pytorch_tanh".to_string(),
            layer_norm_eps: 1e-6,
        }
    }
}

/// What tower and projector need to know, checked.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The tile is the one that the table of positions is for.
    pub tower: Sizes,
    /// Side of the squares of patches that become a token.
    pub factor: usize,
    pub projector: Projecting,
}

/// The projector.
#[derive(Debug, Clone, Copy)]
pub struct Projecting {
    /// Width between its layers.
    pub inner: usize,
    pub bias: bool,
    /// A norm stands in front.
    pub norm: bool,
    pub activation: Activation,
}

impl Config {
    pub fn from_json(json: Value) -> Result<Self, Unsupported> {
        json::of_value(&without_nulls(json, &[]))
    }

    /// The text part, all of whose values may be those of its class.
    pub fn text(&self) -> Value {
        self.text_config.clone()
    }

    /// Whether the output layer is the input embedding.
    pub fn tied(&self) -> bool {
        self.tie_embedding.unwrap_or(self.tie_word_embeddings)
    }

    /// Checks what is said of tower and projector.
    pub fn shape(&self) -> Result<Shape, Unsupported> {
        let inner = self.projector_hidden_size;
        Unsupported::zeros(&[
            ("projector_hidden_size", inner),
            ("downsample_factor", self.downsample_factor),
        ])?;
        Unsupported::too_large(&[("projector_hidden_size", inner)])?;
        if self.downsample_factor > MAX_FACTOR {
            let expected = format!("1 to {MAX_FACTOR}");
            let value = self.downsample_factor;
            return Err(Unsupported::new("downsample_factor", value, expected));
        }
        let tower = json::of_value::<VisionConfig>(&without_nulls(self.vision_config.clone(), &[]))
            .and_then(|vision| vision.sizes())
            .map_err(|unsupported| unsupported.within("vision_config"))?;
        Ok(Shape {
            tower,
            factor: self.downsample_factor,
            projector: Projecting {
                inner,
                bias: self.projector_bias,
                norm: self.projector_use_layernorm,
                activation: activation_of("projector_hidden_act", &self.projector_hidden_act)?,
            },
        })
    }
}

impl VisionConfig {
    /// The tower's sizes, if it can be computed.
    fn sizes(&self) -> Result<Sizes, Unsupported> {
        if self.model_type != MODEL_TYPE {
            return Err(Unsupported::new("model_type", &self.model_type, MODEL_TYPE));
        }
        let side = self.num_patches.isqrt();
        if side * side != self.num_patches {
            let (value, expected) = (self.num_patches, "the square of a number");
            return Err(Unsupported::new("num_patches", value, expected));
        }
        let sizes = Sizes {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            image: side.saturating_mul(self.patch_size),
            patch: self.patch_size,
            activation: activation_of("hidden_act", &self.hidden_act)?,
            epsilon: self.layer_norm_eps,
        };
        sizes.check(self.num_channels)?;
        Ok(sizes)
    }
}
