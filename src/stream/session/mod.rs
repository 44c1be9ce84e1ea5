//! A session: the model, its parameters and the state of one stream, one frame or instruction at a time.
//!
//! - this file: what a session is
//! - `config`: its parameters
//! - `state`: all that a stream leaves behind, and marks to go back to
//! - `beginning`: how a stream begins; resets
//! - `frames`: frames
//! - `groups`: frames that become one picture with the one before
//! - `encoded`: frames that the vision tower has seen, to be fed to several sessions
//! - `ask`: instructions
//! - `checks`: what stands in the way of an answer
//! - `choices`: instructions whose answer is one of several texts
//! - `formed`: instructions whose answer is text of a grammar
//! - `evidence`: which frames an answer rests on, and the boxes in its text
//! - `pauses`: long answers, and the frames that come in between
//! - `pictures`: pictures that belong to an instruction
//! - `recall`: what left the cache, found and fed again
//! - `thoughts`: what a model thinks in front of an answer
//! - `turns`: turns of the conversation into the archive, and fed again
//! - `chunks`: what both put through the decoder, and what is undone when that fails
//! - `last_frames`: the session without a memory, as a baseline

mod ask;
mod beginning;
mod checks;
mod choices;
mod chunks;
mod config;
mod encoded;
mod evidence;
mod formed;
mod frames;
mod groups;
mod last_frames;
mod pauses;
mod pictures;
mod recall;
mod state;
mod thoughts;
mod turns;

use std::sync::Arc;

use rayon::ThreadPool;

use super::archive::Archive;
use super::complaints::Complaints;
use super::grammar::Chat;
use super::memory::FrameMemory;
use super::stats::{ArchiveStats, StepTimes};
use super::thumbnail::Thumbnails;
use crate::cache::parameter::{ParameterError, Parameters, Value};
use crate::cache::{BoundedCache, CacheUsage, PolicyKind, TensorError};
use crate::gpu::{self, Gpu};
use crate::model::chooser::Chooser;
use crate::model::decoder::step::Stepper;
use crate::model::mllm::Mllm;
use crate::model::threads::thread_pool;
use crate::model::vision::frames::FrameEncoder;
use crate::model::{device_name, ModelError};

pub use beginning::PromptCheck;
pub use checks::AskError;
pub use choices::ChoicesError;
use chunks::Chunk;
pub use config::{SessionConfig, MOST_PICTURES};
pub use encoded::EncodedFrame;
pub use frames::{PushError, Seen, Taken};
pub use pauses::{Asking, Meanwhile, Progress};
pub use recall::RecallError;
pub use state::{CameraState, SessionState, StreamState};

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
    finding: recall::Finding,
    /// Answers in the device's own kernels, where it has such for this model and policy.
    stepper: Option<Stepper>,
    gpu: Option<Arc<dyn Gpu>>,
    encoder: FrameEncoder,
    thumbnails: Arc<Thumbnails>,
    /// Why the memory is not what it says, if it could not be put back behind something that failed.
    damage: Option<String>,
    /// What has been measured and counted, which no failure and no reset undoes.
    times: StepTimes,
    complaints: Complaints,
}

/// The way of frames through the model's tower. `gpu` is the decoder's.
fn encoder(model: &Mllm, gpu: Option<Arc<dyn Gpu>>) -> FrameEncoder {
    let device = model.tower_device();
    let gpu = match device.same_device(model.device()) {
        true => gpu,
        false => gpu::of(device),
    };
    FrameEncoder::new(model.vision.clone(), gpu, device)
}

impl Session {
    /// Loads the checkpoint, allocates the cache and feeds the protected prefix.
    pub fn new(config: SessionConfig) -> Result<Self, ModelError> {
        let device = config.device.open()?;
        let checkpoint = config.checkpoint()?;
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
        let gpu = gpu::of(model.device());
        Self::with_kernels(model, pool, config, gpu)
    }

    /// The same with kernels that run on the memory of the model's device, if there are any.
    pub fn with_kernels(
        mut model: Mllm,
        pool: ThreadPool,
        config: SessionConfig,
        gpu: Option<Arc<dyn Gpu>>,
    ) -> Result<Self, ModelError> {
        config.check()?;
        config.cameras.check_tokens(&model.tokenizer)?;
        config.check_groups(&model)?;
        config.limit_frames(&mut model)?;
        model.decoder.lay_out_for(gpu.as_ref())?;
        let chat = Chat::of_thinking(&model, config.thinking)?;
        let check = PromptCheck::new(&model, chat.clone(), &config)?;
        let beginning = Arc::new(check.beginning(&config.system_prompt)?);
        let mut cache = BoundedCache::new(
            model.shape,
            &config.cache,
            beginning.prefix.len(),
            model.dtype(),
            model.device(),
        )?;
        cache.run_on(gpu.clone())?;
        let finding = recall::Finding::of(&config, model.shape.layers)?;
        let borders = chat.format.borders.iter();
        let borders = borders
            .map(|name| model.tokenizer.control(name))
            .collect::<Result<_, _>>()?;
        let stream = StreamState::new(beginning.clone(), &config);
        let mut session = Self {
            state: SessionState::new(cache, stream),
            check,
            chooser: Chooser::new(config.temperature, model.placeholders.clone()),
            encoder: encoder(&model, gpu.clone()),
            thumbnails: Arc::new(Thumbnails::new(config.evidence.thumbnails())),
            model,
            config,
            pool: Arc::new(pool),
            borders,
            finding,
            stepper: None,
            gpu: gpu.clone(),
            damage: None,
            times: StepTimes::default(),
            complaints: Complaints::default(),
        };
        session.set_chooser();
        session.begin(beginning)?;
        let (decoder, cache) = (&session.model.decoder, &session.state.cache);
        let rules = (&session.chooser, session.model.ends.ids());
        session.stepper = Stepper::fitting(decoder, gpu.as_ref(), cache, rules);
        // What the GPU has not been able to do so far is told here, and other threads find it done.
        session.model.tower_device().synchronize()?;
        session.model.device().synchronize()?;
        Ok(session)
    }

