//! Text to ids and back. Control tokens count only where the chat format put them, never where a user typed them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::checkpoint::Checkpoint;
use super::ModelError;

/// A Unicode noncharacter, put inside a control token that a user typed and taken out again before tokenising.
const GUARD: char = '\u{FDD0}';

/// A checkpoint's tokenizer, split into its control tokens and the plain text in between.
#[derive(Debug, Clone)]
pub struct ChatTokenizer {
    /// As published, for decoding.
    full: Tokenizer,
    /// Without added tokens: it cannot produce one, whatever the text.
    plain: Tokenizer,
    /// Added tokens, longest first.
    added: Vec<(String, u32)>,
    file: PathBuf,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
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
        let tokenizer =
            |json: &Value| Tokenizer::from_str(&json.to_string()).map_err(|e| fail(e.to_string()));
        let full = tokenizer(&json)?;
        let listed = json["added_tokens"].take();
        let added: Vec<AddedToken> = match listed {
            Value::Null => Vec::new(),
            list => serde_json::from_value(list).map_err(|e| fail(format!("added_tokens: {e}")))?,
        };
        for token in &added {
            if token.single_word || token.lstrip || token.rstrip {
                return Err(ModelError::Unsupported {
                    file: file.clone(),
                    field: format!("added token {}", token.content),
                    value: "single_word, lstrip or rstrip".to_string(),
                    expected: "none of these".to_string(),
                });
            }
        }
        json["added_tokens"] = Value::Array(Vec::new());
        let plain = tokenizer(&json)?;
        let mut added = added
            .into_iter()
            .map(|token| (token.content, token.id))
            .filter(|(content, _)| !content.is_empty())
            .collect::<Vec<_>>();
        added.sort_by_key(|(content, _)| std::cmp::Reverse(content.len()));
        Ok(Self {
            full,
            plain,
            added,
            file,
        })
    }

    /// The id of a control token that the family needs.
    pub fn control(&self, content: &str) -> Result<u32, ModelError> {
        self.added
            .iter()
            .find(|(known, _)| known == content)
            .map(|&(_, id)| id)
            .ok_or_else(|| ModelError::File {
                file: self.file.clone(),
                what: format!("the control token {content} is missing"),
            })
    }

    /// Makes control tokens in a user's text inert, so that [`Self::encode`] takes them as the characters they are.
    pub fn guard(&self, user: &str) -> String {
        let mut guarded = String::with_capacity(user.len());
        let mut rest = user;
        while let Some(first) = rest.chars().next() {
            if first != GUARD {
                guarded.push(first);
            }
            if self.starts_with_added(rest).is_some() {
                guarded.push(GUARD);
            }
            rest = &rest[first.len_utf8()..];
        }
        guarded
    }

    fn starts_with_added(&self, text: &str) -> Option<&(String, u32)> {
        self.added
            .iter()
            .find(|(content, _)| text.starts_with(content.as_str()))
    }

    /// Ids of text in the chat format. User text inside it must have passed [`Self::guard`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let mut ids = Vec::new();
        let mut run = 0;
        let mut at = 0;
        while let Some(first) = text[at..].chars().next() {
            if let Some((content, id)) = self.starts_with_added(&text[at..]) {
                self.encode_plain(&text[run..at].replace(GUARD, ""), &mut ids)?;
                ids.push(*id);
                at += content.len();
                run = at;
            } else {
                at += first.len_utf8();
            }
        }
        self.encode_plain(&text[run..].replace(GUARD, ""), &mut ids)?;
        Ok(ids)
    }

    /// Ids of text that is not in the chat format: every character is what it is.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let mut ids = Vec::new();
        self.encode_plain(text, &mut ids)?;
        Ok(ids)
    }

    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), ModelError> {
        let fail = |what: String| ModelError::File {
            file: self.file.clone(),
            what,
        };
        let encoding = self
            .plain
            .encode(text, false)
            .map_err(|e| fail(e.to_string()))?;
        let is_control = |id: &&u32| self.added.iter().any(|(_, control)| control == *id);
        if let Some(id) = encoding.get_ids().iter().find(is_control) {
            return Err(fail(format!("plain text yields the control token {id}")));
        }
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// The text of generated ids, control tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.full.decode(ids, true).map_err(|e| ModelError::File {
            file: self.file.clone(),
            what: e.to_string(),
        })
    }

    /// Number of ids that the tokenizer can produce: the largest id plus one.
    pub fn vocab_size(&self) -> usize {
        let vocab: HashMap<String, u32> = self.full.get_vocab(true);
        vocab.values().max().map_or(0, |&id| id as usize + 1)
    }
}
