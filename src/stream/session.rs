//! A session: the model, its bounded cache and the conversation, one frame or instruction at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};

use super::answer::{Answer, AnswerDelta, FinishReason, FrameStamp, Generation, Instruction};
use super::frame::{CameraImage, FrameError};
use super::grammar::Grammar;
use super::stats::StepTimes;
use crate::cache::{BoundedCache, CacheConfig, CacheUsage, FrameId};
use crate::model::checkpoint::Checkpoint;
use crate::model::sample::Sampler;
use crate::model::smolvlm::SmolVlm;
use crate::model::{DeviceKind, ModelError};

/// Everything that shapes a session.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    pub model_dir: PathBuf,
    pub device: DeviceKind,
    pub cache: CacheConfig,
    /// The protected beginning of the stream; may be empty.
    pub system_prompt: String,
    /// Longest answer when an instruction does not say, tokens.
    pub max_new_tokens: usize,
    /// 0: greedy.
    pub temperature: f64,
    pub seed: u64,
    /// Instructions that may wait.
    pub queue_size: usize,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            model_dir: PathBuf::from("models/demo"),
            device: DeviceKind::Auto,
            cache: CacheConfig::default(),
            system_prompt: "You are a mobile robot. Answer briefly.".to_string(),
            max_new_tokens: 32,
            temperature: 0.0,
            seed: 0,
            queue_size: 16,
        }
    }
}

/// Why a frame did not enter the memory.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// The model at work on one stream.
pub struct Session {
    model: SmolVlm,
    cache: BoundedCache,
    grammar: Grammar,
    config: SessionConfig,
    sampler: Sampler,
    /// Stamp of the epoch's first frame, nanoseconds.
    epoch_ns: Option<i64>,
    newest: Option<FrameStamp>,
    /// Frames taken since the last reset.
    frames_seen: u64,
    /// Stamps of the frames that still have a token in the cache.
    stamps: BTreeMap<FrameId, i64>,
    /// The oldest frame of which at least half is kept; recomputed after a compaction.
    oldest: Option<FrameId>,
    compactions: u64,
    times: StepTimes,
}

impl Session {
    /// Loads the checkpoint, allocates the cache and feeds the protected prefix.
    pub fn new(config: SessionConfig) -> Result<Self, ModelError> {
        let device = config.device.open()?;
        let checkpoint = Checkpoint::open(&config.model_dir)?;
        let model = SmolVlm::load(&checkpoint, DType::F32, &device)?;
        let prefix = prefix_ids(&model, &config)?;
        let cache = BoundedCache::new(
            model.config.text_config.cache_shape(),
            &config.cache,
            prefix.len(),
            model.dtype(),
            &device,
        )?;
        let mut session = Self {
            sampler: Sampler::new(config.temperature, config.seed),
            model,
            cache,
            grammar: Grammar::default(),
            config,
            epoch_ns: None,
            newest: None,
            frames_seen: 0,
            stamps: BTreeMap::new(),
            oldest: None,
            compactions: 0,
            times: StepTimes::default(),
        };
        session.append(&prefix, None, 1)?;
        Ok(session)
    }

    /// Forgets everything but the prefix and starts a new epoch.
    pub fn reset(&mut self) -> Result<(), ModelError> {
        let prefix = prefix_ids(&self.model, &self.config)?;
        self.cache.reset(prefix.len())?;
        self.grammar = Grammar::default();
        self.sampler = Sampler::new(self.config.temperature, self.config.seed);
        self.epoch_ns = None;
        self.newest = None;
        self.frames_seen = 0;
        self.stamps.clear();
        self.oldest = None;
        self.compactions = 0;
        self.append(&prefix, None, 1)?;
        Ok(())
    }

    pub fn model(&self) -> &SmolVlm {
        &self.model
    }

    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    pub fn usage(&self) -> CacheUsage {
        self.cache.usage()
    }

    pub fn times(&self) -> StepTimes {
        self.times
    }

    /// Frames taken since the last reset.
    pub fn frames_seen(&self) -> u64 {
        self.frames_seen
    }

    pub fn newest_frame(&self) -> Option<&FrameStamp> {
        self.newest.as_ref()
    }

