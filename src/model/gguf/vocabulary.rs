//! The vocabulary of a GGUF file as a `tokenizer.json`, and what goes with it: the tokens that begin and end, the chat template.

use serde_json::{json, Map, Value as Json};

use super::value::Value;
use super::Gguf;
use crate::model::ModelError;

pub const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const MODEL: &str = "tokenizer.ggml.model";
const SPLIT: &str = "tokenizer.ggml.pre";
const BEGIN: &str = "tokenizer.ggml.bos_token_id";
const ADD_BEGIN: &str = "tokenizer.ggml.add_bos_token";

/// Tokens that end an answer: of a text, of a turn, of a message.
const ENDS: [&str; 3] = [
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
];

/// The control token that ends a text, and answers too, as llama.cpp has it: no key names it where another ends a turn.
const END_OF_TEXT: &str = "<|endoftext|>";

/// Kinds of tokens in llama.cpp's numbering.
pub mod kind {
    pub const NORMAL: u64 = 1;
    pub const UNKNOWN: u64 = 2;
    pub const CONTROL: u64 = 3;
    /// Added by a model's maker.
    pub const USER_DEFINED: u64 = 4;
    /// Rows of the embedding that the tokenizer has no token for.
    pub const UNUSED: u64 = 5;
}

/// How GPT-2 cuts text into words.
const GPT2_WORDS: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// How Llama 3 and Qwen2 do, with at most so many digits in one.
fn words(digits: &str) -> String {
    let contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
    format!(
        r"{contractions}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

impl Gguf {
    /// The tokenizer as a published `tokenizer.json` describes it.
    pub(super) fn tokenizer_json(&self) -> Result<Json, ModelError> {
        let tokens = self.elements(TOKENS, "a string", Value::text)?;
        let kinds = self.elements(TYPES, "a whole number", Value::whole)?;
        if kinds.len() != tokens.len() {
            let expected = format!("{}, that of {TOKENS}", tokens.len());
            return Err(self.unsupported(&format!("length of {TYPES}"), kinds.len(), expected));
        }
        let mut vocab = Map::new();
        for (id, token) in tokens.iter().enumerate() {
            if vocab.insert((*token).to_string(), id.into()).is_some() {
                return Err(self.fail(format!("{TOKENS}: {token:?} is there twice")));
            }
        }
        let mut json = match self.text(MODEL)? {
            "gpt2" => {
                // An answer holds no ids that the tokenizer does not know.
                let kinds = tokens.iter().zip(&kinds);
                for (token, _) in kinds.filter(|(_, &kind)| kind == kind::UNUSED) {
                    vocab.remove(*token);
                }
                self.byte_level()?
            }
            "llama" => self.sentence_piece(&tokens, &kinds)?,
            other => {
                let expected = "\"gpt2\" or \"llama\"";
                return Err(self.unsupported(MODEL, format!("{other:?}"), expected));
            }
        };
        json["version"] = "1.0".into();
        json["added_tokens"] = added_tokens(&tokens, &kinds).into();
        json["post_processor"] = match self.begin()? {
            Some(id) => begin_with(id, &self.token(&tokens, BEGIN, id)?),
            None => Json::Null,
        };
        json["model"]["type"] = "BPE".into();
        json["model"]["vocab"] = vocab.into();
        Ok(json)
    }

    /// The chat template with the texts of begin and end, as a published `tokenizer_config.json` has them.
    pub(super) fn tokenizer_config(&self) -> Result<Json, ModelError> {
        let tokens = self.elements(TOKENS, "a string", Value::text)?;
        let mut json = json!({ "chat_template": self.optional_text("tokenizer.chat_template")? });
        for (name, key) in [("bos_token", BEGIN), ("eos_token", ENDS[0])] {
            let id = self.id(key)?.and_then(|id| usize::try_from(id).ok());
            if let Some(token) = id.and_then(|id| tokens.get(id)) {
                json[name] = (*token).into();
            }
        }
        Ok(json)
    }

    /// The tokens that end an answer, as a published `generation_config.json` has them.
    pub(super) fn generation_config(&self) -> Result<Json, ModelError> {
        let ids = ENDS.iter().map(|key| self.id(key));
        let ids = ids.collect::<Result<Vec<_>, _>>()?;
        let mut ids = ids.into_iter().flatten().collect::<Vec<_>>();
        let tokens = self.elements(TOKENS, "a string", Value::text)?;
        let kinds = self.elements(TYPES, "a whole number", Value::whole)?;
        let mut all = (0..).zip(tokens.iter().zip(&kinds));
        let ends_text =
            all.find(|(_, (token, &kind))| **token == END_OF_TEXT && kind == kind::CONTROL);
        ids.extend(ends_text.map(|(id, _)| id));
        Ok(json!({ "eos_token_id": ids }))
    }

    pub(super) fn vocabulary_size(&self) -> Result<usize, ModelError> {
        Ok(self.list(TOKENS)?.len())
    }

    /// The id of the token with this text, if there is one.
    pub(super) fn token_id(&self, text: &str) -> Result<Option<usize>, ModelError> {
        let tokens = self.elements(TOKENS, "a string", Value::text)?;
        Ok(tokens.iter().position(|token| *token == text))
    }

    /// The token in front of every text. Where one is to follow every text too (`add_eos_token`), it does not: an answer follows.
    fn begin(&self) -> Result<Option<u32>, ModelError> {
        let (model, split) = (self.text(MODEL)?, self.optional_text(SPLIT)?);
        // What llama.cpp does without the keys.
        let llama3 = matches!(split, Some("llama-bpe" | "lfm2"));
        let sentence_piece = model == "llama";
        let id = match self.id(BEGIN)? {
            None if sentence_piece => Some(1),
            given => given,
        };
        let wanted = self.truth(ADD_BEGIN)?.unwrap_or(sentence_piece || llama3);
        Ok(id.filter(|_| wanted))
    }

    /// The text of `id`, which `key` names.
    fn token(&self, tokens: &[&str], key: &str, id: u32) -> Result<String, ModelError> {
        match tokens.get(id as usize) {
            Some(token) => Ok((*token).to_string()),
            None => Err(self.unsupported(key, id, format!("less than {}", tokens.len()))),
        }
    }

    /// Byte-level BPE, cut into words as `tokenizer.ggml.pre` says.
    fn byte_level(&self) -> Result<Json, ModelError> {
        let bytes = |use_regex: bool| {
            json!({
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex,
            })
        };
        let split = |pattern: &str| {
            json!({
                "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false,
            })
        };
        let (split, normalizer, ignore_merges) = match self.optional_text(SPLIT)? {
            Some("gpt-2") => (vec![bytes(true)], Json::Null, false),
            Some("smollm") => {
                let digits = json!({ "type": "Digits", "individual_digits": true });
                (vec![digits, bytes(true)], Json::Null, false)
            }
            Some("llama-bpe" | "lfm2") => {
                let words = split(&words(r"\p{N}{1,3}"));
                (vec![words, bytes(false)], Json::Null, true)
            }
            // llama.cpp does not normalise; the published tokenizers do.
            Some("qwen2") => {
                let words = split(&words(r"\p{N}"));
                (vec![words, bytes(false)], json!({ "type": "NFC" }), false)
            }
            None | Some("default") => {
                let cuts = [
                    r"[\p{P}\$\+<=>\^~\|]+",
                    GPT2_WORDS,
                    r"\p{N}+",
                    "[0-9][0-9][0-9]",
                ];
                let mut cuts = cuts.map(split).to_vec();
                cuts.push(bytes(false));
                (cuts, Json::Null, false)
            }
            Some(other) => {
                let expected =
                    "\"gpt-2\", \"smollm\", \"llama-bpe\", \"lfm2\", \"qwen2\" or \"default\"";
                return Err(self.unsupported(SPLIT, format!("{other:?}"), expected));
            }
        };
        Ok(json!({
            "normalizer": normalizer,
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": split },
            "decoder": bytes(true),
            "model": {
                "merges": self.elements(MERGES, "a string", Value::text)?, "ignore_merges": ignore_merges,
            },
        }))
    }
}

/// Tokens that are recognised as such.
fn added_tokens(tokens: &[&str], kinds: &[u64]) -> Vec<Json> {
    let added = |(id, (token, &kind)): (usize, (&&str, &u64))| {
        let special = [kind::CONTROL, kind::UNKNOWN].contains(&kind);
        (special || kind == kind::USER_DEFINED).then(|| added_token(id, token, special))
    };
    tokens
        .iter()
        .zip(kinds)
        .enumerate()
        .filter_map(added)
        .collect()
}

pub fn added_token(id: usize, content: &str, special: bool) -> Json {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special,
    })
}

/// Puts the token `id` in front of every text.
fn begin_with(id: u32, token: &str) -> Json {
    let begin = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
    json!({
        "type": "TemplateProcessing",
        "single": [begin, text("A")],
        "pair": [begin, text("A"), begin, text("B")],
        "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
    })
}
