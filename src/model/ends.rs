//! The tokens that end an answer, as a checkpoint's files name them.

use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::decoder::Unsupported;
use super::family::CONFIG;
use super::tokenizer::ChatTokenizer;
use super::ModelError;

const GENERATION: &str = "generation_config.json";

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

    /// What `generation_config.json` and `config.json` (its top level and its `text_config`) name as `eos_token_id`.
    pub fn load(checkpoint: &Checkpoint, tokenizer: &ChatTokenizer) -> Result<Self, ModelError> {
        let mut ids = Vec::new();
        for name in [GENERATION, CONFIG] {
            if !checkpoint.has(name) {
                continue;
            }
            let json: Value = checkpoint.json(name)?;
            for value in [&json["eos_token_id"], &json["text_config"]["eos_token_id"]] {
                let known = |ids: &Vec<u32>| ids.iter().all(|&id| tokenizer.has(id));
                let listed = listed(value).filter(known).ok_or_else(|| {
                    let expected = "the id of a token that tokenizer.json has, or a list of them";
                    Unsupported::new("eos_token_id", value, expected).of(checkpoint.path(name))
                })?;
                ids.extend(listed);
            }
        }
        Ok(Self::new(ids, tokenizer))
    }

    pub fn contains(&self, id: u32) -> bool {
        self.0.contains(&id)
    }

    pub fn ids(&self) -> &[u32] {
        &self.0
    }
}

/// One id, several, or none; nothing if it is anything else.
fn listed(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(several) => several.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    }
}
