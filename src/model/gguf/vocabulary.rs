//! The vocabulary of a GGUF file as a `tokenizer.json`, and what goes with it: end token and chat template.

use serde_json::{json, Map, Value as Json};

use super::Contents;
use crate::model::ModelError;

pub const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const MODEL: &str = "tokenizer.ggml.model";
const SPLIT: &str = "tokenizer.ggml.pre";

/// Kinds of tokens in llama.cpp's numbering: control tokens and those that a model's maker added.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

impl Contents<'_> {
    /// The tokenizer as `tokenizer.json` would describe it: byte-level BPE, split into words as GPT-2 or SmolLM does it.
    pub fn tokenizer_json(&self) -> Result<Json, ModelError> {
        let model = self.text(MODEL)?;
        if model != "gpt2" {
            return Err(self.unsupported(MODEL, format!("{model:?}"), "\"gpt2\"".to_string()));
        }
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let split = match self.optional_text(SPLIT)?.unwrap_or("gpt-2") {
            "gpt-2" => bytes.clone(),
            "smollm" => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                json!({"type": "Sequence", "pretokenizers": [digits, bytes]})
            }
            other => {
                let expected = "\"smollm\" or \"gpt-2\"".to_string();
                return Err(self.unsupported(SPLIT, format!("{other:?}"), expected));
            }
        };
        let tokens = self.texts(TOKENS)?;
        let mut vocab = Map::new();
        for (id, token) in tokens.iter().enumerate() {
            if vocab.insert((*token).to_string(), id.into()).is_some() {
                return Err(ModelError::File {
                    file: self.file().to_path_buf(),
                    what: format!("{TOKENS}: {token:?} is there twice"),
                });
            }
        }
        Ok(json!({
            "version": "1.0",
            "added_tokens": self.added_tokens(&tokens)?,
            "normalizer": null,
            "pre_tokenizer": split,
            "post_processor": null,
            "decoder": bytes,
            "model": {"type": "BPE", "vocab": vocab, "merges": self.texts(MERGES)?},
        }))
    }

    /// The token that ends an answer.
    pub fn end_token(&self) -> Result<Option<u32>, ModelError> {
        self.value("tokenizer.ggml.eos_token_id", "a token's id", |value| {
            value.whole().and_then(|id| u32::try_from(id).ok())
        })
    }

    pub fn chat_template(&self) -> Result<Option<&str>, ModelError> {
        self.optional_text("tokenizer.chat_template")
    }

    fn added_tokens(&self, tokens: &[&str]) -> Result<Vec<Json>, ModelError> {
        let types = self.list(TYPES)?;
        if types.len() != tokens.len() {
            let expected = format!("{}, that of {TOKENS}", tokens.len());
            return Err(self.unsupported(
                &format!("length of {TYPES}"),
                types.len().to_string(),
                expected,
            ));
        }
        let mut added = Vec::new();
        for (id, (token, kind)) in tokens.iter().zip(types).enumerate() {
            let described = kind.clone();
            let kind = kind.whole().ok_or_else(|| {
                let expected = "a whole number".to_string();
                self.unsupported(&format!("{TYPES}[{id}]"), described.describe(), expected)
            })?;
            if [CONTROL, USER_DEFINED].contains(&kind) {
                added.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": kind == CONTROL,
                }));
            }
        }
        Ok(added)
    }

    fn texts(&self, key: &str) -> Result<Vec<&str>, ModelError> {
        self.list(key)?
            .enumerate()
            .map(|(i, value)| {
                let described = value.clone();
                value.text().ok_or_else(|| {
                    let expected = "a string".to_string();
                    self.unsupported(&format!("{key}[{i}]"), described.describe(), expected)
                })
            })
            .collect()
    }
}