    /// What another thread can take frames through tower and connector with while this session is at something else; none where that
    /// would take threads from decoding, and where frames go through the tower in pairs.
    pub fn encoder(&self) -> Option<FrameEncoder> {
        let apart = self.gpu.is_some() && !self.takes_pairs();
        apart.then(|| self.encoder.clone())
    }

    /// Whether the session can go on behind something that has failed: most of what fails leaves it as it was, but not a device that
    /// does nothing any more, nor a memory that could not be put back. After [`ModelError::Lost`] nothing of it can be relied on.
    pub fn check(&self) -> Result<(), ModelError> {
        let device = self.model.device();
        let checked = match &self.gpu {
            Some(gpu) => gpu.check(),
            None => device.synchronize(),
        };
        let what = match (checked, &self.damage) {
            (Err(error), _) => TensorError::describe(&error),
            (Ok(()), Some(damage)) => damage.clone(),
            (Ok(()), None) => return Ok(()),
        };
        let device = device_name(device);
        Err(ModelError::Lost { device, what })
    }

    /// Whether answers are decoded in the device's own kernels.
    pub fn decodes_in_kernels(&self) -> bool {
        self.stepper.is_some()
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

    /// Slots that hold the frames of each of several cameras, mean over kept sets; none of one.
    pub fn camera_slots(&self) -> Vec<usize> {
        let cameras = self.state.stream.cameras.len();
        if cameras < 2 {
            return Vec::new();
        }
        let sets = self.state.cache.camera_slots(cameras);
        let sum = |camera: usize| sets.iter().map(|set| set[camera]).sum::<usize>();
        let mean = |camera| sum(camera) / sets.len().max(1);
        (0..cameras).map(mean).collect()
    }

    pub fn times(&self) -> StepTimes {
        self.times
    }

    /// The frames since the last reset.
    pub fn memory(&self) -> &FrameMemory {
        &self.state.stream.memory
    }

    /// What has been seen, beyond what the cache keeps of it.
    pub fn archive(&self) -> &Archive {
        &self.state.stream.archive
    }

    pub fn archive_stats(&self) -> ArchiveStats {
        let archive = self.archive();
        // Stamps may have jumped back.
        let stamps = archive.entries().iter().map(|entry| entry.unit.stamp_ns);
        let oldest_ns = stamps.min();
        let newest_ns = self.memory().newest().map(|newest| newest.stamp_ns);
        let age_ns = oldest_ns.zip(newest_ns);
        let age_ns = age_ns.map_or(0, |(oldest, newest)| newest.saturating_sub(oldest).max(0));
        ArchiveStats {
            units: archive.entries().len(),
            turns: archive.texts(),
            bytes: archive.bytes(),
            oldest_ns,
            oldest_age: age_ns as f32 * 1e-9,
            nothing_new: archive.nothing_new(),
            left: archive.left(),
            thumbnail_bytes: self.state.stream.glimpses.bytes(),
        }
    }

    /// The state of the stream.
    pub fn state(&self) -> &SessionState {
        &self.state
    }

    /// Says, from any thread, whether a system prompt fits.
    pub fn prompt_check(&self) -> PromptCheck {
        self.check.clone()
    }

    /// Changes a parameter that can be set while the session runs; it holds from the next frame or instruction on.
    pub fn set_parameter(&mut self, name: &str, value: Value) -> Result<(), ParameterError> {
        self.config.set(name, value)?;
        self.set_chooser();
        let config = &self.config;
        for (index, camera) in self.state.stream.cameras.iter_mut().enumerate() {
            camera
                .gate
                .configure(config.cameras.gate(index, config.gate));
        }
        Ok(())
    }

    fn set_chooser(&mut self) {
        self.chooser.temperature = self.config.temperature;
        let asked = self.config.repetition_penalty;
        self.chooser.repetition_penalty = self.model.generation.penalty(asked);
    }

    fn follow_cache(&mut self) {
        let SessionState { cache, stream, .. } = &mut self.state;
        match self.config.cache.policy {
            PolicyKind::LastFrames => stream.memory.keep_last(self.config.cache.last_frames),
            _ => stream.memory.follow(cache),
        }
    }
}
