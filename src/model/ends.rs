//! The tokens that end an answer, as a checkpoint's files name them.

use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::decoder::Unsupported;
use super::family::CONFIG;
use super::tokenizer::ChatTokenizer;
use super::ModelError;

pub(super) const GENERATION: &str = "generation_config.json";

/// Control tokens that end an answer in the chat formats of the checkpoints that are read.
const NAMES: [&str; 3] = ["<|im_end|>", "<end_of_utterance>", "<|eot_id|>"];

/// Ids of tokens that end an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends(Vec<u32>);

impl Ends {
    /// `ids`, and the control tokens of the tokenizer that are known to end answers.
    pub fn new(mut ids: Vec<u32>, tokenizer: &ChatTokenizer) -> Self {
        ids.extend(NAMES.iter().filter_map(|name| tokenizer.control(name).ok()));
        ids.sort_unstable();
        ids.dedup();
        Self(ids)
    }

    /// What the files name as `eos_token_id`: the first that names any of `generation_config.json`, the top level of `config.json` and
    /// its `text_config`, as transformers' `GenerationConfig` takes them. An id that the tokenizer does not have ends nothing.
    pub fn load(checkpoint: &Checkpoint, tokenizer: &ChatTokenizer) -> Result<Self, ModelError> {
        for (name, inside) in [(GENERATION, ""), (CONFIG, ""), (CONFIG, "/text_config")] {
            if !checkpoint.has(name) {
                continue;
            }
            let json: Value = checkpoint.json(name)?;
            let value = json
                .pointer(inside)
                .map_or(&Value::Null, |part| &part["eos_token_id"]);
            let mut ids = listed(value).ok_or_else(|| {
                let expected = "the id of a token, or a list of them";
                Unsupported::new("eos_token_id", value, expected).of(checkpoint.path(name))
            })?;
            if ids.is_empty() {
                continue;
            }
            for id in ids.extract_if(.., |id| !tokenizer.has(*id)) {
                let file = checkpoint.path(name);
                tracing::warn!(
                    "{}: eos_token_id {id} is no token of the tokenizer: no answer ends with it",
                    file.display()
                );
            }
            return Ok(Self::new(ids, tokenizer));
        }
        Ok(Self::new(Vec::new(), tokenizer))
    }

    pub fn contains(&self, id: u32) -> bool {
        self.0.contains(&id)
    }

    pub fn ids(&self) -> &[u32] {
        &self.0
    }
}

/// One id, several, or none; nothing if it is anything else.
pub(super) fn listed(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(several) => several.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    }
}
