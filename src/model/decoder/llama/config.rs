//! The configuration of the decoders that are built like Llama: Llama, Mistral, Qwen2, Qwen3, and Cosmos 3 Edge but for its MLP.

use serde::Deserialize;
use serde_json::{json, Value};

use crate::cache::{CacheShape, StateShape};
use crate::model::activation::Activation;
use crate::model::decoder::attention::Heads;
use crate::model::decoder::rope::{Beside, RopeParameters};
use crate::model::decoder::Unsupported;
use crate::model::fields::without_nulls;
use crate::model::json;

/// Mirrors the `text_config` of a checkpoint, or its whole `config.json` if it is a decoder alone.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    pub model_type: String,
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
    /// Farthest key that a query sees, tokens.
    pub sliding_window: Option<usize>,
    pub use_sliding_window: Option<bool>,
    /// Top-level form, as older checkpoints carry it.
    pub rope_theta: Option<f64>,
    /// Older form of scaled rotary embeddings.
    pub rope_scaling: Option<RopeParameters>,
    /// The form that transformers 5 writes.
    pub rope_parameters: Option<RopeParameters>,
    /// The kind of each layer, where they are told apart.
    pub layer_types: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model_type: "llama".to_string(),
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
            sliding_window: None,
            use_sliding_window: None,
            rope_theta: None,
            rope_scaling: None,
            rope_parameters: None,
            layer_types: Vec::new(),
        }
    }
}

/// The values that a configuration of `model_type` leaves out, where they are not Llama's: the defaults of transformers' classes.
fn class_defaults(model_type: &str) -> Value {
    let qwen = json!({
        "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
        "max_position_embeddings": 32768, "use_sliding_window": false, "sliding_window": 4096,
    });
    let with = |mut base: Value, changes: Value| {
        merge(&mut base, changes);
        base
    };
    match model_type {
        "mistral" => json!({
            "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "sliding_window": 4096,
        }),
        "qwen2" => qwen,
        "qwen3" => with(qwen, json!({ "head_dim": 128 })),
        QWEN2_5_VL | QWEN2_VL => json!({
            "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568,
            "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
            "use_sliding_window": false, "sliding_window": 4096,
        }),
        QWEN3_VL => with(
            qwen,
            json!({ "head_dim": 128, "max_position_embeddings": 128000, "rope_theta": 5e5, "sliding_window": null }),
        ),
        COSMOS3_EDGE => json!({
            "vocab_size": 131072, "hidden_size": 2048, "intermediate_size": 9216, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": SQUARED_RELU,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1e8,
        }),
        _ => json!({}),
    }
}

/// Text parts of the Qwen-VL families, which flat hub files do not name.
pub const QWEN2_VL: &str = "qwen2_vl_text";
pub const QWEN2_5_VL: &str = "qwen2_5_vl_text";
pub const QWEN3_VL: &str = "qwen3_vl_text";
/// That of Cosmos 3 Edge.
pub const COSMOS3_EDGE: &str = "cosmos3_edge_text";

/// What configurations call `max(x, 0)^2`.
const SQUARED_RELU: &str = "relu2";

/// The kinds that are read.
pub const KINDS: [&str; 8] = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    QWEN2_VL,
    QWEN2_5_VL,
    QWEN3_VL,
    COSMOS3_EDGE,
];

/// Fields of which null says something: no window, a head's share of hidden_size, as many KV heads as heads. Null elsewhere says nothing.
const NONE_COUNTS: [&str; 3] = ["sliding_window", "head_dim", "num_key_value_heads"];

/// Puts the fields of `changes` over those of `base`.
fn merge(base: &mut Value, changes: Value) {
    if let (Value::Object(base), Value::Object(changes)) = (base, changes) {
        base.extend(changes);
    }
}

