//! The decoder under test with its tokenizer. Everything that depends on the form of the checkpoint is in this file.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rayon::ThreadPool;

use super::{parameter, EvalError};
use crate::cache::{BoundedCache, CacheConfig, CacheShape, Mark};
use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::Decoder;
use crate::model::precision::Precision;
use crate::model::template::{ChatTemplate, TextMessage};
use crate::model::text::{TextModel, TextTokenizer};
use crate::model::threads::thread_pool_for;
use crate::model::weights::Quantization;
use crate::model::ModelError;

/// A text decoder that streams can be run through.
pub struct EvalModel {
    pub decoder: Decoder,
    pub shape: CacheShape,
    /// Name of the checkpoint's directory or file.
    pub name: String,
    tokenizer: TextTokenizer,
    /// By id: whether a sentence or a line ends with the token.
    ends_sentence: Vec<bool>,
    template: Option<ChatTemplate>,
    dtype: DType,
    device: Device,
    pool: ThreadPool,
}

impl EvalModel {
    /// Loads what [`TextModel::load`] reads. `threads`: 0 for as many as suit the model's size.
    pub fn load(
        path: &Path,
        quantization: Quantization,
        precision: Precision,
        device: &Device,
        threads: usize,
    ) -> Result<Self, EvalError> {
        let name = path.file_name().unwrap_or(path.as_os_str());
        let name = name.to_string_lossy().into_owned();
        let checkpoint = Checkpoint::open(path)?;
        Self::of(name, &checkpoint, quantization, precision, device, threads)
    }

    /// The same of a checkpoint that has been opened, under this name.
    pub fn of(
        name: String,
        checkpoint: &Checkpoint,
        quantization: Quantization,
        precision: Precision,
        device: &Device,
        threads: usize,
    ) -> Result<Self, EvalError> {
        let model = TextModel::of(checkpoint, quantization, precision, device)?;
        let ends_sentence = (0..model.config.vocab_size() as u32)
            .map(|id| model.tokenizer.decode(&[id]))
            .map(|text| Ok(text?.ends_with(['.', '!', '?', '\n'])))
            .collect::<Result<_, ModelError>>()?;
        Ok(Self {
            ends_sentence,
            shape: model.shape,
            name,
            dtype: model.dtype(),
            device: device.clone(),
            pool: thread_pool_for(threads, model.weight_bytes)?,
            tokenizer: model.tokenizer,
            template: model.template,
            decoder: model.decoder,
        })
    }

    /// Runs `work` in the model's threads.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }

    /// Type of the arithmetic.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The longest input the model was made for, tokens.
    pub fn context(&self) -> usize {
        self.shape.max_positions
    }

    /// An empty cache for one stream, without a system prompt.
    pub fn cache(&self, config: &CacheConfig) -> Result<BoundedCache, EvalError> {
        self.cache_after(config, 0)
    }

    /// An empty cache for one stream whose first `system_tokens` are never evicted.
    pub fn cache_after(
        &self,
        config: &CacheConfig,
        system_tokens: usize,
    ) -> Result<BoundedCache, EvalError> {
        let cache = BoundedCache::new(self.shape, config, system_tokens, self.dtype, &self.device)?;
        Ok(cache)
    }

    /// Appends the same text tokens, which follow `before`, to every stream; hidden states `[streams * tokens, hidden]`.
    pub fn append(
        &self,
        before: Option<u32>,
        ids: &[u32],
        caches: &mut [BoundedCache],
    ) -> Result<Tensor, EvalError> {
        let x = self.decoder.embed(ids)?;
        let x = Tensor::cat(&vec![x; caches.len()], 0)?;
        let before = std::iter::once(before).chain(ids.iter().copied().map(Some));
        let marks = ids
            .iter()
            .zip(before)
            .map(|(&id, before)| Mark {
                starts_unit: before.is_none_or(|id| self.ends_sentence(id)),
                boundary: self.tokenizer.is_end(id),
                ..Mark::default()
            })
            .collect::<Vec<_>>();
        Ok(self.decoder.append_many(&x, &marks, caches)?)
    }

    /// Whether a sentence or a line ends with the token.
    pub fn ends_sentence(&self, id: u32) -> bool {
        self.ends_sentence.get(id as usize) == Some(&true)
    }

    /// Gives a standing instruction to a cache: its tokens are fed and taken back, and the policy keeps their queries, if it
    /// uses them.
    pub fn note_standing(
        &self,
        ids: &[u32],
        caches: &mut [BoundedCache; 1],
    ) -> Result<(), EvalError> {
        if ids.is_empty() {
            return Ok(());
        }
        caches[0].mark();
        self.append(None, ids, caches)?;
        let standing = caches[0].newest_keys(ids.len())?;
        caches[0].put_back()?;
        caches[0].let_go();
        caches[0].look_for(standing);
        Ok(())
    }

    /// Ids of text as it is: nothing in it counts as a control token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        Ok(self.tokenizer.encode(text)?)
    }

    /// The checkpoint's chat format around the texts of a conversation.
    pub fn chat_format(&self) -> Result<ChatFormat, EvalError> {
        let template = self
            .template
            .as_ref()
            .ok_or_else(|| parameter("model", &self.name, "a checkpoint with a chat template"))?;
        ChatFormat::of(template, self)
    }

    /// Ids of text in the chat format; a control token in it counts as one.
    fn encode_format(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        Ok(self.tokenizer.chat().encode(text)?)
    }

    pub fn decode(&self, ids: &[u32]) -> Result<String, EvalError> {
        Ok(self.tokenizer.decode(ids)?)
    }
}

/// What a chat template puts around the texts of a conversation, as ids.
pub struct ChatFormat {
    /// In front of the system prompt.
    pub open: Vec<u32>,
    /// Between the system prompt and the first user's text.
    pub first_user: Vec<u32>,
    /// Between a user's text and the answer.
    pub answer: Vec<u32>,
    /// Between an answer and the next user's text.
    pub next_user: Vec<u32>,
}

impl ChatFormat {
    /// Renders a conversation of marked texts and takes out what stands between them.
    fn of(template: &ChatTemplate, model: &EvalModel) -> Result<Self, EvalError> {
        const MARKS: [&str; 4] = ["\u{FDD1}0", "\u{FDD1}1", "\u{FDD1}2", "\u{FDD1}3"];
        let roles = ["system", "user", "assistant", "user"];
        let messages = roles
            .into_iter()
            .zip(MARKS)
            .map(|(role, content)| TextMessage { role, content })
            .collect::<Vec<_>>();
        let rendered = template.render(&messages)?;
        let mut rest = rendered.as_str();
        let mut up_to = |mark| {
            let (piece, after) = rest.split_once(mark).ok_or_else(|| {
                let expected = "a chat template that takes texts as they are";
                parameter("model", &model.name, expected)
            })?;
            rest = after;
            model.encode_format(piece)
        };
        Ok(Self {
            open: up_to(MARKS[0])?,
            first_user: up_to(MARKS[1])?,
            answer: up_to(MARKS[2])?,
            next_user: up_to(MARKS[3])?,
        })
    }
}
