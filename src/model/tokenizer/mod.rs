//! Text to ids and back. Control tokens count only where the chat format put them, never where a user typed them.
//!
//! - this file: a checkpoint's tokenizer, and ids to text
//! - `encode`: text to ids
//! - `bounds`: what it may cost
//! - `token_bytes`: the bytes of single tokens
//! - `size`: what it takes in memory

mod bounds;
mod encode;
mod size;
mod token_bytes;

use std::collections::HashMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{json, Value};
use tokenizers::Tokenizer;

use super::checkpoint::Checkpoint;
use super::decoder::Unsupported;
use super::json;
use super::ModelError;
use bounds::Growth;
use token_bytes::Spelling;

/// A checkpoint's tokenizer, split into its control tokens and the plain text in between.
#[derive(Debug, Clone)]
pub struct ChatTokenizer {
    /// As published, for decoding.
    full: Arc<Tokenizer>,
    /// Without control tokens: it cannot produce one, whatever the text. For a run at the start of a text.
    plain: Arc<Tokenizer>,
    /// The same for a run behind an added token, where some tokenizers put no space in front.
    inner: Arc<Tokenizer>,
    /// The same for a run behind other text, where none does.
    continued: Arc<Tokenizer>,
    /// Ids that the tokenizer puts in front of every text, and the text that they stand for.
    opening: (Vec<u32>, String),
    /// Control tokens, longest first.
    controls: Vec<AddedToken>,
    /// What normalising may make of a text.
    growth: Growth,
    /// Pairs of tokens that make another.
    merges: usize,
    file: PathBuf,
}

/// Mirrors an entry of `added_tokens`.
#[derive(Debug, Clone, Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    /// Takes the blanks in front of it.
    #[serde(default)]
    lstrip: bool,
    /// Takes the blanks behind it.
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    special: bool,
}

impl AddedToken {
    /// Whether it means more than its characters: all but runs of blanks, which GPT-NeoX has for indented text.
    fn is_control(&self) -> bool {
        self.special || !self.content.trim().is_empty()
    }

    /// The control tokens of a description, longest first. There they become special: a tokenizer for plain text takes those as their
    /// characters. `full` is the tokenizer that it describes, `file` what errors name.
    fn controls(json: &mut Value, full: &Tokenizer, file: &Path) -> Result<Vec<Self>, ModelError> {
        let mut controls = Vec::new();
        for entry in json["added_tokens"].as_array_mut().into_iter().flatten() {
            let token: Self = json::of_value(entry).map_err(|unsupported: Unsupported| {
                unsupported.within("added_tokens").of(file.to_path_buf())
            })?;
            if token.single_word {
                return Err(ModelError::Unsupported {
                    file: file.to_path_buf(),
                    field: format!("single_word of the added token {}", token.content),
                    value: "true".to_string(),
                    expected: "false".to_string(),
                });
            }
            // The library numbers added tokens anew where some are missing.
            let numbered = full.token_to_id(&token.content);
            if numbered != Some(token.id) {
                let numbered = numbered.map_or_else(|| "none".to_string(), |id| id.to_string());
                return Err(ModelError::File {
                    file: file.to_path_buf(),
                    what: format!(
                        "the added token {} has the id {}, but the tokens before it leave it {numbered}",
                        token.content, token.id
                    ),
                });
            }
            entry["special"] = token.is_control().into();
            if token.is_control() && !token.content.is_empty() {
                controls.push(token);
            }
        }
        controls.sort_by_key(|token| std::cmp::Reverse(token.content.len()));
        Ok(controls)
    }
}