impl Config {
    /// Of a configuration in JSON, with what it leaves out; `kind` is what it is if it does not say so.
    pub fn from_json(json: Value, kind: &str) -> Result<Self, Unsupported> {
        let kind = json["model_type"].as_str().unwrap_or(kind).to_string();
        let mut whole = class_defaults(&kind);
        merge(&mut whole, without_nulls(json, &NONE_COUNTS));
        merge(&mut whole, json!({ "model_type": kind }));
        json::of_value(&whole)
    }

    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    pub fn head_dim(&self) -> usize {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    pub fn heads(&self) -> Heads {
        Heads {
            heads: self.num_attention_heads,
            kv_heads: self.kv_heads(),
            head_dim: self.head_dim(),
        }
    }

    pub fn tied(&self) -> bool {
        self.tie_word_embeddings.unwrap_or(false)
    }

    /// Queries, keys and values have biases.
    pub fn qkv_bias(&self) -> bool {
        self.attention_bias || ["qwen2", QWEN2_VL, QWEN2_5_VL].contains(&self.model_type.as_str())
    }

    /// Queries and keys are normalised head by head.
    pub fn qk_norm(&self) -> bool {
        ["qwen3", QWEN3_VL].contains(&self.model_type.as_str())
    }

    /// The MLP is a gated unit; else two products with a squared ReLU between them.
    pub fn gated(&self) -> bool {
        self.model_type != COSMOS3_EDGE
    }

    /// The parameters of the rotary embedding, with the axes of positions that the model's class has.
    fn rope(&self) -> RopeParameters {
        let mut rope =
            RopeParameters::of(self.rope_scaling.as_ref(), self.rope_parameters.as_ref());
        let axes = match self.model_type.as_str() {
            QWEN2_VL | QWEN2_5_VL => Some(([16, 24, 24], false)),
            QWEN3_VL | COSMOS3_EDGE => Some(([24, 20, 20], true)),
            _ => None,
        };
        if let Some((sections, interleaved)) = axes {
            rope.mrope_section.get_or_insert(sections.to_vec());
            rope.mrope_interleaved.get_or_insert(interleaved);
        }
        rope
    }

    /// Longest input, tokens. Within its window a sliding one is no different from full attention, so that a cache that is not
    /// larger computes what the checkpoint was made for.
    pub fn max_positions(&self) -> usize {
        match self.sliding_window {
            Some(window) if self.use_sliding_window != Some(false) => {
                window.min(self.max_position_embeddings)
            }
            _ => self.max_position_embeddings,
        }
    }

    /// Checks that this decoder can compute what is configured; returns what the cache must know of it.
    pub fn cache_shape(&self) -> Result<CacheShape, Unsupported> {
        if !KINDS.contains(&self.model_type.as_str()) {
            return Err(Unsupported::new(
                "model_type",
                &self.model_type,
                KINDS.join(", "),
            ));
        }
        let activation = match self.gated() {
            true => (
                "silu",
                Activation::parse(&self.hidden_act) == Some(Activation::Silu),
            ),
            false => (SQUARED_RELU, self.hidden_act == SQUARED_RELU),
        };
        if let (expected, false) = activation {
            return Err(Unsupported::new("hidden_act", &self.hidden_act, expected));
        }
        let (heads, kv_heads, head_dim) =
            (self.num_attention_heads, self.kv_heads(), self.head_dim());
        Unsupported::zeros(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", heads),
            ("num_key_value_heads", kv_heads),
            ("head_dim", head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
        ])?;
        Unsupported::too_large(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            (
                "num_attention_heads * head_dim",
                heads.saturating_mul(head_dim),
            ),
        ])?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(Unsupported::new(
                "num_key_value_heads",
                kv_heads,
                format!("a divisor of num_attention_heads ({heads})"),
            ));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(Unsupported::new("head_dim", head_dim, "an even number"));
        }
        Unsupported::negative(&[("rms_norm_eps", self.rms_norm_eps)])?;
        let beside = Beside {
            head_dim,
            theta: self.rope_theta.unwrap_or(10_000.0),
            rotary_share: 1.0,
            max_position_embeddings: self.max_position_embeddings,
            layer_types: &self.layer_types,
        };
        Ok(CacheShape {
            layers: self.num_hidden_layers,
            heads,
            kv_heads,
            head_dim,
            rope: self.rope().rope(&beside)?,
            max_positions: self.max_positions(),
            states: StateShape::NONE,
        })
    }
}
