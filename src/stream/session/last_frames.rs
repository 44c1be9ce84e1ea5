//! The session of policy last_frames: nothing is remembered but the last frames, which are fed again for every question.
//!
//! (SimpleStream, arXiv 2604.02317.) The vision tower's features are kept, since encoding the same image gives the same again.

use std::collections::VecDeque;

use super::{prefix_ids, Session};
use crate::cache::FrameId;
use crate::model::vision::{ImageFeatures, Layout};
use crate::model::ModelError;

/// A frame that can be fed again.
#[derive(Debug, Clone)]
pub struct Frame {
    pub id: FrameId,
    /// Time since the epoch began.
    pub elapsed_ns: i64,
    pub layout: Layout,
    pub features: ImageFeatures,
}

/// The newest frames, oldest first.
#[derive(Debug, Default, Clone)]
pub struct LastFrames {
    frames: VecDeque<Frame>,
}

impl LastFrames {
    /// Takes the newest frame and lets go of those beyond `limit`.
    pub fn push(&mut self, frame: Frame, limit: usize) {
        self.frames.push_back(frame);
        while self.frames.len() > limit {
            self.frames.pop_front();
        }
    }
}

impl Session {
    /// Begins the stream anew with the prefix and the last frames.
    pub(super) fn feed_last_frames(&mut self) -> Result<(), ModelError> {
        let mut grammar = self.grammar.fresh();
        let prefix = prefix_ids(&self.model, &mut grammar, &self.config)?;
        self.cache.reset(prefix.len())?;
        self.feed_prefix(&prefix)?;
        for frame in self.last.clone().frames {
            let markup = self.model.vision.markup(&frame.layout);
            let text = grammar.frame(&markup, frame.elapsed_ns);
            self.append_frame(&text, frame.id, frame.features)?;
        }
        self.grammar = grammar;
        Ok(())
    }
}
