//! The configuration of a GPT-NeoX decoder as checkpoints carry it.

use serde::Deserialize;

use crate::cache::{CacheShape, StateShape};
use crate::model::activation::Activation;
use crate::model::decoder::attention::Heads;
use crate::model::decoder::rope::{Beside, RopeParameters};
use crate::model::decoder::Unsupported;

/// Mirrors `config.json`; missing fields have the values of transformers' `GPTNeoXConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub hidden_act: String,
    pub rotary_pct: f64,
    pub rotary_emb_base: f64,
    pub rope_scaling: Option<RopeParameters>,
    /// The form that transformers 5 writes.
    pub rope_parameters: Option<RopeParameters>,
    pub max_position_embeddings: usize,
    pub layer_norm_eps: f64,
    pub use_parallel_residual: bool,
    pub attention_bias: bool,
    pub tie_word_embeddings: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 50432,
            hidden_size: 6144,
            num_hidden_layers: 44,
            num_attention_heads: 64,
            intermediate_size: 24576,
            hidden_act: "gelu".to_string(),
            rotary_pct: 0.25,
            rotary_emb_base: 10_000.0,
            rope_scaling: None,
            rope_parameters: None,
            max_position_embeddings: 2048,
            layer_norm_eps: 1e-5,
            use_parallel_residual: true,
            attention_bias: true,
            tie_word_embeddings: false,
        }
    }
}

impl Config {
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads.max(1)
    }

    pub fn heads(&self) -> Heads {
        Heads {
            heads: self.num_attention_heads,
            kv_heads: self.num_attention_heads,
            head_dim: self.head_dim(),
        }
    }

    pub fn activation(&self) -> Result<Activation, Unsupported> {
        Activation::parse(&self.hidden_act).ok_or_else(|| {
            let expected = "gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, quick_gelu or silu";
            Unsupported::new("hidden_act", &self.hidden_act, expected)
        })
    }

    /// Checks that this decoder can compute what is configured; returns what the cache must know of it.
    pub fn cache_shape(&self) -> Result<CacheShape, Unsupported> {
        let (heads, head_dim) = (self.num_attention_heads, self.head_dim());
        Unsupported::zeros(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        Unsupported::too_large(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
        ])?;
        if !self.hidden_size.is_multiple_of(2 * heads) {
            return Err(Unsupported::new(
                "num_attention_heads",
                heads,
                format!(
                    "such that half of each head is a whole part of hidden_size ({})",
                    self.hidden_size
                ),
            ));
        }
        self.activation()?;
        Unsupported::negative(&[("layer_norm_eps", self.layer_norm_eps)])?;
        let rope = RopeParameters::of(self.rope_scaling.as_ref(), self.rope_parameters.as_ref());
        let beside = Beside {
            head_dim,
            theta: self.rotary_emb_base,
            rotary_share: self.rotary_pct,
            max_position_embeddings: self.max_position_embeddings,
            layer_types: &[],
        };
        Ok(CacheShape {
            layers: self.num_hidden_layers,
            heads,
            kv_heads: heads,
            head_dim,
            rope: rope.rope(&beside)?,
            max_positions: self.max_position_embeddings,
            states: StateShape::NONE,
        })
    }
}
