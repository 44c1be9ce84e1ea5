//! All that a stream leaves behind, as plain data, and marks to go back to.

use std::sync::Arc;

use super::beginning::Beginning;
use super::groups::Waiting;
use super::last_frames::LastFrames;
use super::SessionConfig;
use crate::cache::{BoundedCache, CacheError};
use crate::model::chooser::Draws;
use crate::stream::archive::{Archive, Frame};
use crate::stream::clock::StreamClock;
use crate::stream::evidence::Glimpses;
use crate::stream::gate::FrameGate;
use crate::stream::grammar::Grammar;
use crate::stream::memory::FrameMemory;

/// The state of a session: with the same model and parameters, what comes next depends on it and on nothing else.
///
/// Marks are set one within the other. What one costs is what changes under it, and a copy of [`StreamState`].
#[derive(Debug)]
pub struct SessionState {
    /// Keys and values, the standing instruction's keys among them.
    pub cache: BoundedCache,
    pub stream: StreamState,
    /// From the outermost to the innermost; the cache has as many.
    marks: Vec<StreamState>,
}

/// Where the stream has come to, but for the cache.
#[derive(Debug, Clone)]
pub struct StreamState {
    /// What it began with.
    pub beginning: Arc<Beginning>,
    pub grammar: Grammar,
    pub memory: FrameMemory,
    /// By their indices.
    pub cameras: Vec<CameraState>,
    /// The random state of the answers.
    pub draws: Draws,
    /// The last id, if any text has come.
    pub last_id: Option<u32>,
    /// The frames that policy last_frames feeds again.
    pub last: LastFrames,
    /// What has been seen, beyond what the cache keeps of it.
    pub archive: Archive,
    /// What is known of the frames that can be evidence of an answer.
    pub glimpses: Glimpses,
    /// Width and height of the newest frame's picture, pixels, if there is one.
    pub picture: Option<(usize, usize)>,
}

/// What is each camera's own.
#[derive(Debug, Clone)]
pub struct CameraState {
    /// Of the frames that come in lock-step.
    pub clock: StreamClock,
    /// The stamp that the clock jumped from last, if the epoch of that jump has not begun yet.
    pub jumped: Option<i64>,
    pub gate: FrameGate,
    /// The newest frame, where there is an archive.
    pub newest: Option<Arc<Frame>>,
    /// The newest frame, where it is to be taken together with the next one.
    pub waiting: Option<Waiting>,
}

impl CameraState {
    fn new(camera: usize, config: &SessionConfig) -> Self {
        Self {
            clock: StreamClock::new(config.gate.time_jump_threshold),
            jumped: None,
            gate: FrameGate::new(config.cameras.gate(camera, config.gate)),
            newest: None,
            waiting: None,
        }
    }
}

impl StreamState {
    /// A stream of which nothing has been fed.
    pub fn new(beginning: Arc<Beginning>, config: &SessionConfig) -> Self {
        Self {
            grammar: beginning.grammar.clone(),
            beginning,
            memory: FrameMemory::default(),
            cameras: (0..config.cameras.count())
                .map(|camera| CameraState::new(camera, config))
                .collect(),
            draws: Draws::new(config.seed),
            last_id: None,
            last: LastFrames::default(),
            archive: Archive::new(config.archive.clone()),
            glimpses: Glimpses::default(),
            picture: None,
        }
    }
}

impl SessionState {
    pub fn new(cache: BoundedCache, stream: StreamState) -> Self {
        Self {
            cache,
            stream,
            marks: Vec::new(),
        }
    }

    /// Sets a mark, within those that are set.
    pub fn mark(&mut self) {
        self.cache.mark();
        self.marks.push(self.stream.clone());
    }

    /// Goes back to the innermost mark, which stays set. An error is one of the device, as [`BoundedCache::put_back`] says.
    pub fn put_back(&mut self) -> Result<(), CacheError> {
        if let Some(mark) = self.marks.last() {
            self.stream.clone_from(mark);
        }
        self.cache.put_back()
    }

    /// Forgets the innermost mark: what has happened since then stays, unless an outer one is put back.
    pub fn let_go(&mut self) {
        self.cache.let_go();
        self.marks.pop();
    }
}
