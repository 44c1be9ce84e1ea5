//! The configuration of Qwen3.5's decoder: Gated DeltaNet, and attention in every fourth layer.

use serde::Deserialize;
use serde_json::Value;

use crate::cache::{CacheShape, StateShape};
use crate::model::activation::Activation;
use crate::model::decoder::attention::Heads;
use crate::model::decoder::layer_types::{attending, check_width, keeping_keys};
use crate::model::decoder::rope::{Beside, RopeParameters};
use crate::model::decoder::Unsupported;
use crate::model::fields::without_nulls;
use crate::model::json;

pub const QWEN3_5: &str = "qwen3_5_text";

/// Mirrors the `text_config` of a checkpoint; missing fields have the values of transformers' `Qwen3_5TextConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    hidden_act: String,
    max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    attention_bias: bool,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    /// Width of the convolution, tokens.
    linear_conv_kernel_dim: usize,
    linear_key_head_dim: usize,
    linear_value_head_dim: usize,
    linear_num_key_heads: usize,
    linear_num_value_heads: usize,
    layer_types: Option<Vec<String>>,
    /// Every so many layers one attends, in files without `layer_types`.
    full_attention_interval: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 248_320,
            hidden_size: 4096,
            intermediate_size: 12_288,
            num_hidden_layers: 32,
            num_attention_heads: 16,
            num_key_value_heads: 4,
            head_dim: 256,
            hidden_act: "silu".to_string(),
            max_position_embeddings: 32_768,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            attention_bias: false,
            rope_theta: None,
            partial_rotary_factor: None,
            rope_scaling: None,
            rope_parameters: None,
            linear_conv_kernel_dim: 4,
            linear_key_head_dim: 128,
            linear_value_head_dim: 128,
            linear_num_key_heads: 16,
            linear_num_value_heads: 32,
            layer_types: None,
            full_attention_interval: 4,
        }
    }
}

const LINEAR: &str = "linear_attention";

/// Heads of linear attention, and how wide they are.
#[derive(Debug, Clone, Copy)]
pub struct LinearHeads {
    /// Each serves as many of the others as there are for one.
    pub key_heads: usize,
    pub value_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// Width of the convolution, tokens.
    pub width: usize,
}

impl LinearHeads {
    /// Numbers of all keys, and of all queries.
    pub fn keys(&self) -> usize {
        self.key_heads.saturating_mul(self.key_dim)
    }

    /// Numbers of all values.
    pub fn values(&self) -> usize {
        self.value_heads.saturating_mul(self.value_dim)
    }

    /// Channels of the convolution.
    pub fn channels(&self) -> usize {
        self.keys().saturating_mul(2).saturating_add(self.values())
    }
}

impl Config {
    /// Of a configuration in JSON, with what it leaves out.
    pub fn from_json(json: Value) -> Result<Self, Unsupported> {
        json::of_value(&without_nulls(json, &[]))
    }

    pub fn heads(&self) -> Heads {
        Heads {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
        }
    }

    pub fn linear_heads(&self) -> LinearHeads {
        LinearHeads {
            key_heads: self.linear_num_key_heads,
            value_heads: self.linear_num_value_heads,
            key_dim: self.linear_key_head_dim,
            value_dim: self.linear_value_head_dim,
            width: self.linear_conv_kernel_dim,
        }
    }

    /// Of each layer, whether it attends; the others are linear.
    pub fn attends(&self) -> Result<Vec<bool>, Unsupported> {
        let layers = self.num_hidden_layers;
        let Some(types) = &self.layer_types else {
            let interval = self.full_attention_interval;
            Unsupported::zeros(&[("full_attention_interval", interval)])?;
            return Ok((1..=layers).map(|i| i.is_multiple_of(interval)).collect());
        };
        attending(types, layers, LINEAR)
    }

    /// Checks that this decoder can compute what is configured; returns what the cache must know of it.
    pub fn cache_shape(&self) -> Result<CacheShape, Unsupported> {
        if Activation::parse(&self.hidden_act) != Some(Activation::Silu) {
            return Err(Unsupported::new("hidden_act", &self.hidden_act, "silu"));
        }
        if self.attention_bias {
            return Err(Unsupported::new("attention_bias", true, false));
        }
        let (attention, linear) = (self.heads(), self.linear_heads());
        Unsupported::zeros(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", attention.heads),
            ("num_key_value_heads", attention.kv_heads),
            ("head_dim", attention.head_dim),
            ("linear_num_key_heads", linear.key_heads),
            ("linear_num_value_heads", linear.value_heads),
            ("linear_key_head_dim", linear.key_dim),
            ("linear_value_head_dim", linear.value_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        Unsupported::too_large(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            (
                "num_attention_heads * head_dim",
                attention.heads.saturating_mul(attention.head_dim),
            ),
            ("channels of linear attention", linear.channels()),
        ])?;
        for (name, heads, per, of) in [
            (
                "num_key_value_heads",
                attention.kv_heads,
                "num_attention_heads",
                attention.heads,
            ),
            (
                "linear_num_key_heads",
                linear.key_heads,
                "linear_num_value_heads",
                linear.value_heads,
            ),
        ] {
            if !of.is_multiple_of(heads) {
                let expected = format!("a divisor of {per} ({of})");
                return Err(Unsupported::new(name, heads, expected));
            }
        }
        let head_dim = attention.head_dim;
        if !head_dim.is_multiple_of(2) {
            return Err(Unsupported::new("head_dim", head_dim, "an even number"));
        }
        check_width("linear_conv_kernel_dim", linear.width)?;
        Unsupported::negative(&[("rms_norm_eps", self.rms_norm_eps)])?;
        let attends = self.attends()?;
        let layers = keeping_keys(&attends)?;
        let beside = Beside {
            head_dim,
            theta: self.rope_theta.unwrap_or(10_000.0),
            rotary_share: self.partial_rotary_factor.unwrap_or(0.25),
            max_position_embeddings: self.max_position_embeddings,
            // Linear layers do not rotate.
            layer_types: &[],
        };
        Ok(CacheShape {
            layers,
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head_dim,
            rope: self.rope().rope(&beside)?,
            max_positions: self.max_position_embeddings,
            states: StateShape {
                layers: attends.len() - layers,
                inputs: [linear.width - 1, linear.channels()],
                matrices: [linear.value_heads, linear.key_dim, linear.value_dim],
            },
        })
    }

    /// The parameters of the rotary embedding, with the axes of positions that the model's class has.
    fn rope(&self) -> RopeParameters {
        let mut rope =
            RopeParameters::of(self.rope_scaling.as_ref(), self.rope_parameters.as_ref());
        rope.mrope_section.get_or_insert(vec![11, 11, 10]);
        rope.mrope_interleaved = Some(true);
        rope
    }
}
