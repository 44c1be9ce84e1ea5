//! One token through the decoder in a device's own kernels: appended to the cache, attended with, and the next one chosen.
//!
//! - this file: the step, and how the device's state follows the cache's
//! - `state`: what of it changes from token to token, in the device's memory
//! - `weights`: the weights as the kernels take them
//! - `launches`: which kernels a step is made of
//!
//! What changes from token to token lies in the memory of the device, so the launches are recorded once and repeated. Prompts and
//! frames go through candle's operations on the same buffers; when the cache has changed in another way than by a step, its
//! numbers are uploaded anew.

mod launches;
mod state;
mod weights;

use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::Tensor;

use super::Decoder;
use crate::cache::{BoundedCache, CacheError, Mark, Revision};
use crate::gpu::{Gpu, Mapped, Recording};
use crate::model::chooser::{Choice, ChoiceError, Chooser, Draws, Limits};
use crate::model::weights::block_name;
use crate::model::ModelError;
use launches::Buffers;
use state::{DeviceState, Fault};
use weights::StepWeights;

/// Why a decoder has no step of kernels, so that it goes on in candle's operations.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("there are no kernels for layers of this kind")]
    Layers,
    #[error("there are no kernels for weights of {}", block_name(*.0))]
    Weights(GgmlDType),
    #[error("there are no kernels for projections of one input of which some are floats and some blocks")]
    Mixed,
    #[error(
        "there are no kernels for heads of {0} elements, expected an even number of at most 256"
    )]
    Heads(usize),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The decoder's step on one cache, whose buffers it has recorded.
#[derive(Debug)]
pub struct Stepper {
    recording: Box<dyn Recording>,
    state: DeviceState,
    /// `[vocab]`, f32, of the last step.
    logits: Tensor,
    /// What a step has chosen.
    chosen: Box<dyn Mapped>,
    /// Where the cache was when the device last knew of it.
    revision: Option<Revision>,
    /// Whether the step of the token that was chosen last is started before anybody asks for it.
    runs_ahead: bool,
    /// Such a step is on its way, or through.
    ahead: bool,
}

impl Stepper {
    /// Allocates what a step needs beside weights and cache, and records its launches. `chooser` says which tokens are never chosen,
    /// `ends` which end an answer.
    pub fn new(
        decoder: &Decoder,
        gpu: &Arc<dyn Gpu>,
        cache: &BoundedCache,
        (chooser, ends): (&Chooser, &[u32]),
    ) -> Result<Self, Unfit> {
        let weights = StepWeights::of(decoder)?;
        let state = DeviceState::new(cache)?;
        let chosen = gpu.mapped(launches::CHOSEN_WORDS)?;
        let buffers = Buffers::new(&weights, cache, (chooser, ends), gpu.as_ref())?;
        let launches = launches::step(&weights, &buffers, &state, cache, chosen.as_ref())?;
        // Safety: `launches` holds kernels and arguments as `kernels/` says.
        let recording = unsafe { gpu.record(launches)? };
        Ok(Self {
            recording,
            state,
            logits: buffers.logits,
            chosen,
            revision: None,
            runs_ahead: true,
            ahead: false,
        })
    }

    /// Starts no step before it is asked for: only so are [`Self::logits`] those of the last step that was.
    pub fn one_at_a_time(mut self) -> Self {
        self.runs_ahead = false;
        self
    }

    /// The same, where there are kernels at all; that there are none for this decoder is told in the log.
    pub fn fitting(
        decoder: &Decoder,
        gpu: Option<&Arc<dyn Gpu>>,
        cache: &BoundedCache,
        rules: (&Chooser, &[u32]),
    ) -> Option<Self> {
        Self::new(decoder, gpu?, cache, rules)
            .inspect_err(|unfit| {
                tracing::info!("answers are decoded in single operations: {unfit}")
            })
            .ok()
    }

    /// Appends `token`, which is text, to the cache this was made for, and chooses what follows it.
    ///
    /// The device goes on with its own choice at once, so that it need not wait for the host: [`Self::settle`] is due before anything
    /// but a step changes the cache or sets a mark. After an error the cache is what it was before.
    pub fn step(
        &mut self,
        token: u32,
        mark: Mark,
        cache: &mut BoundedCache,
        rules: (&Chooser, &mut Draws),
    ) -> Result<Choice, ModelError> {
        self.step_within(token, mark, cache, rules, Limits::default())
    }

