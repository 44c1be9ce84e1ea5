//! Which decoder a checkpoint has, and what is said of a configuration that cannot be computed.

use std::fmt::Display;
use std::path::PathBuf;

use serde_json::Value;

use super::{gpt_neox, lfm2, llama, qwen3_5};
use crate::cache::CacheShape;
use crate::excerpt::excerpt;
use crate::model::fields::without_nulls;
use crate::model::{json, ModelError};

/// A configuration that cannot be honoured.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{field} is {value}, expected {expected}")]
pub struct Unsupported {
    pub field: String,
    pub value: String,
    pub expected: String,
}

/// Sizes beyond this belong to no model, and products of two of them could overflow.
const MAX_SIZE: usize = 1 << 24;

impl Unsupported {
    pub fn new(field: impl Display, value: impl Display, expected: impl Display) -> Self {
        Self {
            field: field.to_string(),
            value: excerpt(&value.to_string()),
            expected: expected.to_string(),
        }
    }

    /// Fails for the first size that is 0.
    pub fn zeros(sizes: &[(&str, usize)]) -> Result<(), Self> {
        match sizes.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(Self::new(name, 0, "at least 1")),
            None => Ok(()),
        }
    }

    /// Fails for the first number that is below 0 or infinite.
    pub fn negative(numbers: &[(&str, f64)]) -> Result<(), Self> {
        let wrong = |value: f64| !value.is_finite() || value < 0.0;
        match numbers.iter().find(|(_, value)| wrong(*value)) {
            Some((name, value)) => Err(Self::new(name, value, "a number from 0 on")),
            None => Ok(()),
        }
    }

    /// Fails for the first size that is beyond any model's.
    pub fn too_large(sizes: &[(&str, usize)]) -> Result<(), Self> {
        match sizes.iter().find(|(_, value)| *value > MAX_SIZE) {
            Some((name, value)) => Err(Self::new(name, value, format!("at most {MAX_SIZE}"))),
            None => Ok(()),
        }
    }

    /// The same of a field within `part`.
    pub fn within(mut self, part: &str) -> Self {
        self.field = format!("{part}.{}", self.field);
        self
    }

    /// As an error about `file`.
    pub fn of(self, file: PathBuf) -> ModelError {
        ModelError::Unsupported {
            file,
            field: self.field,
            value: self.value,
            expected: self.expected,
        }
    }
}

/// The configuration of a text decoder.
#[derive(Debug, Clone)]
pub enum Config {
    /// Llama, Mistral, Qwen2, Qwen3.
    Llama(llama::Config),
    GptNeoX(gpt_neox::Config),
    Lfm2(lfm2::Config),
    Qwen3_5(qwen3_5::Config),
}

impl Config {
    /// What `model_type` says of decoders that stand alone.
    pub const KINDS: [&str; 10] = [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        llama::QWEN2_VL,
        llama::QWEN2_5_VL,
        llama::QWEN3_VL,
        "gpt_neox",
        lfm2::LFM2,
        qwen3_5::QWEN3_5,
    ];

    /// Of a configuration in JSON; `kind` is its model_type if it does not say so.
    pub fn from_json(json: Value, kind: &str) -> Result<Self, Unsupported> {
        match json["model_type"].as_str().unwrap_or(kind) {
            "gpt_neox" => Ok(Self::GptNeoX(json::of_value(&without_nulls(json, &[]))?)),
            lfm2::LFM2 => Ok(Self::Lfm2(lfm2::Config::from_json(json)?)),
            qwen3_5::QWEN3_5 => Ok(Self::Qwen3_5(qwen3_5::Config::from_json(json)?)),
            _ => Ok(Self::Llama(llama::Config::from_json(json, kind)?)),
        }
    }

    pub fn model_type(&self) -> &str {
        match self {
            Self::Llama(cfg) => &cfg.model_type,
            Self::GptNeoX(_) => "gpt_neox",
            Self::Lfm2(_) => lfm2::LFM2,
            Self::Qwen3_5(_) => qwen3_5::QWEN3_5,
        }
    }

    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Llama(cfg) => cfg.vocab_size,
            Self::GptNeoX(cfg) => cfg.vocab_size,
            Self::Lfm2(cfg) => cfg.vocab_size,
            Self::Qwen3_5(cfg) => cfg.vocab_size,
        }
    }

    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Llama(cfg) => cfg.hidden_size,
            Self::GptNeoX(cfg) => cfg.hidden_size,
            Self::Lfm2(cfg) => cfg.hidden_size,
            Self::Qwen3_5(cfg) => cfg.hidden_size,
        }
    }

    /// Whether the output layer is the input embedding.
    pub fn tied(&self) -> bool {
        match self {
            Self::Llama(cfg) => cfg.tied(),
            Self::GptNeoX(cfg) => cfg.tie_word_embeddings,
            Self::Lfm2(cfg) => cfg.tied(),
            Self::Qwen3_5(cfg) => cfg.tie_word_embeddings,
        }
    }

    /// Says that the output layer is the input embedding.
    pub fn set_tied(&mut self) {
        match self {
            Self::Llama(cfg) => cfg.tie_word_embeddings = Some(true),
            Self::GptNeoX(cfg) => cfg.tie_word_embeddings = true,
            Self::Lfm2(cfg) => cfg.set_tied(),
            Self::Qwen3_5(cfg) => cfg.tie_word_embeddings = true,
        }
    }

    /// Checks that the decoder can be computed; returns what the cache must know of it.
    pub fn cache_shape(&self) -> Result<CacheShape, Unsupported> {
        match self {
            Self::Llama(cfg) => cfg.cache_shape(),
            Self::GptNeoX(cfg) => cfg.cache_shape(),
            Self::Lfm2(cfg) => cfg.cache_shape(),
            Self::Qwen3_5(cfg) => cfg.cache_shape(),
        }
    }
}
