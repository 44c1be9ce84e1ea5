//! The configuration of LFM2 (arXiv 2511.23404): short convolutions, and attention in some of the layers.

use serde::Deserialize;
use serde_json::Value;

use crate::cache::{CacheShape, StateShape};
use crate::model::decoder::attention::Heads;
use crate::model::decoder::layer_types::{attending, check_width, keeping_keys};
use crate::model::decoder::rope::{Beside, RopeParameters};
use crate::model::decoder::Unsupported;
use crate::model::fields::without_nulls;
use crate::model::json;

pub const LFM2: &str = "lfm2";

/// Mirrors the `text_config` of a checkpoint, or its whole `config.json` if it is a decoder alone; missing fields have the values of
/// transformers' `Lfm2Config`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    intermediate_size: usize,
    /// The same in the hub's files, which wins.
    block_ff_dim: Option<usize>,
    pub num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    pub norm_eps: f64,
    pub tie_word_embeddings: bool,
    /// The same in the hub's files, which wins.
    tie_embedding: Option<bool>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    pub conv_bias: bool,
    /// Width of the convolution, tokens.
    #[serde(rename = "conv_L_cache")]
    pub conv_width: usize,
    block_auto_adjust_ff_dim: bool,
    /// Null: no multiplier.
    block_ffn_dim_multiplier: Option<f64>,
    block_multiple_of: usize,
    layer_types: Option<Vec<String>>,
    /// Which layers attend, in files without `layer_types`.
    full_attn_idxs: Option<Vec<usize>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 65536,
            hidden_size: 2560,
            intermediate_size: 12288,
            block_ff_dim: None,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 8,
            head_dim: None,
            max_position_embeddings: 128_000,
            norm_eps: 1e-5,
            tie_word_embeddings: true,
            tie_embedding: None,
            rope_theta: None,
            rope_scaling: None,
            rope_parameters: None,
            conv_bias: false,
            conv_width: 3,
            block_auto_adjust_ff_dim: true,
            block_ffn_dim_multiplier: Some(1.0),
            block_multiple_of: 256,
            layer_types: None,
            full_attn_idxs: None,
        }
    }
}

const CONVOLUTION: &str = "conv";

impl Config {
    /// Of a configuration in JSON, with what it leaves out.
    pub fn from_json(json: Value) -> Result<Self, Unsupported> {
        json::of_value(&without_nulls(json, &["block_ffn_dim_multiplier"]))
    }

    pub fn tied(&self) -> bool {
        self.tie_embedding.unwrap_or(self.tie_word_embeddings)
    }

    /// Says that the output layer is the input embedding.
    pub fn set_tied(&mut self) {
        self.tie_embedding = Some(true);
    }

    pub fn heads(&self) -> Heads {
        Heads {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self
                .head_dim
                .unwrap_or(self.hidden_size / self.num_attention_heads.max(1)),
        }
    }

    /// Width within the gated MLP (`Lfm2MLP` of transformers 5.23).
    pub fn inner_size(&self) -> usize {
        let given = self.block_ff_dim.unwrap_or(self.intermediate_size);
        if !self.block_auto_adjust_ff_dim {
            return given;
        }
        let inner = given.saturating_mul(2) / 3;
        match self.block_ffn_dim_multiplier {
            // What a multiplier makes of it is whole multiples.
            Some(factor) => ((factor * inner as f64) as usize)
                .div_ceil(self.block_multiple_of.max(1))
                .saturating_mul(self.block_multiple_of),
            None => inner,
        }
    }

    /// Of each layer, whether it attends; the others are convolutions.
    pub fn attends(&self) -> Result<Vec<bool>, Unsupported> {
        let layers = self.num_hidden_layers;
        let Some(types) = &self.layer_types else {
            let Some(attending) = &self.full_attn_idxs else {
                return Ok(vec![true; layers]);
            };
            return Ok((0..layers).map(|i| attending.contains(&i)).collect());
        };
        attending(types, layers, CONVOLUTION)
    }

    /// Checks that this decoder can compute what is configured; returns what the cache must know of it.
    pub fn cache_shape(&self) -> Result<CacheShape, Unsupported> {
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = self.heads();
        let inner = self.inner_size();
        Unsupported::zeros(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", inner),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", heads),
            ("num_key_value_heads", kv_heads),
            ("head_dim", head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        Unsupported::too_large(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", inner),
            ("num_hidden_layers", self.num_hidden_layers),
            (
                "num_attention_heads * head_dim",
                heads.saturating_mul(head_dim),
            ),
        ])?;
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads ({heads})");
            return Err(Unsupported::new("num_key_value_heads", kv_heads, expected));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(Unsupported::new("head_dim", head_dim, "an even number"));
        }
        check_width("conv_L_cache", self.conv_width)?;
        Unsupported::negative(&[("norm_eps", self.norm_eps)])?;
        let attends = self.attends()?;
        let layers = keeping_keys(&attends)?;
        let beside = Beside {
            head_dim,
            theta: self.rope_theta.unwrap_or(1e6),
            rotary_share: 1.0,
            max_position_embeddings: self.max_position_embeddings,
            // Convolutions do not rotate.
            layer_types: &[],
        };
        let rope = RopeParameters::of(self.rope_scaling.as_ref(), self.rope_parameters.as_ref());
        Ok(CacheShape {
            layers,
            heads,
            kv_heads,
            head_dim,
            rope: rope.rope(&beside)?,
            max_positions: self.max_position_embeddings,
            states: StateShape {
                layers: attends.len() - layers,
                inputs: [self.conv_width - 1, self.hidden_size],
                ..StateShape::NONE
            },
        })
    }
}
