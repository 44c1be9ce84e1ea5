//! The engine thread, which owns model and device, and the inbox in front of it.
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
//! - `worker`: the thread
//! - `ahead`: the thread beside it, on a GPU

mod ahead;
mod cameras;
mod endings;
mod inbox;
mod watches;
mod worker;

use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cameras::Cameras;
use inbox::Inbox;
use worker::{Ending, Worker};

use super::answer::{Answer, AnswerDelta, Instruction};
use super::complaints::Complaints;
use super::frame::CameraImage;
use super::gate::FrameGate;
use super::session::{PromptCheck, PushError, Session, SessionConfig};
use super::stats::{StreamStats, WatchStats};
use crate::cache::parameter::Value;
use crate::model::vision::frames::FrameEncoder;
use crate::model::ModelError;

pub use endings::{Cancelled, Which};
pub use inbox::{MAX_ID_BYTES, MAX_INSTRUCTION_BYTES};
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

/// A running engine. Methods never wait for the model unless they say so.
pub struct Engine {
    shared: Arc<Shared>,
    /// None once it has been waited for.
    thread: Mutex<Option<JoinHandle<Session>>>,
    /// The one that takes frames ahead of their turn.
    ahead: Mutex<Option<JoinHandle<()>>>,
    queue_size: usize,
    prompt: PromptCheck,
    /// What the model runs on, as in "cpu, 2 threads".
    hardware: String,
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
}

impl Shared {
    /// Counts a refused frame and says so in the log, though not of each of many.
    fn reject(&self, camera: usize, error: &PushError) {
        {
            let mut stats = lock(&self.stats);
            stats.reject(camera, error);
            if error.reason() == PushError::FULL {
                // What stays so until a reset is said once.
                if !std::mem::replace(&mut stats.memory_full, true) {
                    tracing::warn!("frame not taken: {error}; nothing more is taken until a reset, and a larger budget or another policy goes on longer");
                }
                return;
            }
        }
        let due = lock(&self.complaints).due(error.reason(), Instant::now());
        match (due, error) {
            (None, _) => {}
            (Some(more), PushError::Frame(error)) => tracing::warn!("image refused: {error}{more}"),
            (Some(more), PushError::Model(error)) => {
                tracing::error!("frame not taken: {error}{more}")
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked while holding one of these left plain counters and queues behind, which stay usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Loads the model (blocking) and starts the thread.
    pub fn spawn(
        config: SessionConfig,
        events: Box<dyn EngineEvents>,
    ) -> Result<Self, EngineError> {
        Self::with_session(Session::new(config)?, events)
    }

    /// Starts the thread on a session that exists.
    pub fn with_session(
        session: Session,
        events: Box<dyn EngineEvents>,
    ) -> Result<Self, EngineError> {
        let config = session.config();
        let queue_size = config.queue_size;
        let count = config.cameras.count();
        let cameras = Cameras::new(count, config.gate.time_jump_threshold);
        let labels = (0..count).map(|camera| config.cameras.label(camera));
        let shared = Arc::new(Shared {
            inbox: Mutex::new(Inbox::new(cameras, config.watches_limit)),
            wake: Condvar::new(),
            frames: Condvar::new(),
            ready: Condvar::new(),
            gates: Mutex::default(),
            stats: Mutex::new(StreamStats::of(labels)),
            complaints: Mutex::new(Complaints::default()),
            silent: Mutex::new(vec![String::new(); count]),
            started: Instant::now(),
        });
        let pool = session.pool();
        let hardware = session.hardware();
        let prompt = session.prompt_check();
        let encoder = session.encoder();
        let thumbnails = session.thumbnails();
        let mut worker = Worker {
            session,
            events,
            shared: shared.clone(),
            before: Default::default(),
        };
        worker.publish_session();
        let thread = std::thread::Builder::new()
            .name("engine".to_string())
            .spawn(move || {
                let _ending = Ending(worker.shared.clone());
                pool.install(|| worker.run());
                worker.session
            })?;
        let run_ahead = |encoder: FrameEncoder| {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name("frames".to_string());
            thread.spawn(move || ahead::run(&encoder, &thumbnails, &shared))
        };
        let ahead = encoder.map(run_ahead).transpose()?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
            ahead: Mutex::new(ahead),
            queue_size,
            prompt,
            hardware,
        })
    }

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
        match problem.or_else(|| inbox.objection(&instruction, self.queue_size)) {
            Some(reason) => inbox.refuse(instruction, reason),
            None => inbox.queue(instruction, self.queue_size),
        }
        self.shared.wake.notify_one();
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

    /// While paused, frames are skipped, watches not asked and instructions refused; what waits already is still done.
    pub fn pause(&self, paused: bool) {
        lock(&self.shared.inbox).paused = paused;
        self.shared.wake.notify_one();
    }

    /// Changes the system prompt; it takes effect at the next reset. One that leaves no room for the rest is refused with the numbers.
    pub fn set_system_prompt(&self, text: String) -> Result<(), EngineError> {
        self.prompt.check(&text)?;
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
            if inbox.stop {
                return Err(self.why_stopped());
            }
            inbox.resets.push(done);
            self.shared.wake.notify_one();
        }
        match wait.recv() {
            Ok(outcome) => outcome.map_err(EngineError::Reset),
            Err(_) => Err(self.why_stopped()),
        }
    }

    /// False once the thread has ended, whether asked to or by a fault.
    pub fn is_running(&self) -> bool {
        !lock(&self.shared.inbox).stop
    }

    /// Why the thread has ended.
    pub fn why_stopped(&self) -> EngineError {
        match lock(&self.shared.stats).failure.as_str() {
            "" => EngineError::Stopped,
            failure => EngineError::Failed(failure.to_string()),
        }
    }

    /// What the model runs on, as in "cpu, 2 threads".
    pub fn hardware(&self) -> &str {
        &self.hardware
    }

    pub fn stats(&self) -> StreamStats {
        let mut inbox = lock(&self.shared.inbox);
        let mut stats = lock(&self.shared.stats).clone();
        inbox.forget_old_frames();
        stats.paused = inbox.paused;
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

    /// Cuts a running answer off, answers what waits as cancelled and ends the thread; false if it did not end in time.
    pub fn shutdown(&self, timeout: Duration) -> bool {
        let Some(ended) = self.stop(timeout) else {
            return false;
        };
        ended.is_none_or(|session| session.is_ok())
    }

    /// The same, for whoever wants the session back; none if it did not end in time, or by a fault.
    pub fn into_session(self, timeout: Duration) -> Option<Session> {
        self.stop(timeout)??.ok()
    }

    /// Ends the threads; none if they did not end in time. What the engine's came to, unless it has been waited for before.
    fn stop(&self, timeout: Duration) -> Option<Option<std::thread::Result<Session>>> {
        {
            let mut inbox = lock(&self.shared.inbox);
            inbox.stop = true;
            self.shared.wake.notify_one();
            self.shared.frames.notify_one();
        }
        let (thread, ahead) = (lock(&self.thread).take(), lock(&self.ahead).take());
        let deadline = Instant::now() + timeout;
        let finished = |thread: &JoinHandle<Session>| thread.is_finished();
        while !(thread.as_ref().is_none_or(finished)
            && ahead.as_ref().is_none_or(JoinHandle::is_finished))
        {
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let of_frames = ahead.map_or(Ok(()), JoinHandle::join);
        let ended = thread.map(JoinHandle::join);
        Some(match of_frames {
            Ok(()) => ended,
            Err(fault) => Some(Err(fault)),
        })
    }
}
