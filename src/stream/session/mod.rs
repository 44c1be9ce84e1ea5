//! A session: the model, its bounded cache and the conversation, one frame or instruction at a time.
//!
//! - this file: what a session is, and frames
//! - `config`: its parameters
//! - `ask`: instructions
//! - `last_frames`: the session without a memory, as a baseline

mod ask;
mod config;
mod last_frames;

use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use rayon::ThreadPool;

use super::frame::{CameraImage, FrameError};
use super::gate::{Arrival, FrameGate, Skip};
use super::grammar::{ChatFormat, Grammar};
use super::memory::FrameMemory;
use super::stats::StepTimes;
use crate::cache::parameter::{ParameterError, Parameters, Value};
use crate::cache::{
    BoundedCache, CacheConfig, CacheError, CacheUsage, FrameId, Mark, Plan, PolicyKind,
};
use crate::model::checkpoint::Checkpoint;
use crate::model::mllm::{self, Mllm};
use crate::model::sample::Sampler;
use crate::model::threads::thread_pool;
use crate::model::vision::{ImageFeatures, View};
use crate::model::{device_name, ModelError};
pub use config::SessionConfig;
use last_frames::{Frame, LastFrames};

/// Why a frame did not enter the memory.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl PushError {
    /// The kind of refusal, for counting.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Frame(error) => error.reason(),
            Self::Model(ModelError::Cache(CacheError::Full { .. })) => Self::FULL,
            Self::Model(_) => "model",
        }
    }

    /// The reason of a frame for which a policy that never evicts has no room.
    pub const FULL: &str = "full";
}

/// What became of a frame that could have been used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    Used,
    Skipped(Skip),
}

/// The model at work on one stream.
pub struct Session {
    model: Mllm,
    cache: BoundedCache,
    grammar: Grammar,
    config: SessionConfig,
    sampler: Sampler,
    memory: FrameMemory,
    gate: FrameGate,
    time_jumps: u64,
    times: StepTimes,
    pool: Arc<ThreadPool>,
    /// The frames that policy last_frames encodes again.
    last: LastFrames,
    /// Ids of the control tokens that stand between turns.
    borders: Vec<u32>,
    /// The stream's last id, if any text has come.
    last_id: Option<u32>,
}

/// What a chunk of tokens is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Prefix,
    Frame(FrameId),
    Instruction,
    Answer,
}

impl Session {
    /// Loads the checkpoint, allocates the cache and feeds the protected prefix.
    pub fn new(config: SessionConfig) -> Result<Self, ModelError> {
        let device = config.device.open()?;
        let checkpoint = Checkpoint::open(&config.model_dir)?;
        let pool = thread_pool(config.threads, &checkpoint)?;
        let model = Mllm::load(&checkpoint, config.quantization, config.dtype, &device)?;
        let mut grammar = Grammar::new(ChatFormat::of(&model)?);
        let prefix = prefix_ids(&model, &mut grammar, &config)?;
        check_room(&model, &grammar, &config, prefix.len())?;
        let cache = BoundedCache::new(
            model.shape,
            &config.cache,
            prefix.len(),
            model.dtype(),
            &device,
        )?;
        let gate = FrameGate::new(config.gate);
        let borders = grammar.format().borders.iter();
        let borders = borders
            .map(|name| model.tokenizer.control(name))
            .collect::<Result<_, _>>()?;
        let mut session = Self {
            last: LastFrames::default(),
            borders,
            last_id: None,
            sampler: Sampler::new(config.temperature, config.seed),
            model,
            cache,
            grammar,
            config,
            memory: FrameMemory::default(),
            gate,
            time_jumps: 0,
            times: StepTimes::default(),
            pool: Arc::new(pool),
        };
        session.begin(&prefix)?;
        Ok(session)
    }

    /// Forgets everything but the prefix and starts a new epoch.
    pub fn reset(&mut self) -> Result<(), ModelError> {
        let mut grammar = self.grammar.fresh();
        let prefix = prefix_ids(&self.model, &mut grammar, &self.config)?;
        check_room(&self.model, &grammar, &self.config, prefix.len())?;
        self.cache.reset(prefix.len())?;
        self.grammar = grammar;
        self.sampler = Sampler::new(self.config.temperature, self.config.seed);
        self.memory = FrameMemory::default();
        self.gate = FrameGate::new(self.config.gate);
        self.last = LastFrames::default();
        self.begin(&prefix)
    }