    /// Stamp of the oldest frame of which at least half of the slots over all kept sets is kept.
    pub fn oldest_frame_ns(&self) -> Option<i64> {
        self.oldest
            .and_then(|frame| self.stamps.get(&frame).copied())
    }

    /// Takes a frame into the memory: vision tower, connector, one chunk through the decoder.
    pub fn push_frame(&mut self, image: &CameraImage) -> Result<(), PushError> {
        let started = Instant::now();
        let picture = image.decode()?;
        let pixels = self.model.processor.pixel_values(&picture)?;
        let features = self.model.image_features(&pixels)?;
        self.times.vision = started.elapsed();

        let started = Instant::now();
        let epoch = *self.epoch_ns.get_or_insert(image.stamp_ns);
        let mut grammar = self.grammar.clone();
        let text = grammar.frame(
            &self.model.image_text(),
            image.stamp_ns.saturating_sub(epoch),
        );
        let ids = self.model.tokenizer.encode(&text)?;
        // The next frame needs about as much room as this one.
        self.append(&ids, Some(&features), ids.len())?;
        self.times.prefill = started.elapsed();

        self.grammar = grammar;
        let frame = self.frames_seen as FrameId;
        self.stamps.insert(frame, image.stamp_ns);
        self.frames_seen += 1;
        self.newest = Some(FrameStamp {
            stamp_ns: image.stamp_ns,
            frame_id: image.frame_id.clone(),
        });
        self.update_oldest();
        Ok(())
    }

