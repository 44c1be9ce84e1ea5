//! What a checkpoint's `generation_config.json` asks of whoever chooses tokens, beside where an answer ends ([`super::ends`]).

use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::decoder::Unsupported;
use super::ends::{listed, GENERATION};
use super::tokenizer::ChatTokenizer;
use super::ModelError;

/// The published rules of choosing a token.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationRules {
    /// As [`super::chooser::Chooser`] has it; 1: none.
    pub repetition_penalty: f64,
    /// Ids that are never chosen.
    pub suppressed: Vec<u32>,
}

impl Default for GenerationRules {
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            suppressed: Vec::new(),
        }
    }
}

impl GenerationRules {
    /// The penalty that counts where this one is asked for; 0: none is.
    pub fn penalty(&self, asked: f64) -> f64 {
        match asked {
            0.0 => self.repetition_penalty,
            asked => asked,
        }
    }

    /// From `repetition_penalty` and `suppress_tokens`, which transformers' `GenerationConfig` has. Where nothing is said there are no rules.
    pub fn load(checkpoint: &Checkpoint, tokenizer: &ChatTokenizer) -> Result<Self, ModelError> {
        if !checkpoint.has(GENERATION) {
            return Ok(Self::default());
        }
        let json: Value = checkpoint.json(GENERATION)?;
        let refused = |field: &'static str, expected: &'static str| {
            Unsupported::new(field, &json[field], expected).of(checkpoint.path(GENERATION))
        };
        let repetition_penalty = match &json["repetition_penalty"] {
            Value::Null => 1.0,
            given => given
                .as_f64()
                .filter(|penalty| penalty.is_finite() && *penalty > 0.0)
                .ok_or_else(|| refused("repetition_penalty", "a number above 0"))?,
        };
        let mut suppressed = listed(&json["suppress_tokens"])
            .ok_or_else(|| refused("suppress_tokens", "the id of a token, or a list of them"))?;
        suppressed.retain(|&id| tokenizer.has(id));
        Ok(Self {
            repetition_penalty,
            suppressed,
        })
    }
}