    /// Feeds the protected beginning of the stream, and learns what the standing instruction looks like.
    fn begin(&mut self, prefix: &[u32]) -> Result<(), ModelError> {
        self.feed_prefix(prefix)?;
        let standing = self.config.standing_instruction.trim();
        if standing.is_empty() {
            return Ok(());
        }
        let mut grammar = self.grammar.clone();
        let text = grammar.instruction(standing, &self.model.tokenizer);
        let ids = self.encode(&text)?;
        let longest = self.cache.plan().recent;
        if ids.len() > longest {
            return Err(CacheError::Parameter {
                name: "standing_instruction",
                value: format!("{} tokens long", ids.len()),
                expected: format!("at most {longest} tokens (what a compaction keeps as recent)"),
            }
            .into());
        }
        let saved = (self.cache.snapshot()?, self.last_id);
        self.append(&ids, &[], Chunk::Instruction, 1)?;
        self.cache.capture_standing(ids.len())?;
        self.cache.restore(&saved.0)?;
        self.last_id = saved.1;
        Ok(())
    }

    /// Feeds the beginning of the stream, which is empty where neither the format nor the tokenizer has one.
    fn feed_prefix(&mut self, prefix: &[u32]) -> Result<(), ModelError> {
        self.last_id = None;
        if prefix.is_empty() {
            return Ok(());
        }
        self.append(prefix, &[], Chunk::Prefix, 1)?;
        if self.model.tokenizer.is_opening(prefix) {
            self.last_id = None;
        }
        Ok(())
    }

    /// Ids of text that goes on where the stream has come to.
    fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.model.tokenizer.encode_after(self.last_id, text)
    }

    /// The threads that everything done with this session should run in.
    pub fn pool(&self) -> Arc<ThreadPool> {
        self.pool.clone()
    }

    /// What the model runs on, as in "cpu, 2 threads".
    pub fn hardware(&self) -> String {
        let device = self.model.device();
        match self.pool.current_num_threads() {
            _ if !device.is_cpu() => device_name(device),
            1 => "cpu, 1 thread".to_string(),
            more => format!("cpu, {more} threads"),
        }
    }

    pub fn model(&self) -> &Mllm {
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

    /// The frames since the last reset.
    pub fn memory(&self) -> &FrameMemory {
        &self.memory
    }

    /// Times that the stamps have jumped since the start.
    pub fn time_jumps(&self) -> u64 {
        self.time_jumps
    }

    /// The system prompt that the next [`Self::reset`] begins with.
    pub fn set_system_prompt(&mut self, text: String) {
        self.config.system_prompt = text;
    }

    /// Changes a parameter that can be set while the session runs; it holds from the next frame or instruction on.
    pub fn set_parameter(&mut self, name: &str, value: Value) -> Result<(), ParameterError> {
        self.config.set(name, value)?;
        self.sampler.set_temperature(self.config.temperature);
        self.gate.configure(self.config.gate);
        Ok(())
    }

    /// Takes a frame into the memory: vision tower, connector, one chunk through the decoder.
    pub fn push_frame(&mut self, image: &CameraImage) -> Result<Taken, PushError> {
        let started = Instant::now();
        image.check()?;
        self.place_in_time(image.stamp_ns)?;
        if !self.gate.due(image.stamp_ns) {
            return Ok(Taken::Skipped(Skip::Rate));
        }
        let picture = image.picture()?;
        self.gate.spend(image.stamp_ns);
        let vision = &self.model.vision;
        let prepared = vision.prepare(&picture, View::Frame);
        if self.gate.unchanged(&prepared) {
            return Ok(Taken::Skipped(Skip::Unchanged));
        }
        let pixels = vision.pixels(&prepared).map_err(ModelError::from)?;
        self.times.conversion = started.elapsed();

        let started = Instant::now();
        let features = vision.encode(&pixels).map_err(ModelError::from)?;
        let tokens = features.rows.dim(0).map_err(ModelError::from)?;
        self.times.vision = started.elapsed();

        let started = Instant::now();
        let elapsed_ns = self.memory.since_epoch(image.stamp_ns);
        if self.config.cache.policy == PolicyKind::LastFrames {
            let frame = Frame {
                id: self.memory.next_id(),
                elapsed_ns,
                layout: prepared.layout,
                features,
            };
            self.last.push(frame, self.config.cache.last_frames);
        } else {
            let mut grammar = self.grammar.clone();
            let text = grammar.frame(&vision.markup(&prepared.layout), elapsed_ns);
            self.append_frame(&text, self.memory.next_id(), features)?;
            self.grammar = grammar;
        }
        self.times.prefill = started.elapsed();

        self.gate.took(prepared);
        self.memory.remember(image, tokens);
        self.follow_cache();
        Ok(Taken::Used)
    }

    /// Refuses a frame that was overtaken; starts a new epoch where the stamps have jumped.
    fn place_in_time(&mut self, stamp_ns: i64) -> Result<(), PushError> {
        match self.gate.arrive(stamp_ns) {
            Arrival::InOrder => {}
            Arrival::OutOfOrder { newest_ns } => {
                return Err(FrameError::OutOfOrder {
                    stamp_ns,
                    newest_ns,
                }
                .into())
            }
            Arrival::Jump { newest_ns } => {
                let reset = self.config.gate.reset_on_time_jump;
                tracing::warn!(
                    from_s = newest_ns as f64 * 1e-9,
                    to_s = stamp_ns as f64 * 1e-9,
                    memory = if reset { "reset" } else { "kept" },
                    "time of the images jumped"
                );
                self.time_jumps += 1;
                if reset {
                    self.reset()?;
                    self.gate.arrive(stamp_ns);
                }
                self.memory.end_epoch();
            }
        }
        Ok(())
    }

    /// Feeds one frame: `text` with its markup, `features` in the place of its image tokens.
    fn append_frame(
        &mut self,
        text: &str,
        frame: FrameId,
        features: ImageFeatures,
    ) -> Result<(), ModelError> {
        let ids = self.encode(text)?;
        // The next frame needs about as much room as this one.
        self.append(&ids, &[features], Chunk::Frame(frame), ids.len())?;
        Ok(())
    }

    /// Feeds a chunk and sees to the room for the `next` tokens; returns the hidden state of its last token, `[1, hidden]`.
    fn append(
        &mut self,
        ids: &[u32],
        images: &[ImageFeatures],
        chunk: Chunk,
        next: usize,
    ) -> Result<Tensor, ModelError> {
        let embedded = self.model.embed(ids, images)?;
        let marks = self.marks(ids, &embedded, chunk);
        let decoder = &self.model.decoder;
        let hidden = decoder.append_embedded(&embedded.embedded, &marks, &mut self.cache)?;
        self.cache.reserve(next)?;
        self.last_id = ids.last().copied();
        Ok(hidden.narrow(0, hidden.dim(0)? - 1, 1)?)
    }

    fn marks(&self, ids: &[u32], input: &mllm::Chunk, chunk: Chunk) -> Vec<Mark> {
        ids.iter()
            .enumerate()
            .map(|(i, id)| Mark {
                frame: match chunk {
                    Chunk::Frame(frame) => input.images[i].map(|_| frame),
                    _ => None,
                },
                place: input.places[i],
                // An answer belongs to what it answers.
                starts_unit: i == 0 && chunk != Chunk::Answer,
                boundary: self.borders.contains(id),
                instruction: chunk == Chunk::Instruction,
            })
            .collect()
    }

    fn follow_cache(&mut self) {
        if self.config.cache.policy == PolicyKind::LastFrames {
            self.memory.keep_last(self.config.cache.last_frames);
            return;
        }
        self.memory.follow(&self.cache);
    }
}

