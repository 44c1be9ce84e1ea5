//! The configuration of a Llama decoder as checkpoints carry it.

use serde::Deserialize;

use crate::cache::CacheShape;

/// Mirrors the `text_config` of a checkpoint; missing fields have the values of transformers' `LlamaConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub hidden_act: String,
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub tie_word_embeddings: Option<bool>,
    /// Top-level form, as older checkpoints carry it.
    pub rope_theta: Option<f64>,
    /// Older form of scaled rotary embeddings.
    pub rope_scaling: Option<serde_json::Value>,
    /// The form that transformers 5 writes.
    pub rope_parameters: Option<RopeParameters>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct RopeParameters {
    pub rope_theta: Option<f64>,
    pub rope_type: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            hidden_act: "silu".to_string(),
            attention_bias: false,
            mlp_bias: false,
            tie_word_embeddings: None,
            rope_theta: None,
            rope_scaling: None,
            rope_parameters: None,
        }
    }
}

impl Config {
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    pub fn head_dim(&self) -> usize {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    pub fn theta(&self) -> f64 {
        self.rope_parameters
            .as_ref()
            .and_then(|rope| rope.rope_theta)
            .or(self.rope_theta)
            .unwrap_or(10_000.0)
    }

    /// The first field that this decoder cannot honour: name, value, what was expected.
    pub fn unsupported(&self) -> Option<(&'static str, String, String)> {
        let rope_type = self
            .rope_parameters
            .as_ref()
            .and_then(|rope| rope.rope_type.clone())
            .or_else(|| {
                self.rope_scaling
                    .as_ref()
                    .map(|scaling| scaling.to_string())
            })
            .filter(|kind| kind != "default" && kind != "null");
        let heads = self.num_attention_heads;
        if self.hidden_act != "silu" {
            return Some(("hidden_act", self.hidden_act.clone(), "silu".into()));
        }
        if let Some(kind) = rope_type {
            return Some(("rope_type", kind, "default".into()));
        }
        if self.attention_bias {
            return Some(("attention_bias", "true".into(), "false".into()));
        }
        if self.mlp_bias {
            return Some(("mlp_bias", "true".into(), "false".into()));
        }
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", heads),
            ("num_key_value_heads", self.kv_heads()),
            ("head_dim", self.head_dim()),
        ] {
            if value == 0 {
                return Some((name, "0".into(), "at least 1".into()));
            }
        }
        if !heads.is_multiple_of(self.kv_heads()) {
            return Some((
                "num_key_value_heads",
                self.kv_heads().to_string(),
                format!("a divisor of num_attention_heads ({heads})"),
            ));
        }
        if !self.head_dim().is_multiple_of(2) {
            return Some((
                "head_dim",
                self.head_dim().to_string(),
                "an even number".into(),
            ));
        }
        None
    }

    pub fn cache_shape(&self) -> CacheShape {
        CacheShape {
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.kv_heads(),
            head_dim: self.head_dim(),
            rope_theta: self.theta(),
            max_positions: self.max_position_embeddings,
        }
    }
}
