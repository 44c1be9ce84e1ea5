//! From one state of the life cycle to another: the model loaded and let go.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::ahead;
use super::cameras::Cameras;
use super::inbox::Inbox;
use super::worker::{Ending, Worker};
use super::{lock, Basis, Complaints, Engine, EngineError, EngineEvents, Shared, Transition};
use crate::model::memory::give_back;
use crate::model::vision::frames::FrameEncoder;
use crate::stream::lifecycle::{Asked, NoSuchTransition, Outcome, State};
use crate::stream::session::{PromptCheck, Session, SessionConfig};
use crate::stream::stats::StreamStats;

/// Time between two looks at a thread that is to end.
const LOOK: Duration = Duration::from_millis(2);

/// What there is from configure to cleanup.
pub struct Loaded {
    thread: JoinHandle<Session>,
    /// The one that takes frames ahead of their turn.
    ahead: Option<JoinHandle<()>>,
    pub prompt: PromptCheck,
}

/// How a node stands now.
#[derive(Debug, Clone)]
pub struct Change {
    /// What has led there; none: the engine has ended by a fault.
    pub transition: Option<&'static Transition>,
    pub state: State,
    /// What the model runs on; empty: none is loaded.
    pub hardware: String,
    /// Why the last transition failed, or the engine has ended; empty: it succeeded.
    pub error: String,
}

/// Why a transition was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Refused(#[from] NoSuchTransition),
    #[error("{0}")]
    Failed(String),
}

impl Engine {
    /// An unconfigured one, for the cameras of these parameters. `changes` is told of every change of the state, while others wait: it must not
    /// block.
    pub fn new(
        config: &SessionConfig,
        events: Box<dyn EngineEvents>,
        changes: Box<dyn Fn(Change) + Send + Sync>,
    ) -> Self {
        let count = config.cameras.count();
        let cameras = Cameras::new(count, config.gate.time_jump_threshold);
        let labels = (0..count).map(|camera| config.cameras.label(camera));
        Self {
            shared: Arc::new(Shared {
                inbox: Mutex::new(Inbox::new(cameras)),
                wake: Condvar::new(),
                frames: Condvar::new(),
                ready: Condvar::new(),
                gates: Mutex::default(),
                stats: Mutex::new(StreamStats::of(labels)),
                complaints: Mutex::new(Complaints::default()),
                silent: Mutex::new(vec![String::new(); count]),
                started: Instant::now(),
                events: Mutex::new(events),
                changes,
            }),
            loaded: Mutex::new(None),
        }
    }

    /// Loads the model (blocking) and starts the thread: an active engine, whose changes nobody is told.
    pub fn spawn(
        config: SessionConfig,
        events: Box<dyn EngineEvents>,
    ) -> Result<Self, EngineError> {
        Self::with_session(Session::new(config)?, events)
    }

    /// The same on a session that exists.
    pub fn with_session(
        session: Session,
        events: Box<dyn EngineEvents>,
    ) -> Result<Self, EngineError> {
        let engine = Self::new(session.config(), events, Box::new(|_| {}));
        engine.start(session)?;
        let mut inbox = lock(&engine.shared.inbox);
        for label in ["configure", "activate"] {
            // Both are what a new engine has.
            let _ = inbox.lifecycle.begin(Asked::Label(label));
            inbox.lifecycle.end(Outcome::Success);
        }
        drop(inbox);
        Ok(engine)
    }

    pub fn state(&self) -> State {
        lock(&self.shared.inbox).lifecycle.state()
    }

    /// Carries a transition out, and waits until that is done: as long as a model takes to load for configure, which `load` does; a step of the
    /// model for cleanup and shutdown. The state that it led to.
    pub fn change(
        &self,
        asked: Asked<'_>,
        load: impl FnOnce() -> Result<Session, String>,
    ) -> Result<State, ChangeError> {
        let begun = {
            let mut inbox = lock(&self.shared.inbox);
            let begun = inbox.lifecycle.begin(asked)?;
            if begun.to == State::Configuring {
                inbox.clear();
            }
            self.shared.tell(Some(begun), &inbox);
            begun
        };
        let outcome = match begun.to {
            State::Configuring => whole(load)
                .and_then(|session| self.start(session).map_err(|error| error.to_string())),
            State::CleaningUp | State::ShuttingDown => {
                self.unload(None);
                Ok(())
            }
            // Whoever takes something in looks at the state.
            _ => Ok(()),
        };
        let (how, error) = match outcome {
            Ok(()) => (Outcome::Success, String::new()),
            Err(error) => (Outcome::Failure, error),
        };
        let mut inbox = lock(&self.shared.inbox);
        let Some(ended) = inbox.lifecycle.end(how) else {
            drop(inbox);
            self.unload(None);
            return Err(ChangeError::Failed("the node is ending".to_string()));
        };
        lock(&self.shared.stats).change_error.clone_from(&error);
        self.shared.tell(Some(ended), &inbox);
        self.shared.refuse_all(&mut inbox);
        self.shared.wake.notify_one();
        match how {
            Outcome::Success => Ok(ended.to),
            Outcome::Failure => Err(ChangeError::Failed(error)),
        }
    }