    /// Answers an instruction from the memory. Every way this can end is an [`Answer`].
    ///
    /// `cancelled` is asked before every token; `on_delta` gets the text as it grows, the last piece with `done` set.
    pub fn ask(
        &mut self,
        instruction: &Instruction,
        cancelled: &dyn Fn() -> bool,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Answer {
        let mut run = Generation::new(self.answer_to(instruction), instruction);
        let outcome = self.checked_ask(instruction, cancelled, &mut run, on_delta);
        let (finish, error) = match outcome {
            Ok(finish) => (finish, None),
            Err(reason) => (FinishReason::Error, Some(reason.to_string())),
        };
        self.update_oldest();
        run.finish(finish, error, on_delta)
    }

    /// The answer to an instruction that is not put to the model; its only piece is the last.
    pub fn unanswered(
        &self,
        instruction: &Instruction,
        finish: FinishReason,
        reason: String,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Answer {
        Generation::new(self.answer_to(instruction), instruction).finish(
            finish,
            Some(reason),
            on_delta,
        )
    }

    /// What is known of an answer before any of it is generated.
    fn answer_to(&self, instruction: &Instruction) -> Answer {
        Answer {
            id: instruction.id.clone(),
            text: String::new(),
            finish: FinishReason::Error,
            error: None,
            prompt_tokens: 0,
            vision_tokens: self.vision_tokens(),
            output_tokens: 0,
            time_to_first_token: None,
            latency: Duration::ZERO,
            newest_frame: self.newest.clone(),
            oldest_frame_ns: self.oldest_frame_ns(),
            frames_seen: self.frames_seen,
            mean_logprob: 0.0,
            token_ids: Vec::new(),
        }
    }

    fn checked_ask(
        &mut self,
        instruction: &Instruction,
        cancelled: &dyn Fn() -> bool,
        run: &mut Generation,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Result<FinishReason, AskError> {
        if instruction.text.trim().is_empty() {
            return Err(AskError::Empty);
        }
        let saved = match instruction.ephemeral {
            true => Some((
                self.cache.snapshot().map_err(ModelError::from)?,
                self.grammar.clone(),
            )),
            false => None,
        };
        let finish = self.generate(instruction, cancelled, run, on_delta);
        if let Some((cache, grammar)) = saved {
            self.cache.restore(cache).map_err(ModelError::from)?;
            self.grammar = grammar;
        }
        finish
    }

    fn generate(
        &mut self,
        instruction: &Instruction,
        cancelled: &dyn Fn() -> bool,
        run: &mut Generation,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Result<FinishReason, AskError> {
        let longest = match instruction.max_new_tokens {
            0 => self.config.max_new_tokens,
            given => given,
        };
        let mut grammar = self.grammar.clone();
        let text = grammar.instruction(&instruction.text, &self.model.tokenizer);
        let ids = self.model.tokenizer.encode(&text)?;
        run.answer.prompt_tokens = ids.len();
        if ids.len() > self.cache.longest_turn() {
            return Err(AskError::TooLong {
                tokens: ids.len(),
                room: self.cache.longest_turn(),
            });
        }
        let started = Instant::now();
        let mut hidden = self.append(&ids, None, longest)?;
        self.grammar = grammar;
        self.times.prefill = started.elapsed();

        let started = Instant::now();
        let finish = loop {
            if cancelled() {
                break FinishReason::Cancelled;
            }
            let (token, logprob) = self.sampler.next(&self.logits(&hidden)?);
            run.chose(token, logprob);
            if token == self.model.end_of_utterance {
                break FinishReason::Stop;
            }
            run.emit(self.model.tokenizer.decode(run.text_ids())?, on_delta);
            match self.append(&[token], None, 1) {
                Ok(next) => hidden = next,
                Err(error) => {
                    self.grammar.answered();
                    return Err(error.into());
                }
            }
            if run.answer.output_tokens == longest {
                break FinishReason::Length;
            }
        };
        self.grammar.answered();
        let tokens = run.answer.output_tokens.max(1) as u32;
        self.times.decode = started.elapsed() / tokens;
        Ok(finish)
    }

    /// Feeds a chunk and sees to the room for the `next` tokens; returns the hidden state of its last token, `[1, hidden]`.
    fn append(
        &mut self,
        ids: &[u32],
        features: Option<&Tensor>,
        next: usize,
    ) -> Result<Tensor, ModelError> {
        let frame = self.frames_seen as FrameId;
        let image = self.model.config.image_token_id;
        let frames = ids
            .iter()
            .map(|&id| (id == image).then_some(frame))
            .collect::<Vec<_>>();
        let x = self.model.embed(ids, features)?;
        let hidden = self.model.decoder.append(&x, &frames, &mut self.cache)?;
        self.cache.reserve(next)?;
        Ok(hidden.narrow(0, ids.len() - 1, 1)?)
    }

    /// Logits over the vocabulary for one hidden state (`[1, hidden]`).
    fn logits(&self, hidden: &Tensor) -> Result<Vec<f32>, ModelError> {
        let logits = self.model.decoder.logits(hidden)?.squeeze(0)?;
        Ok(logits.to_dtype(DType::F32)?.to_vec1()?)
    }

    /// Forgets the stamps of frames that are gone, and finds the oldest that is kept to at least half.
    fn update_oldest(&mut self) {
        let compactions = self.cache.usage().compactions;
        if compactions == self.compactions {
            self.oldest = self.oldest.or_else(|| self.stamps.keys().next().copied());
            return;
        }
        self.compactions = compactions;
        let retained = self
            .cache
            .retained_frames(self.model.config.tokens_per_image());
        self.stamps.retain(|frame, _| retained.contains_key(frame));
        self.oldest = retained
            .iter()
            .find(|&(_, &share)| share >= 0.5)
            .map(|(&frame, _)| frame);
    }

    /// Image tokens in the cache, mean over kept sets.
    fn vision_tokens(&self) -> usize {
        let sets = || self.cache.layers().iter().flat_map(|layer| layer.sets());
        let images: usize = sets()
            .map(|set| set.iter().filter(|token| token.frame.is_some()).count())
            .sum();
        images / sets().count().max(1)
    }
}

/// The protected beginning of the stream.
fn prefix_ids(model: &SmolVlm, config: &SessionConfig) -> Result<Vec<u32>, ModelError> {
    let text = Grammar::prefix(&config.system_prompt, &model.tokenizer);
    model.tokenizer.encode(&text)
}

/// Why an instruction was not answered.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("instruction text is empty, expected at least one character that is not a space")]
    Empty,
    #[error("instruction is {tokens} tokens long, expected at most {room} (what the cache can hold of one turn)")]
    TooLong { tokens: usize, room: usize },
    #[error(transparent)]
    Model(#[from] ModelError),
}
