//! The engine thread, which owns model and device, and the inbox in front of it.
//!
//! There is a thread from configure to cleanup ([`Lifecycle`]); the inbox outlives it, and answers for it where there is none. Only in
//! [`State::Active`] is anything taken in.
//!
//! Frames wait in a slot of one for each camera: a newer frame replaces the one that waits. Instructions wait in a bounded queue. The thread
//! takes what came first, but never two instructions in a row while a frame waits, so that neither starves the other. An instruction of a
//! higher priority comes before the others, and cuts off the answer to one of a lower priority. Refusals and cancellations are answered
//! at once, between the tokens of whatever is being answered. Watches are asked when no instruction waits, and no two askings in a row while a
//! frame does.
//!
//! - this file: what others see of the engine
//! - `cameras`: of each camera the frame that waits, and its clock
//! - `inbox`: what waits, and in which order it is taken
//! - `endings`: what ends an instruction before its answer is whole
//! - `watches`: instructions that stand, and when they are asked
//! - `life`: from one state of the life cycle to another: the model loaded and let go
//! - `worker`: the thread
//! - `ahead`: the thread beside it, on a GPU

mod ahead;
mod cameras;
mod endings;
mod inbox;
mod life;
mod watches;
mod worker;

use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use inbox::Inbox;
use life::Loaded;

use super::answer::{Answer, AnswerDelta, Basis};
use super::complaints::Complaints;
use super::frame::CameraImage;
use super::gate::FrameGate;
use super::instruction::Instruction;
#[cfg(doc)]
use super::lifecycle::Lifecycle;
use super::lifecycle::{State, Transition};
use super::session::PushError;
use super::stats::{StreamStats, WatchStats};
use crate::cache::parameter::Value;
use crate::model::ModelError;

pub use endings::{Cancelled, Which};
pub use inbox::{MAX_ID_BYTES, MAX_INSTRUCTION_BYTES};
pub use life::{Change, ChangeError};
pub use watches::Watch;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("the memory cannot be reset: {0}")]
    Reset(String),
    #[error("the engine thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
    #[error("the engine has stopped")]
    Stopped,
    /// There is no thread in this state.
    #[error("{}", .0.objection().unwrap_or("the engine has stopped"))]
    Idle(State),
    #[error("the session has {found} cameras, the engine was made for {expected}")]
    Cameras { found: usize, expected: usize },
    /// The engine has stopped because of what no attempt afterwards can mend.
    #[error("{0}")]
    Failed(String),
}

/// Receives what the engine has to say, on the engine's thread; must not block.
pub trait EngineEvents: Send {
    fn delta(&mut self, delta: AnswerDelta);
    fn answer(&mut self, answer: Answer);
    /// A watch after an answer of it has been published, which is also told as any other.
    fn watch(&mut self, _watch: Watch) {}
}

/// An engine. Methods never wait for the model unless they say so.
pub struct Engine {
    shared: Arc<Shared>,
    loaded: Mutex<Option<Loaded>>,
}

struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
    /// Something has changed for the thread that takes frames ahead of their turn, or by it.
    frames: Condvar,
    ready: Condvar,
    /// Of every camera, as its last frame left it.
    gates: Mutex<Vec<FrameGate>>,
    stats: Mutex<StreamStats>,
    complaints: Mutex<Complaints>,
    /// What is known of each camera when no image comes of it.
    silent: Mutex<Vec<String>>,
    /// The zero of the times of receipt.
    started: Instant,
    events: Mutex<Box<dyn EngineEvents>>,
    changes: Box<dyn Fn(Change) + Send + Sync>,
}

