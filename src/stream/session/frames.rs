//! Frames: whether one is used, and from its pixels into the memory.

use std::time::Instant;

use super::last_frames::Frame;
use super::Session;
use crate::cache::{CacheError, PolicyKind};
use crate::model::preprocess::picture::Picture;
use crate::model::vision::View;
use crate::model::ModelError;
use crate::stream::frame::{CameraImage, FrameError};
use crate::stream::gate::{Arrival, Skip};

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

impl Session {
    /// Takes a frame into the memory: vision tower, connector, one chunk through the decoder.
    ///
    /// One that fails has arrived, and nothing more: the memory is what it was.
    pub fn push_frame(&mut self, image: &CameraImage) -> Result<Taken, PushError> {
        let started = Instant::now();
        image.check()?;
        self.place_in_time(image.stamp_ns)?;
        if !self.state.stream.gate.due(image.stamp_ns) {
            return Ok(Taken::Skipped(Skip::Rate));
        }
        let picture = image.picture()?;
        Ok(self.attempt(|session| session.take_frame(image, &picture, started))?)
    }

    fn take_frame(
        &mut self,
        image: &CameraImage,
        picture: &dyn Picture,
        started: Instant,
    ) -> Result<Taken, ModelError> {
        let stream = &mut self.state.stream;
        stream.gate.spend(image.stamp_ns);
        let vision = &self.model.vision;
        let prepared = vision.prepare(picture, View::Frame);
        if stream.gate.unchanged(&prepared) {
            return Ok(Taken::Skipped(Skip::Unchanged));
        }
        let pixels = vision.pixels(&prepared)?;
        self.times.conversion = started.elapsed();

        let started = Instant::now();
        let features = vision.encode(&pixels)?;
        let tokens = features.rows.dim(0)?;
        self.times.vision = started.elapsed();

        let started = Instant::now();
        let elapsed_ns = stream.memory.since_epoch(image.stamp_ns);
        let id = stream.memory.next_id();
        if self.config.cache.policy == PolicyKind::LastFrames {
            let frame = Frame {
                id,
                elapsed_ns,
                layout: prepared.layout,
                features,
            };
            stream.last.push(frame, self.config.cache.last_frames);
        } else {
            let markup = vision.markup(&prepared.layout);
            let text = stream.grammar.frame(&markup, elapsed_ns);
            self.append_frame(&text, id, features)?;
        }
        self.times.prefill = started.elapsed();

        let stream = &mut self.state.stream;
        stream.gate.took(prepared);
        stream.memory.remember(image, tokens);
        self.follow_cache();
        Ok(Taken::Used)
    }

    /// Refuses a frame that was overtaken; starts a new epoch where the stamps have jumped.
    fn place_in_time(&mut self, stamp_ns: i64) -> Result<(), PushError> {
        match self.attempt(|session| session.arrive(stamp_ns))? {
            Arrival::InOrder | Arrival::Jump { .. } => Ok(()),
            Arrival::OutOfOrder { newest_ns } => Err(FrameError::OutOfOrder {
                stamp_ns,
                newest_ns,
            }
            .into()),
        }
    }

    fn arrive(&mut self, stamp_ns: i64) -> Result<Arrival, ModelError> {
        let arrival = self.state.stream.gate.arrive(stamp_ns);
        if let Arrival::Jump { newest_ns } = arrival {
            let reset = self.config.gate.reset_on_time_jump;
            tracing::warn!(
                from_s = newest_ns as f64 * 1e-9,
                to_s = stamp_ns as f64 * 1e-9,
                memory = if reset { "reset" } else { "kept" },
                "time of the images jumped"
            );
            if reset {
                self.reset()?;
                self.state.stream.gate.arrive(stamp_ns);
            }
            self.state.stream.memory.end_epoch();
            self.time_jumps += 1;
        }
        Ok(arrival)
    }
}
