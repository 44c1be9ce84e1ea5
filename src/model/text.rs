//! A decoder with its tokenizer, for text alone: from a GGUF file, a Llama directory or the decoder of a SmolVLM directory.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use serde::Deserialize;
use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::gguf::Gguf;
use super::llama::{self, Llama};
use super::smolvlm;
use super::template::ChatTemplate;
use super::tokenizer::ChatTokenizer;
use super::ModelError;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";

/// Control tokens that end an answer in the chat formats of the checkpoints that are read.
const ENDS: [&str; 2] = ["<|im_end|>", smolvlm::control::END_OF_UTTERANCE];

/// A loaded language model: everything from text to logits.
pub struct TextModel {
    pub config: llama::Config,
    pub tokenizer: TextTokenizer,
    /// Where the checkpoint has one.
    pub template: Option<ChatTemplate>,
    pub decoder: Llama,
    /// What the weights take in memory, bytes.
    pub weight_bytes: u64,
    dtype: DType,
}

/// Text to ids and back, and the ids that end an answer.
pub struct TextTokenizer {
    chat: ChatTokenizer,
    ends: Vec<u32>,
}

impl TextTokenizer {
    fn new(chat: ChatTokenizer, mut ends: Vec<u32>) -> Self {
        ends.extend(ENDS.iter().filter_map(|name| chat.control(name).ok()));
        ends.sort_unstable();
        ends.dedup();
        Self { chat, ends }
    }

    /// Ids of plain text: what looks like a control token is taken as the characters it consists of. A byte that the
    /// vocabulary does not have is left out.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.chat.encode_text(text)
    }

    /// Recognises control tokens, for text in the chat format. A user's text inside it must have passed
    /// [`ChatTokenizer::guard`].
    pub fn chat(&self) -> &ChatTokenizer {
        &self.chat
    }

    /// The text of ids, control tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.chat.decode(ids)
    }

    /// Whether `id` ends an answer.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }
}

impl TextModel {
    /// Loads a `.gguf` file, a directory with exactly one, or a published directory (`config.json`, `model.safetensors`,
    /// `tokenizer.json`) of a Llama or a SmolVLM, of which the decoder is taken.
    ///
    /// The weights may have any precision; the arithmetic is done in `dtype`. Errors name file, field, value and expectation.
    pub fn load(path: &Path, dtype: DType, device: &Device) -> Result<Self, ModelError> {
        if path.is_file() {
            return Self::from_gguf(path, dtype, device);
        }
        if path.join(CONFIG).is_file() {
            return Self::from_checkpoint(&Checkpoint::open(path)?, dtype, device);
        }
        let files = gguf_files(path)?;
        match files.as_slice() {
            [file] => Self::from_gguf(file, dtype, device),
            _ => Err(ModelError::Directory {
                dir: path.to_path_buf(),
                what: format!(
                    "it has no {CONFIG} and {} files that end in .gguf, expected exactly one",
                    files.len()
                ),
            }),
        }
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    fn from_gguf(file: &Path, dtype: DType, device: &Device) -> Result<Self, ModelError> {
        let gguf = Gguf::open(file)?;
        let contents = gguf.read()?;
        let config = contents.config()?;
        let chat = ChatTokenizer::from_json(contents.tokenizer_json()?, file.to_path_buf())?;
        let template = contents
            .chat_template()?
            .map(|source| ChatTemplate::parse(source.to_string(), file.to_path_buf()))
            .transpose()?;
        let tokenizer = TextTokenizer::new(chat, contents.end_token()?.into_iter().collect());
        let vb = contents.weights(&config, dtype, device)?;
        let head = (config.tie_word_embeddings != Some(true)).then(|| vb.clone());
        let decoder = Llama::new(&config, vb.clone(), head)?;
        Ok(Self {
            weight_bytes: weight_bytes(&config, vb.dtype()),
            config,
            tokenizer,
            template,
            decoder,
            dtype: vb.dtype(),
        })
    }

    fn from_checkpoint(
        checkpoint: &Checkpoint,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let published: Published = checkpoint.json(CONFIG)?;
        let (mut config, prefix, tied) = match published.model_type.as_str() {
            "llama" => {
                let config: llama::Config = checkpoint.json(CONFIG)?;
                let tied = config.tie_word_embeddings.unwrap_or(false);
                (config, "model", tied)
            }
            "smolvlm" | "idefics3" => {
                let config = smolvlm::Config::load(checkpoint)?;
                let tied = config.tied();
                (config.text_config, "model.text_model", tied)
            }
            other => {
                return Err(unsupported(
                    checkpoint.path(CONFIG),
                    "model_type",
                    other.to_string(),
                    "llama, smolvlm or idefics3".to_string(),
                ))
            }
        };
        if let Some((field, value, expected)) = config.unsupported() {
            return Err(unsupported(checkpoint.path(CONFIG), field, value, expected));
        }
        config.tie_word_embeddings = Some(tied);
        let chat = ChatTokenizer::load(checkpoint)?;
        if chat.vocab_size() > config.vocab_size {
            return Err(unsupported(
                checkpoint.path(TOKENIZER),
                "vocabulary",
                chat.vocab_size().to_string(),
                format!("at most vocab_size ({})", config.vocab_size),
            ));
        }
        let ends = published.ends(checkpoint)?;
        let vb = checkpoint.weights(dtype, device)?;
        let head = (!tied).then(|| vb.clone());
        let decoder = Llama::new(&config, vb.pp(prefix), head)
            .map_err(|error| checkpoint.weight_error(error))?;
        Ok(Self {
            weight_bytes: weight_bytes(&config, vb.dtype()),
            config,
            tokenizer: TextTokenizer::new(chat, ends),
            template: ChatTemplate::find(checkpoint)?,
            decoder,
            dtype: vb.dtype(),
        })
    }
}

/// What every `config.json` says.
#[derive(Deserialize)]
struct Published {
    model_type: String,
    #[serde(default)]
    eos_token_id: Value,
}

impl Published {
    /// End tokens: one id, several, or none.
    fn ends(&self, checkpoint: &Checkpoint) -> Result<Vec<u32>, ModelError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match &self.eos_token_id {
            Value::Null => Some(Vec::new()),
            Value::Array(several) => several.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| {
            unsupported(
                checkpoint.path(CONFIG),
                "eos_token_id",
                self.eos_token_id.to_string(),
                "a token's id or a list of them".to_string(),
            )
        })
    }
}

/// What a decoder's weights take, bytes. A tied output layer is counted once.
fn weight_bytes(config: &llama::Config, dtype: DType) -> u64 {
    let tables = if config.tie_word_embeddings == Some(true) {
        1
    } else {
        2
    };
    let heads = config.num_attention_heads + config.kv_heads();
    let layer = config.hidden_size * (2 * heads * config.head_dim() + 3 * config.intermediate_size);
    let elements =
        tables * config.vocab_size * config.hidden_size + config.num_hidden_layers * layer;
    (elements * dtype.size_in_bytes()) as u64
}

fn gguf_files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let fail = |error: std::io::Error| ModelError::Directory {
        dir: dir.to_path_buf(),
        what: error.to_string(),
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|end| end == "gguf") {
            files.push(path);
        }
    }
    Ok(files)
}

fn unsupported(file: PathBuf, field: &str, value: String, expected: String) -> ModelError {
    ModelError::Unsupported {
        file,
        field: field.to_string(),
        value,
        expected,
    }
}