    /// The same, and chooses within limits: on the host, as it draws.
    pub fn step_within(
        &mut self,
        token: u32,
        mark: Mark,
        cache: &mut BoundedCache,
        (chooser, draws): (&Chooser, &mut Draws),
        limits: Limits<'_>,
    ) -> Result<Choice, ModelError> {
        let budget = cache.plan().budget;
        let used = cache.step_layers().map(|layer| layer.len).max();
        let free = budget - used.unwrap_or(0);
        if free == 0 {
            return Err(full(cache).into());
        }
        if self.ahead && !(self.follows(cache) && self.state.goes_on_with(token)) {
            self.settle(cache)?;
        }
        if !self.ahead {
            cache.before_step()?;
            if !self.follows(cache) {
                self.state.follow(cache)?;
            }
            self.state.set_token(token)?;
            self.recording.launch()?;
        }
        self.revision = None;
        // The next one needs a slot that no compaction has to make.
        let on_host = chooser.temperature > 0.0 || !limits.is_none();
        self.ahead = self.runs_ahead && !on_host && free > 1;
        if self.ahead {
            self.recording.launch()?;
        }
        self.recording.wait(usize::from(self.ahead))?;
        let choice = match self.choice(cache, (chooser, draws), limits) {
            Ok(choice) => choice,
            Err(error) => {
                // A step behind one that failed does nothing.
                self.ahead = false;
                self.recording.wait(0)?;
                self.state.bring_back(cache)?;
                self.state.take_back(cache)?;
                return Err(error);
            }
        };
        cache.note_step(mark)?;
        if free == 1 {
            // What comes next is a compaction.
            self.state.bring_back(cache)?;
        }
        self.revision = Some(cache.revision());
        Ok(choice)
    }

    /// Whether the device knows where the cache has come to.
    fn follows(&self, cache: &BoundedCache) -> bool {
        self.revision == Some(cache.revision())
    }

    /// Brings what only the device knows back to the cache, and takes back what it has done beyond that.
    pub fn settle(&mut self, cache: &mut BoundedCache) -> Result<(), ModelError> {
        if self.follows(cache) {
            self.state.bring_back(cache)?;
        }
        if std::mem::take(&mut self.ahead) {
            self.recording.wait(0)?;
            if self.follows(cache) && self.state.is_beyond(self.chosen.as_ref()) {
                self.state.take_back(cache)?;
            }
            self.revision = None;
        }
        Ok(())
    }

    /// Logits of the last step, `[vocab]`.
    pub fn logits(&self) -> Result<Vec<f32>, ModelError> {
        Ok(self.logits.to_vec1()?)
    }

    /// What the step that is through has come to.
    fn choice(
        &mut self,
        cache: &BoundedCache,
        (chooser, draws): (&Chooser, &mut Draws),
        limits: Limits<'_>,
    ) -> Result<Choice, ModelError> {
        match self.state.fault(self.chosen.as_ref()) {
            None => {}
            Some(Fault::Full) => return Err(full(cache).into()),
            Some(Fault::NotFinite(token)) => {
                let logits = self.logits.to_vec1::<f32>()?;
                let value = logits.get(token).copied().unwrap_or(f32::NAN);
                return Err(ChoiceError::NotFinite { token, value }.into());
            }
            Some(Fault::Nothing) => {
                let logits = self.logits.elem_count();
                return Err(ChoiceError::Nothing { logits }.into());
            }
        }
        let choice = self.state.note_choice(self.chosen.as_ref());
        if chooser.temperature > 0.0 || !limits.is_none() {
            self.state.forget_token();
            let mut logits = self.logits.to_vec1()?;
            return Ok(chooser.choose_within(&mut logits, limits, draws)?);
        }
        Ok(choice)
    }
}

fn full(cache: &BoundedCache) -> CacheError {
    let usage = cache.usage();
    CacheError::Full {
        used: usage.used,
        budget: usage.budget,
        needed: 1,
    }
}
