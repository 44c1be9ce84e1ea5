//! A decoder with its tokenizer, for text alone: from a GGUF file, or from a directory of a decoder or of a multimodal family.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};

use super::checkpoint::Checkpoint;
use super::decoder::{self, Decoder};
use super::ends::Ends;
use super::family::{self, Family, OtherPart, CONFIG};
use super::precision::Precision;
use super::template::ChatTemplate;
use super::tokenizer::ChatTokenizer;
use super::weights::{Names, Quantization, Source, Weights};
use super::ModelError;
use crate::cache::CacheShape;

/// A loaded language model: everything from text to logits.
pub struct TextModel {
    pub config: decoder::Config,
    pub shape: CacheShape,
    pub tokenizer: TextTokenizer,
    /// Where the checkpoint has one.
    pub template: Option<ChatTemplate>,
    pub decoder: Decoder,
    /// What the weights take in memory, bytes.
    pub weight_bytes: u64,
}

/// Text to ids and back, and the ids that end an answer.
pub struct TextTokenizer {
    chat: ChatTokenizer,
    ends: Ends,
}

/// What a directory's `config.json` says of its decoder.
pub struct About {
    pub config: decoder::Config,
    /// How many ids the tokenizer may give.
    vocabulary: usize,
    /// Spellings of tensor names.
    pub names: Names,
    /// Where the decoder and its output layer stand in the tree of tensors.
    pub text: String,
    pub head: String,
    /// What the files may hold beside the model.
    pub other_parts: &'static [OtherPart],
}

/// The spellings of names beside the hub's: of a decoder that was saved without its output layer, or taken out of a multimodal model.
const NAMES: Names = Names(&[
    ("model.language_model.", "model."),
    ("language_model.", "model."),
    ("embed_tokens.", "model.embed_tokens."),
    ("layers.", "model.layers."),
    ("norm.", "model.norm."),
    ("embedding_norm.", "model.embedding_norm."),
]);

impl TextTokenizer {
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
        self.ends.contains(id)
    }
}

impl TextModel {
    /// Loads what [`Checkpoint::open`] opens, of a decoder or of a multimodal family, of which the decoder is taken.
    ///
    /// The weights may have any type; the arithmetic is done in that of `precision`. Errors name file, field, value and expectation.
    pub fn load(
        path: &Path,
        quantization: Quantization,
        precision: Precision,
        device: &Device,
    ) -> Result<Self, ModelError> {
        Self::of(&Checkpoint::open(path)?, quantization, precision, device)
    }

    /// The same of a checkpoint that has been opened.
    pub fn of(
        checkpoint: &Checkpoint,
        quantization: Quantization,
        precision: Precision,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let about = Self::about(checkpoint)?;
        let tensors = checkpoint.tensors(about.names, quantization)?;
        let dtype = precision.dtype(tensors.as_ref(), device);
        Self::build(checkpoint, about, tensors, dtype, device)
    }

    pub fn dtype(&self) -> DType {
        self.decoder.dtype()
    }

    /// What `config.json` says of the decoder.
    pub fn about(checkpoint: &Checkpoint) -> Result<About, ModelError> {
        let model_type = family::model_type(checkpoint)?;
        if let Some(family) = Family::of(&model_type) {
            let opened = (family.open)(checkpoint)?;
            return Ok(About {
                config: opened.text().clone(),
                vocabulary: opened.vocabulary(),
                names: family.names,
                text: opened.text_path().to_string(),
                head: opened.head_path().to_string(),
                other_parts: opened.other_parts(),
            });
        }
        let config = family::decoder_config(checkpoint)?;
        let (text, head, names) = match config {
            decoder::Config::Llama(_) | decoder::Config::Lfm2(_) | decoder::Config::Qwen3_5(_) => {
                ("model", "lm_head", NAMES)
            }
            decoder::Config::GptNeoX(_) => ("gpt_neox", "embed_out", Names::default()),
        };
        Ok(About {
            vocabulary: config.vocab_size(),
            config,
            names,
            text: text.to_string(),
            head: head.to_string(),
            other_parts: &[],
        })
    }

    /// The model of a directory with the weights of `source`.
    pub fn build(
        checkpoint: &Checkpoint,
        about: About,
        source: Arc<dyn Source>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let config = about.config;
        let chat = ChatTokenizer::load(checkpoint)?;
        chat.check_vocabulary(about.vocabulary)?;
        let weights = Weights::new(source, dtype, device);
        let mut decoder = Decoder::new(&config, &weights.pp(about.text), &weights.pp(about.head))
            .map_err(|error| checkpoint.weight_error(error, device))?;
        decoder.lay_out_for(None)?;
        Ok(Self {
            shape: shape(&config, &checkpoint.path(CONFIG))?,
            weight_bytes: decoder.weight_bytes() as u64,
            config,
            tokenizer: TextTokenizer {
                ends: Ends::load(checkpoint, &chat)?,
                chat,
            },
            template: ChatTemplate::find(checkpoint)?,
            decoder,
        })
    }
}

fn shape(config: &decoder::Config, file: &Path) -> Result<CacheShape, ModelError> {
    config
        .cache_shape()
        .map_err(|unsupported| unsupported.of(file.to_path_buf()))
}