/// The protected beginning of the stream.
fn prefix_ids(
    model: &Mllm,
    grammar: &mut Grammar,
    config: &SessionConfig,
) -> Result<Vec<u32>, ModelError> {
    let text = grammar.prefix(&config.system_prompt, &model.tokenizer);
    model.tokenizer.encode_prompt(&text)
}

/// A camera's picture, where the number of a frame's tokens depends on it and none has come yet.
const USUAL_PICTURE: (usize, usize) = (640, 480);

/// A question of the usual length.
const USUAL_QUESTION: &str = "What is in view?";

/// A budget holds at least the prefix, one frame and a short question with the beginning of its answer.
fn check_room(
    model: &Mllm,
    grammar: &Grammar,
    config: &SessionConfig,
    prefix: usize,
) -> Result<(), ModelError> {
    let layout = model.vision.layout(USUAL_PICTURE, View::Frame);
    let mut grammar = grammar.fresh();
    let text = grammar.frame(&model.vision.markup(&layout), 0);
    let frame = model.tokenizer.encode(&text)?.len();
    let text = grammar.instruction(USUAL_QUESTION, &model.tokenizer);
    let question = model.tokenizer.encode(&text)?.len();
    let policy = config.cache.policy.build(&config.cache)?;
    let longest = model.shape.max_positions;
    let enough = |budget: usize| {
        let cache = CacheConfig {
            budget,
            ..config.cache.clone()
        };
        let plan = Plan::new(&cache, policy.as_ref(), prefix, longest);
        let room = plan.is_ok_and(|plan| !policy.evicts() || plan.longest_turn() >= question);
        room && budget > prefix + frame + question
    };
    let budget = config.cache.budget;
    if enough(budget) {
        return Ok(());
    }
    // What is wrong with the other parameters is said where they are put together.
    let Some(least) = (budget..=longest).find(|&budget| enough(budget)) else {
        return Ok(());
    };
    Err(CacheError::Parameter {
        name: "budget",
        value: budget.to_string(),
        expected: format!(
            "at least {least} (room for a prefix of {prefix}, one frame of {frame} and a question of {question} tokens)"
        ),
    }
    .into())
}
