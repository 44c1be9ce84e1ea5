//! A session: the model, its bounded cache and the conversation, one frame or instruction at a time.
//!
//! - this file: what a session is, and frames
//! - `ask`: instructions
//! - `last_frames`: the session without a memory, as a baseline

mod ask;
mod last_frames;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use rayon::ThreadPool;

use super::clock::StreamClock;
use super::complaints::Complaints;
use super::frame::{CameraImage, FrameError};
use super::gate::{FrameGate, GateConfig, Skip};
use super::grammar::{ChatFormat, Grammar};
use super::memory::FrameMemory;
use super::stats::StepTimes;
use crate::cache::{BoundedCache, CacheConfig, CacheError, CacheUsage, FrameId, Mark, PolicyKind};
use crate::model::checkpoint::Checkpoint;
use crate::model::mllm::{self, Mllm};
use crate::model::precision::Precision;
use crate::model::sample::Sampler;
use crate::model::threads::thread_pool;
use crate::model::vision::{ImageFeatures, View};
use crate::model::weights::Quantization;
use crate::model::{device_name, DeviceKind, ModelError};
pub use ask::AskError;
use last_frames::{Frame, LastFrames};

/// Everything that shapes a session.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    pub model_dir: PathBuf,
    pub device: DeviceKind,
    /// What becomes of the decoder's matrices.
    pub quantization: Quantization,
    /// Type of the arithmetic.
    pub dtype: Precision,
    pub cache: CacheConfig,
    /// The protected beginning of the stream; may be empty.
    pub system_prompt: String,
    /// What matters, as an example of it: inf_mllm_plus keeps what is like it. Empty: nothing in particular.
    pub standing_instruction: String,
    /// Longest answer when an instruction does not say, tokens.
    pub max_new_tokens: usize,
    /// 0: greedy.
    pub temperature: f64,
    pub seed: u64,
    /// Instructions that may wait.
    pub queue_size: usize,
    /// Which frames are used.
    pub gate: GateConfig,
    /// Threads of the model; 0: as many as suit its size.
    pub threads: usize,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            model_dir: PathBuf::from("models/demo"),
            device: DeviceKind::Auto,
            quantization: Quantization::Auto,
            dtype: Precision::Auto,
            cache: CacheConfig::default(),
            system_prompt: "You are a mobile robot. Answer briefly.".to_string(),
            standing_instruction: String::new(),
            max_new_tokens: 32,
            temperature: 0.0,
            seed: 0,
            queue_size: 8,
            gate: GateConfig::default(),
            threads: 0,
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
    /// Of the frames that come in lock-step.
    clock: StreamClock,
    gate: FrameGate,
    times: StepTimes,
    pool: Arc<ThreadPool>,
    complaints: Complaints,
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
        let clock = StreamClock::new(config.gate.time_jump_threshold);
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
            clock,
            gate,
            times: StepTimes::default(),
            complaints: Complaints::default(),
            pool: Arc::new(pool),
        };
        session.begin(&prefix)?;
        Ok(session)
    }

    /// Forgets everything but the prefix; the stream, and its clock, begin anew.
    pub fn reset(&mut self) -> Result<(), ModelError> {
        self.forget()?;
        self.clock.reset();
        Ok(())
    }

    /// Forgets everything but the prefix and starts a new epoch.
    fn forget(&mut self) -> Result<(), ModelError> {
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

    /// The system prompt that the next [`Self::reset`] begins with.
    pub fn set_system_prompt(&mut self, text: String) {
        self.config.system_prompt = text;
    }

    /// Takes frames in lock-step, as they arrive: one that is late or of another clock is refused, one after a jump of the stamps
    /// begins an epoch, all others are taken as by [`Self::take_frame`].
    pub fn push_frame(&mut self, image: &CameraImage) -> Result<Taken, PushError> {
        image.check()?;
        let arrival = self.clock.arrive(image.stamp_ns, image.arrival_ns);
        self.take_frame(image, arrival.check(image.stamp_ns)?)
    }

    /// Takes a frame whose time is in order into the memory: vision tower, connector, one chunk through the decoder. `jumped`: an
    /// epoch begins with it, since the stamps jumped from there, nanoseconds.
    pub fn take_frame(
        &mut self,
        image: &CameraImage,
        jumped: Option<i64>,
    ) -> Result<Taken, PushError> {
        let started = Instant::now();
        if let Some(from_ns) = jumped {
            self.begin_epoch(from_ns, image.stamp_ns)?;
        }
        if !self.gate.due(image.stamp_ns) {
            return Ok(Taken::Skipped(Skip::Rate));
        }
        let picture = image.picture()?;
        self.gate.spend(image.stamp_ns);
        let vision = &self.model.vision;
        let prepared = vision.prepare(&picture, View::Frame);
        if self.gate.unchanged(&prepared) {
            self.memory.confirm(image);
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

    /// The stamps have jumped; what is remembered stays as it is, or is forgotten.
    fn begin_epoch(&mut self, from_ns: i64, to_ns: i64) -> Result<(), PushError> {
        let reset = self.config.gate.reset_on_time_jump;
        if let Some(more) = self.complaints.due("time_jump", Instant::now()) {
            tracing::warn!(
                from_s = from_ns as f64 * 1e-9,
                to_s = to_ns as f64 * 1e-9,
                memory = if reset { "reset" } else { "kept" },
                "time of the images jumped{more}"
            );
        }
        self.gate.begin_epoch();
        self.memory.end_epoch();
        if reset {
            self.forget()?;
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

/// A budget holds at least the prefix and one frame.
fn check_room(
    model: &Mllm,
    grammar: &Grammar,
    config: &SessionConfig,
    prefix: usize,
) -> Result<(), ModelError> {
    let layout = model.vision.layout(USUAL_PICTURE, View::Frame);
    let text = grammar.fresh().frame(&model.vision.markup(&layout), 0);
    let frame = model.tokenizer.encode(&text)?.len();
    let budget = config.cache.budget;
    if budget < prefix + frame {
        return Err(CacheError::Parameter {
            name: "budget",
            value: budget.to_string(),
            expected: format!(
                "at least {} (prefix {prefix} + one frame {frame})",
                prefix + frame
            ),
        }
        .into());
    }
    Ok(())
}
