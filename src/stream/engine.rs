//! The engine thread, which owns model and device, and the inbox in front of it.
//!
//! Frames wait in a slot of one: a newer frame replaces the one that waits. Instructions wait in a bounded queue. The thread
//! takes what came first, but never two instructions in a row while a frame waits, so that neither starves the other.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::answer::{Answer, AnswerDelta, FinishReason, Instruction};
use super::frame::{CameraImage, FrameError};
use super::session::{PushError, Session, SessionConfig};
use super::stats::StreamStats;
use crate::model::ModelError;

/// Frames of the last this long make up `frames_per_second`.
const RATE_WINDOW: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("the engine thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
    #[error("the engine has stopped")]
    Stopped,
}

/// Receives what the engine has to say, on the engine's thread; must not block.
pub trait EngineEvents: Send {
    fn delta(&mut self, delta: AnswerDelta);
    fn answer(&mut self, answer: Answer);
}

/// A running engine. Methods never wait for the model unless they say so.
pub struct Engine {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    queue_size: usize,
}

struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
    /// Set to cut a running answer off.
    cancel: AtomicBool,
    stats: Mutex<StreamStats>,
}

#[derive(Default)]
struct Inbox {
    /// The newest frame, and since when a frame has been waiting.
    frame: Option<(Instant, CameraImage)>,
    instructions: VecDeque<Instruction>,
    /// Refusals to be sent from the engine's thread, so that all answers come from one place.
    refused: VecDeque<(Instruction, String)>,
    resets: Vec<Sender<Result<(), ModelError>>>,
    stop: bool,
    /// The last thing taken was an instruction.
    answered_last: bool,
    /// Numbers the instructions that came without an id.
    assigned: u64,
    /// When the frames of the last [`RATE_WINDOW`] were used.
    used_at: VecDeque<Instant>,
}

impl Inbox {
    fn forget_old_frames(&mut self) {
        let old = |at: &Instant| at.elapsed() > RATE_WINDOW;
        while self.used_at.front().is_some_and(old) {
            self.used_at.pop_front();
        }
    }
}

enum Work {
    Stop,
    Reset(Vec<Sender<Result<(), ModelError>>>),
    Refuse(Instruction, String),
    Ask(Instruction),
    Frame(CameraImage),
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
        let queue_size = config.queue_size;
        let session = Session::new(config)?;
        let shared = Arc::new(Shared {
            inbox: Mutex::new(Inbox::default()),
            wake: Condvar::new(),
            cancel: AtomicBool::new(false),
            stats: Mutex::new(StreamStats::default()),
        });
        let mut worker = Worker {
            session,
            events,
            shared: shared.clone(),
        };
        worker.publish_session();
        let thread = std::thread::Builder::new()
            .name("engine".to_string())
            .spawn(move || worker.run())?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
            queue_size,
        })
    }

    /// Puts a frame into the waiting slot. A frame that is refused here leaves the one that waits alone.
    pub fn offer_frame(&self, image: CameraImage) -> Result<(), FrameError> {
        let checked = image.check();
        let mut inbox = lock(&self.shared.inbox);
        let mut stats = lock(&self.shared.stats);
        stats.frames_received += 1;
        if let Err(error) = checked {
            stats.frames_rejected += 1;
            return Err(error);
        }
        // A newer frame takes the waiting one's place in the line, not its turn behind every instruction since.
        let since = match inbox.frame.take() {
            Some((since, _)) => {
                stats.frames_superseded += 1;
                since
            }
            None => Instant::now(),
        };
        inbox.frame = Some((since, image));
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Queues an instruction. Whatever happens to it ends in exactly one [`EngineEvents::answer`].
    pub fn instruct(&self, mut instruction: Instruction) {
        let mut inbox = lock(&self.shared.inbox);
        lock(&self.shared.stats).instructions_received += 1;
        if instruction.id.is_empty() {
            inbox.assigned += 1;
            instruction.id = format!("instruction-{}", inbox.assigned);
        }
        if inbox.instructions.len() >= self.queue_size {
            let reason = format!(
                "instruction queue is full: {} wait, expected at most {}",
                inbox.instructions.len(),
                self.queue_size
            );
            inbox.refused.push_back((instruction, reason));
        } else {
            inbox.instructions.push_back(instruction);
        }
        self.shared.wake.notify_one();
    }

    /// Cuts a running answer off and forgets everything but the prefix; returns when that is done.
    pub fn reset(&self) -> Result<(), EngineError> {
        let (done, wait) = mpsc::channel();
        {
            let mut inbox = lock(&self.shared.inbox);
            if inbox.stop {
                return Err(EngineError::Stopped);
            }
            inbox.resets.push(done);
            self.shared.cancel.store(true, Ordering::Release);
            self.shared.wake.notify_one();
        }
        match wait.recv() {
            Ok(outcome) => Ok(outcome?),
            Err(_) => Err(EngineError::Stopped),
        }
    }

    /// False once the thread has ended, whether asked to or by a fault.
    pub fn is_running(&self) -> bool {
        !lock(&self.shared.inbox).stop
    }

    pub fn stats(&self) -> StreamStats {
        let mut inbox = lock(&self.shared.inbox);
        let mut stats = lock(&self.shared.stats).clone();
        inbox.forget_old_frames();
        stats.frames_per_second = inbox.used_at.len() as f32 / RATE_WINDOW.as_secs_f32();
        stats
    }

    /// Cuts a running answer off, answers what waits as cancelled and ends the thread; false if it did not end in time.
    pub fn shutdown(&self, timeout: Duration) -> bool {
        {
            let mut inbox = lock(&self.shared.inbox);
            inbox.stop = true;
            self.shared.cancel.store(true, Ordering::Release);
            self.shared.wake.notify_one();
        }
        let Some(thread) = lock(&self.thread).take() else {
            return true;
        };
        let deadline = Instant::now() + timeout;
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        thread.join().is_ok()
    }
}

