//! A session: the model, its parameters and the state of one stream, one frame or instruction at a time.
//!
//! - this file: what a session is
//! - `state`: all that a stream leaves behind, and marks to go back to
//! - `beginning`: how a stream begins; resets
//! - `frames`: frames
//! - `ask`: instructions
//! - `chunks`: what both put through the decoder, and what is undone when that fails
//! - `last_frames`: the session without a memory, as a baseline

mod ask;
mod beginning;
mod chunks;
mod frames;
mod last_frames;
mod state;

use std::path::PathBuf;
use std::sync::Arc;

use rayon::ThreadPool;

use super::complaints::Complaints;
use super::gate::GateConfig;
use super::grammar::Chat;
use super::memory::FrameMemory;
use super::stats::StepTimes;
use crate::cache::{BoundedCache, CacheConfig, CacheError, CacheUsage, PolicyKind};
use crate::model::checkpoint::Checkpoint;
use crate::model::chooser::Chooser;
use crate::model::mllm::Mllm;
use crate::model::precision::Precision;
use crate::model::threads::thread_pool;
use crate::model::weights::Quantization;
use crate::model::{device_name, DeviceKind, ModelError};

pub use ask::AskError;
pub use beginning::PromptCheck;
use chunks::Chunk;
pub use frames::{PushError, Taken};
pub use state::{SessionState, StreamState};

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
    /// The most that an instruction may ask for as its longest answer, tokens.
    pub max_new_tokens_limit: usize,
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
            max_new_tokens_limit: 1024,
            temperature: 0.0,
            seed: 0,
            queue_size: 8,
            gate: GateConfig::default(),
            threads: 0,
        }
    }
}

/// The model at work on one stream.
pub struct Session {
    model: Mllm,
    config: SessionConfig,
    state: SessionState,
    check: PromptCheck,
    chooser: Chooser,
    pool: Arc<ThreadPool>,
    /// Ids of the control tokens that stand between turns.
    borders: Vec<u32>,
    /// What has been measured and counted, which no failure and no reset undoes.
    times: StepTimes,
    complaints: Complaints,
}

impl Session {
    /// Loads the checkpoint, allocates the cache and feeds the protected prefix.
    pub fn new(config: SessionConfig) -> Result<Self, ModelError> {
        let device = config.device.open()?;
        let checkpoint = Checkpoint::open(&config.model_dir)?;
        let pool = thread_pool(config.threads, &checkpoint)?;
        let model = Mllm::load(&checkpoint, config.quantization, config.dtype, &device)?;
        Self::with_model(model, pool, config)
    }

    /// The same with a model that has been loaded, in whose threads everything will run.
    pub fn with_model(
        model: Mllm,
        pool: ThreadPool,
        config: SessionConfig,
    ) -> Result<Self, ModelError> {
        let (longest, limit) = (config.max_new_tokens, config.max_new_tokens_limit);
        if longest > limit {
            return Err(CacheError::Parameter {
                name: "max_new_tokens",
                value: longest.to_string(),
                expected: format!("at most {limit} (max_new_tokens_limit)"),
            }
            .into());
        }
        let chat = Chat::of(&model)?;
        let check = PromptCheck::new(&model, chat.clone(), &config)?;
        let beginning = Arc::new(check.beginning(&config.system_prompt)?);
        let cache = BoundedCache::new(
            model.shape,
            &config.cache,
            beginning.prefix.len(),
            model.dtype(),
            model.device(),
        )?;
        let borders = chat.format.borders.iter();
        let borders = borders
            .map(|name| model.tokenizer.control(name))
            .collect::<Result<_, _>>()?;
        let stream = StreamState::new(beginning.clone(), &config);
        let mut session = Self {
            state: SessionState::new(cache, stream),
            check,
            chooser: Chooser::new(config.temperature, model.placeholders.clone()),
            model,
            config,
            pool: Arc::new(pool),
            borders,
            times: StepTimes::default(),
            complaints: Complaints::default(),
        };
        session.begin(beginning)?;
        Ok(session)
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
        self.state.cache.usage()
    }

    pub fn times(&self) -> StepTimes {
        self.times
    }

    /// The frames since the last reset.
    pub fn memory(&self) -> &FrameMemory {
        &self.state.stream.memory
    }

    /// The state of the stream.
    pub fn state(&self) -> &SessionState {
        &self.state
    }

    /// Says, from any thread, whether a system prompt fits.
    pub fn prompt_check(&self) -> PromptCheck {
        self.check.clone()
    }

    fn follow_cache(&mut self) {
        let SessionState { cache, stream, .. } = &mut self.state;
        match self.config.cache.policy {
            PolicyKind::LastFrames => stream.memory.keep_last(self.config.cache.last_frames),
            _ => stream.memory.follow(cache),
        }
    }
}