    /// Deactivates the engine, or activates it again, unless it is what it is to be.
    ///
    /// While paused, frames are skipped, watches not asked and instructions refused; what waits already is still done.
    pub fn pause(&self, paused: bool) -> Result<State, ChangeError> {
        let (label, there) = match paused {
            true => ("deactivate", State::Inactive),
            false => ("activate", State::Active),
        };
        match self.change(Asked::Label(label), || Err("nothing to load".to_string())) {
            Err(ChangeError::Refused(_)) if self.state() == there => Ok(there),
            changed => changed,
        }
    }

    /// Starts the threads of a session.
    fn start(&self, session: Session) -> Result<(), EngineError> {
        let (found, expected) = (
            session.config().cameras.count(),
            lock(&self.shared.silent).len(),
        );
        if found != expected {
            return Err(EngineError::Cameras { found, expected });
        }
        let before = {
            let mut inbox = lock(&self.shared.inbox);
            inbox.begin(session.config());
            let mut stats = lock(&self.shared.stats);
            stats.hardware = session.hardware();
            stats.detects = session.detection_format().is_some();
            (stats.frames_received, stats.frames_rejected)
        };
        let (pool, prompt) = (session.pool(), session.prompt_check());
        let (encoder, thumbnails) = (session.encoder(), session.thumbnails());
        let mut worker = Worker {
            session,
            shared: self.shared.clone(),
            before,
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
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name("frames".to_string());
            thread.spawn(move || ahead::run(&encoder, &thumbnails, &shared))
        };
        *lock(&self.loaded) = Some(Loaded {
            thread,
            ahead: encoder.map(run_ahead).transpose()?,
            prompt,
        });
        Ok(())
    }

    /// Cuts a running answer off, answers what waits as cancelled, ends the threads and lets go of model and memory; false if that was not done
    /// before the deadline, or a thread had a fault.
    fn unload(&self, deadline: Option<Instant>) -> bool {
        let Some(ended) = self.stop(deadline) else {
            return false;
        };
        let Some(ended) = ended else { return true };
        let whole = ended.is_ok();
        drop(ended);
        lock(&self.shared.stats).forget_session();
        give_back();
        whole
    }

    /// Ends the threads, for whoever wants the session; none if they did not end in time, or by a fault.
    pub fn into_session(self, timeout: Duration) -> Option<Session> {
        self.stop(Some(Instant::now() + timeout))??.ok()
    }

    /// Ends the threads; none if they did not end before the deadline. What the engine's came to, if there were any.
    fn stop(&self, deadline: Option<Instant>) -> Option<Option<std::thread::Result<Session>>> {
        {
            let mut inbox = lock(&self.shared.inbox);
            inbox.stop = true;
            self.shared.wake.notify_one();
            self.shared.frames.notify_one();
        }
        let Some(loaded) = lock(&self.loaded).take() else {
            return Some(None);
        };
        let Loaded { thread, ahead, .. } = loaded;
        while !(thread.is_finished() && ahead.as_ref().is_none_or(JoinHandle::is_finished)) {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return None;
            }
            std::thread::sleep(LOOK);
        }
        let of_frames = ahead.map_or(Ok(()), JoinHandle::join);
        let ended = thread.join();
        lock(&self.shared.inbox).ahead = None;
        Some(Some(of_frames.and(ended)))
    }

    /// Ends whatever is done; false if it did not end in time.
    pub fn shutdown(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let begun = {
            let mut inbox = lock(&self.shared.inbox);
            let begun = inbox.lifecycle.begin(Asked::Label("shutdown")).ok();
            match begun {
                Some(begun) => self.shared.tell(Some(begun), &inbox),
                // A transition that is under way finds this when it ends.
                None => inbox.lifecycle.end_work(),
            }
            begun
        };
        let whole = self.unload(Some(deadline));
        if begun.is_some() {
            let mut inbox = lock(&self.shared.inbox);
            let ended = inbox.lifecycle.end(Outcome::Success);
            self.shared.tell(ended, &inbox);
        }
        whole
    }
}

/// What is loaded, whatever happens to the one that loads it.
fn whole(load: impl FnOnce() -> Result<Session, String>) -> Result<Session, String> {
    let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(load));
    loaded.unwrap_or_else(|_| Err("loading the model has failed by a fault of its own".to_string()))
}

impl Shared {
    /// The thread ends by itself, and with it all that the node does.
    pub fn end_work(&self, failure: &str) {
        let mut inbox = lock(&self.inbox);
        inbox.stop = true;
        inbox.lifecycle.end_work();
        lock(&self.stats).failure = failure.to_string();
        self.tell(None, &inbox);
    }

    /// Answers the refused where there is no thread that does.
    pub fn refuse_all(&self, inbox: &mut Inbox) {
        while !inbox.has_thread() {
            let Some(refusal) = inbox.refused.pop_front() else {
                break;
            };
            self.refuse(&refusal, &Basis::default());
        }
    }

    /// Tells how the node stands behind a transition; none: it has failed for good.
    fn tell(&self, transition: Option<&'static Transition>, inbox: &Inbox) {
        let (hardware, error) = {
            let stats = lock(&self.stats);
            let error = match stats.failure.as_str() {
                "" => &stats.change_error,
                _ => &stats.failure,
            };
            (stats.hardware.clone(), error.clone())
        };
        (self.changes)(Change {
            transition,
            state: inbox.lifecycle.state(),
            hardware,
            error,
        });
    }
}
