//! The session of policy last_frames: nothing is remembered but the last frames, which are fed again for every question.
//!
//! (SimpleStream, arXiv 2604.02317.) The vision tower's features are kept, since encoding the same image gives the same again.

use std::collections::VecDeque;

use candle_core::Tensor;

use super::{prefix_ids, Chunk, Session};
use crate::cache::FrameId;
use crate::model::ModelError;
use crate::stream::grammar::Grammar;

/// A frame that can be fed again.
#[derive(Debug, Clone)]
struct Frame {
    id: FrameId,
    /// Time since the epoch began.
    elapsed_ns: i64,
    /// `[1, tokens, hidden]`
    features: Tensor,
}

/// The newest frames, oldest first.
#[derive(Debug, Default, Clone)]
pub struct LastFrames {
    frames: VecDeque<Frame>,
}

impl LastFrames {
    /// Takes the newest frame and lets go of those beyond `limit`.
    pub fn push(&mut self, id: FrameId, elapsed_ns: i64, features: Tensor, limit: usize) {
        self.frames.push_back(Frame {
            id,
            elapsed_ns,
            features,
        });
        while self.frames.len() > limit {
            self.frames.pop_front();
        }
    }
}

impl Session {
    /// Begins the stream anew with the prefix and the last frames.
    pub(super) fn feed_last_frames(&mut self) -> Result<(), ModelError> {
        let prefix = prefix_ids(&self.model, &self.config)?;
        self.cache.reset(prefix.len())?;
        self.append(&prefix, None, Chunk::Prefix, 1)?;
        let mut grammar = Grammar::default();
        for frame in self.last.clone().frames {
            self.append_frame(&mut grammar, frame.id, frame.elapsed_ns, &frame.features)?;
        }
        self.grammar = grammar;
        Ok(())
    }
}