struct Worker {
    session: Session,
    events: Box<dyn EngineEvents>,
    shared: Arc<Shared>,
}

/// However the thread ends, nobody waits for it any longer.
impl Drop for Worker {
    fn drop(&mut self) {
        let mut inbox = lock(&self.shared.inbox);
        inbox.stop = true;
        inbox.resets.clear();
    }
}

impl Worker {
    fn run(&mut self) {
        loop {
            match self.next_work() {
                Work::Stop => {
                    self.cancel_waiting("the node is shutting down");
                    return;
                }
                Work::Reset(waiting) => {
                    self.cancel_waiting("the memory was reset");
                    for done in waiting {
                        let outcome = self.session.reset();
                        self.publish_session();
                        // The caller may have given up waiting.
                        let _ = done.send(outcome);
                    }
                }
                Work::Refuse(instruction, reason) => {
                    self.refuse(&instruction, FinishReason::Error, reason);
                }
                Work::Ask(instruction) => self.ask(&instruction),
                Work::Frame(image) => self.push(&image),
            }
            self.publish_session();
        }
    }

    /// Waits for something to do.
    fn next_work(&self) -> Work {
        let mut inbox = lock(&self.shared.inbox);
        loop {
            if inbox.stop {
                return Work::Stop;
            }
            if !inbox.resets.is_empty() {
                self.shared.cancel.store(false, Ordering::Release);
                return Work::Reset(std::mem::take(&mut inbox.resets));
            }
            if let Some((instruction, reason)) = inbox.refused.pop_front() {
                return Work::Refuse(instruction, reason);
            }
            let frame_first = match (&inbox.frame, inbox.instructions.front()) {
                (Some((since, _)), Some(instruction)) => {
                    inbox.answered_last || *since <= instruction.received
                }
                (frame, _) => frame.is_some(),
            };
            if frame_first {
                if let Some((_, image)) = inbox.frame.take() {
                    inbox.answered_last = false;
                    return Work::Frame(image);
                }
            }
            if let Some(instruction) = inbox.instructions.pop_front() {
                inbox.answered_last = true;
                return Work::Ask(instruction);
            }
            inbox = self
                .shared
                .wake
                .wait(inbox)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn push(&mut self, image: &CameraImage) {
        match self.session.push_frame(image) {
            Ok(()) => {
                let mut inbox = lock(&self.shared.inbox);
                inbox.used_at.push_back(Instant::now());
                inbox.forget_old_frames();
                lock(&self.shared.stats).frames_used += 1;
            }
            Err(error) => {
                lock(&self.shared.stats).frames_rejected += 1;
                match error {
                    PushError::Frame(error) => tracing::warn!(%error, "image rejected"),
                    PushError::Model(error) => tracing::error!(%error, "frame not taken"),
                }
            }
        }
    }

    fn ask(&mut self, instruction: &Instruction) {
        let Self {
            session,
            events,
            shared,
        } = self;
        let answer = session.ask(
            instruction,
            &|| shared.cancel.load(Ordering::Acquire),
            &mut |delta| events.delta(delta),
        );
        self.deliver(answer);
    }

    fn refuse(&mut self, instruction: &Instruction, finish: FinishReason, reason: String) {
        let Self {
            session, events, ..
        } = self;
        let answer = session.unanswered(instruction, finish, reason, &mut |delta| {
            events.delta(delta);
        });
        self.deliver(answer);
    }

    fn cancel_waiting(&mut self, reason: &str) {
        let (waiting, refused) = {
            let mut inbox = lock(&self.shared.inbox);
            (
                std::mem::take(&mut inbox.instructions),
                std::mem::take(&mut inbox.refused),
            )
        };
        for (instruction, reason) in refused {
            self.refuse(&instruction, FinishReason::Error, reason);
        }
        for instruction in waiting {
            self.refuse(&instruction, FinishReason::Cancelled, reason.to_string());
        }
    }

    fn deliver(&mut self, answer: Answer) {
        {
            let mut stats = lock(&self.shared.stats);
            match answer.finish {
                FinishReason::Stop | FinishReason::Length => stats.instructions_answered += 1,
                FinishReason::Cancelled | FinishReason::Error => stats.instructions_failed += 1,
            }
        }
        self.events.answer(answer);
    }

    fn publish_session(&mut self) {
        let mut stats = lock(&self.shared.stats);
        stats.policy = self.session.config().cache.policy.name();
        stats.cache = self.session.usage();
        stats.times = self.session.times();
        stats.oldest_frame_ns = self.session.oldest_frame_ns();
        if let Some(newest) = self.session.newest_frame() {
            stats.frame_id.clone_from(&newest.frame_id);
        }
    }
}