impl ChatTokenizer {
    /// Reads `tokenizer.json`.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        let json = checkpoint.json("tokenizer.json")?;
        Self::from_json(json, checkpoint.path("tokenizer.json"))
    }

    /// From the contents of a `tokenizer.json`; `file` is what errors name.
    pub fn from_json(mut json: Value, file: PathBuf) -> Result<Self, ModelError> {
        let fail = |what: String| ModelError::File {
            file: file.clone(),
            what,
        };
        bounds::reset(&mut json);
        let growth = bounds::check(&json).map_err(&fail)?;
        let tokenizer = |json: &Value| {
            let text = json.to_string();
            guarded(|| Tokenizer::from_str(&text)).map_err(&fail)
        };
        let full = Arc::new(tokenizer(&json)?);
        let plain_of = |json: &Value| -> Result<Arc<Tokenizer>, ModelError> {
            let mut plain = tokenizer(json)?;
            plain.set_encode_special_tokens(true);
            Ok(Arc::new(plain))
        };
        let controls = AddedToken::controls(&mut json, &full, &file)?;
        let plain = plain_of(&json)?;
        let inner = match space_in_front_of_first(&mut json) {
            true => plain_of(&json)?,
            false => plain.clone(),
        };
        let continued = match nothing_in_front(&mut json) {
            true => plain_of(&json)?,
            false => inner.clone(),
        };
        let opening = guarded(|| full.encode("", true)).map_err(&fail)?;
        let opening = opening.get_ids().to_vec();
        let text = guarded(|| full.decode(&opening, false)).map_err(&fail)?;
        Ok(Self {
            full,
            plain,
            inner,
            continued,
            opening: (opening, text),
            controls,
            growth,
            merges: json["model"]["merges"].as_array().map_or(0, Vec::len),
            file,
        })
    }

    /// The id of a control token that the family needs.
    pub fn control(&self, content: &str) -> Result<u32, ModelError> {
        self.controls
            .iter()
            .find(|known| known.content == content)
            .map(|known| known.id)
            .ok_or_else(|| ModelError::File {
                file: self.file.clone(),
                what: format!("the control token {content} is missing"),
            })
    }

    /// Checks that the control token `content` has this id.
    pub fn check_control(&self, content: &str, expected: u32) -> Result<(), ModelError> {
        match self.control(content)? {
            id if id == expected => Ok(()),
            id => Err(Unsupported::new(
                format!("id of {content}"),
                id,
                format!("{expected}, as config.json says"),
            )
            .of(self.file.clone())),
        }
    }

    /// Checks that no id is beyond the decoder's vocabulary.
    pub fn check_vocabulary(&self, decoder: usize) -> Result<(), ModelError> {
        match self.vocab_size() {
            size if size <= decoder => Ok(()),
            size => Err(Unsupported::new(
                "vocabulary",
                size,
                format!("at most vocab_size ({decoder})"),
            )
            .of(self.file.clone())),
        }
    }

    fn is_control(&self, id: u32) -> bool {
        self.controls.iter().any(|control| control.id == id)
    }

    /// The text of generated ids, control tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.text_of(ids, true)
    }

    /// The text of generated ids, control tokens among it.
    pub fn decode_whole(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.text_of(ids, false)
    }

    fn text_of(&self, ids: &[u32], without_controls: bool) -> Result<String, ModelError> {
        guarded(|| self.full.decode(ids, without_controls)).map_err(|what| ModelError::File {
            file: self.file.clone(),
            what,
        })
    }

    /// The token with this id as the vocabulary spells it, if [`Self::decode`] gives it a text.
    pub fn text_token(&self, id: u32) -> Option<String> {
        let token = self.full.id_to_token(id)?;
        let control = self.full.get_added_vocabulary().is_special_token(&token);
        (!control).then_some(token)
    }

    /// The bytes of every id up to `vocabulary`, which may be parts of characters; none of control tokens and of ids without a token.
    pub fn token_bytes(&self, vocabulary: usize) -> Result<Vec<Vec<u8>>, ModelError> {
        let spelling = Spelling::of(&self.full).map_err(|what| ModelError::File {
            file: self.file.clone(),
            what,
        })?;
        let added = self.full.get_added_tokens_decoder();
        let bytes = |id: u32| match added.get(&id) {
            Some(_) if self.is_control(id) => None,
            Some(added) => Some(added.content.clone().into_bytes()),
            None => spelling.bytes(&self.full.id_to_token(id)?),
        };
        let all = (0..vocabulary as u32).map(|id| bytes(id).unwrap_or_default());
        Ok(all.collect())
    }

    /// Control tokens and their ids.
    pub fn controls(&self) -> impl Iterator<Item = (&str, u32)> {
        let controls = self.controls.iter();
        controls.map(|control| (control.content.as_str(), control.id))
    }

    /// Whether there is a token with this id.
    pub fn has(&self, id: u32) -> bool {
        self.full.id_to_token(id).is_some()
    }

    /// Number of ids that the tokenizer can produce: the largest id plus one.
    pub fn vocab_size(&self) -> usize {
        let vocab: HashMap<String, u32> = self.full.get_vocab(true);
        vocab.values().max().map_or(0, |&id| id as usize + 1)
    }
}

/// What the library makes of a file from outside. It panics at descriptions that contradict themselves; a tokenizer is not changed by
/// what it is asked, so that it is as it was then.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizer library cannot work with this tokenizer".to_string()),
    }
}

/// Takes away the space that a tokenizer puts in front of the first run of a text only (`prepend_scheme` first); whether there was one.
fn space_in_front_of_first(json: &mut Value) -> bool {
    let mut changed = false;
    for one in parts(&mut json["pre_tokenizer"], "pretokenizers") {
        if one["prepend_scheme"] == "first" {
            one["prepend_scheme"] = "never".into();
            changed = true;
        }
    }
    changed
}

/// Takes away all that a tokenizer puts in front of a run of text; whether there was anything.
fn nothing_in_front(json: &mut Value) -> bool {
    let mut changed = false;
    let mut set = |value: &mut Value, to: Value| {
        changed |= *value != to;
        *value = to;
    };
    for one in parts(&mut json["pre_tokenizer"], "pretokenizers") {
        match one["type"].as_str() {
            Some("Metaspace") => set(&mut one["prepend_scheme"], "never".into()),
            Some("ByteLevel") => set(&mut one["add_prefix_space"], false.into()),
            _ => {}
        }
    }
    for one in parts(&mut json["normalizer"], "normalizers") {
        if one["type"] == "Prepend" {
            set(one, json!({ "type": "Sequence", "normalizers": [] }));
        }
    }
    changed
}

/// A step of a tokenizer, or those that it consists of.
fn parts<'a>(step: &'a mut Value, list: &str) -> Vec<&'a mut Value> {
    match step[list].is_array() {
        true => step[list].as_array_mut().into_iter().flatten().collect(),
        false => vec![step],
    }
}