impl Shared {
    /// Counts a refused frame and says so in the log, though not of each of many.
    fn reject(&self, camera: usize, error: &PushError) {
        // Who sees it counted finds the reason in the log.
        if error.reason() == PushError::FULL {
            // What stays so until a reset is said once.
            if !std::mem::replace(&mut lock(&self.stats).memory_full, true) {
                tracing::warn!("frame not taken: {error}; nothing more is taken until a reset, and a larger budget or another policy goes on longer");
            }
        } else {
            let due = lock(&self.complaints).due(error.reason(), Instant::now());
            match (due, error) {
                (None, _) => {}
                (Some(more), PushError::Frame(error)) => {
                    tracing::warn!("image refused: {error}{more}");
                }
                (Some(more), PushError::Model(error)) => {
                    tracing::error!("frame not taken: {error}{more}");
                }
            }
        }
        lock(&self.stats).reject(camera, error);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked while holding one of these left plain counters and queues behind, which stay usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Places a frame in time and puts it into the waiting slot of its camera. One that is refused, which is counted and logged, leaves the one
    /// that waits alone.
    pub fn offer_frame(&self, image: CameraImage) -> Result<(), PushError> {
        let checked = image.check();
        let camera = image.camera;
        let offered = {
            let mut inbox = lock(&self.shared.inbox);
            let mut stats = lock(&self.shared.stats);
            inbox
                .cameras
                .slot(camera)
                .map_err(PushError::from)?
                .heard_at = Some(Instant::now());
            stats.received(camera, image.bytes());
            checked.and_then(|()| {
                let received_ns = self.shared.started.elapsed().as_nanos();
                inbox.offer(image, received_ns as i64, &mut stats)
            })
        };
        // What was known of a silent camera has passed.
        self.describe_camera(camera, String::new());
        match offered {
            Ok(()) => {
                self.shared.wake.notify_one();
                self.shared.frames.notify_one();
                Ok(())
            }
            Err(error) => {
                let error = error.into();
                self.shared.reject(camera, &error);
                Err(error)
            }
        }
    }

    /// Says what is known of a camera while no image comes of it, for those who ask in vain.
    pub fn describe_camera(&self, camera: usize, text: String) {
        if let Some(known) = lock(&self.shared.silent).get_mut(camera) {
            *known = text;
        }
    }

    /// Queues an instruction. Whatever happens to it ends in exactly one [`EngineEvents::answer`]; a watch has more of them, and a last one.
    pub fn instruct(&self, instruction: Instruction) {
        self.receive(instruction, None);
    }

    /// Answers an instruction that cannot even be read with an error.
    pub fn refuse(&self, instruction: Instruction, reason: String) {
        self.receive(instruction, Some(reason));
    }

    fn receive(&self, mut instruction: Instruction, problem: Option<String>) {
        let mut inbox = lock(&self.shared.inbox);
        lock(&self.shared.stats).instructions_received += 1;
        inbox.name(&mut instruction);
        match problem.or_else(|| inbox.objection(&instruction)) {
            Some(reason) => inbox.refuse(instruction, reason),
            None => inbox.queue(instruction),
        }
        match inbox.has_thread() {
            true => self.shared.wake.notify_one(),
            false => self.shared.refuse_all(&mut inbox),
        }
    }

    /// Cancels instructions that wait or are being answered, and watches: each gets its answer, with [`FinishReason::Cancelled`], within a token of the
    /// answer that is being given.
    ///
    /// [`FinishReason::Cancelled`]: super::answer::FinishReason::Cancelled
    pub fn cancel(&self, which: Which) -> Cancelled {
        let cancelled = lock(&self.shared.inbox).cancel(which);
        self.shared.wake.notify_one();
        cancelled
    }

    /// The watches that stand, in the order in which they were given.
    pub fn watches(&self) -> Vec<Watch> {
        lock(&self.shared.inbox).watches.list()
    }

    /// Changes the system prompt; it takes effect at the next reset. One that leaves no room for the rest is refused with the numbers.
    pub fn set_system_prompt(&self, text: String) -> Result<(), EngineError> {
        if let Some(loaded) = &*lock(&self.loaded) {
            loaded.prompt.check(&text)?;
        }
        lock(&self.shared.inbox).system_prompt = Some(text);
        Ok(())
    }

    /// Changes a parameter that can be set while the engine runs; it holds from the next frame or instruction on.
    pub fn set_parameter(&self, name: &'static str, value: Value) {
        lock(&self.shared.inbox).settings.push((name, value));
    }

    /// Cuts a running answer off and forgets everything but the prefix; returns when that is done.
    pub fn reset(&self) -> Result<(), EngineError> {
        let (done, wait) = mpsc::channel();
        {
            let mut inbox = lock(&self.shared.inbox);
            if !inbox.has_thread() {
                return Err(self.why_stopped_in(inbox.lifecycle.state()));
            }
            inbox.resets.push(done);
            self.shared.wake.notify_one();
        }
        match wait.recv() {
            Ok(outcome) => outcome.map_err(EngineError::Reset),
            Err(_) => Err(self.why_stopped()),
        }
    }

    /// Whether there is a thread, whatever it does.
    pub fn is_running(&self) -> bool {
        lock(&self.shared.inbox).has_thread()
    }

    /// What has ended the thread without being asked to, if something has.
    pub fn failure(&self) -> Option<EngineError> {
        let stats = lock(&self.shared.stats);
        let failed = !stats.failure.is_empty();
        failed.then(|| EngineError::Failed(stats.failure.clone()))
    }

    /// Why there is no thread.
    pub fn why_stopped(&self) -> EngineError {
        let state = self.state();
        self.why_stopped_in(state)
    }

    fn why_stopped_in(&self, state: State) -> EngineError {
        match (lock(&self.shared.stats).failure.as_str(), state) {
            ("", State::Finalized) => EngineError::Stopped,
            ("", state) => EngineError::Idle(state),
            (failure, _) => EngineError::Failed(failure.to_string()),
        }
    }

    pub fn stats(&self) -> StreamStats {
        let mut inbox = lock(&self.shared.inbox);
        let mut stats = lock(&self.shared.stats).clone();
        inbox.forget_old_frames();
        stats.state = inbox.lifecycle.state();
        let slots = inbox.cameras.slots().iter().enumerate();
        for (camera, (index, slot)) in stats.cameras.iter_mut().zip(slots) {
            camera.silence = slot.heard_at.map(|at| at.elapsed());
            camera.lost = slot.losses.share();
            camera.frames_per_second = inbox.frames_per_second(Some(index));
        }
        stats.watches = inbox.watches.list().iter().map(WatchStats::of).collect();
        stats.instructions_waiting = inbox.instructions.len();
        stats.frames_per_second = inbox.frames_per_second(None);
        stats
    }
}
