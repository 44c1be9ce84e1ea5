//! The session of policy last_frames: nothing is remembered but the last frames, which are fed again for every question.
//!
//! (SimpleStream, arXiv 2604.02317.) The vision tower's features are kept, since encoding the same image gives the same again.

use std::collections::VecDeque;

use super::chunks::Fed;
use super::Session;
use crate::cache::FrameId;
use crate::model::vision::{ImageFeatures, Layout};
use crate::model::ModelError;

/// A frame that can be fed again.
#[derive(Debug, Clone)]
pub struct Frame {
    pub id: FrameId,
    pub shown: Shown,
    pub layout: Layout,
    pub features: ImageFeatures,
}

/// What a frame is said to be.
#[derive(Debug, Clone, Copy)]
pub enum Shown {
    /// Of this camera, so many nanoseconds after the epoch began.
    Frame { camera: usize, elapsed_ns: i64 },
    /// A picture of the instruction.
    Sent,
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

    pub fn ids(&self) -> impl Iterator<Item = FrameId> + '_ {
        self.frames.iter().map(|frame| frame.id)
    }
}

impl Session {
    /// Begins the stream anew with the prefix and the last frames.
    pub(super) fn feed_last_frames(&mut self) -> Result<(), ModelError> {
        let beginning = self.state.stream.beginning.clone();
        self.feed_prefix(&beginning)?;
        self.state.stream.grammar = beginning.grammar.clone();
        for frame in self.state.stream.last.clone().frames {
            let written = match frame.shown {
                Shown::Frame { camera, elapsed_ns } => {
                    self.write_frame(&frame.layout, elapsed_ns, camera)
                }
                Shown::Sent => {
                    let markup = self.model.vision.markup(&frame.layout);
                    self.state.stream.grammar.sent_picture(&markup).into()
                }
            };
            let fed = Fed {
                id: frame.id,
                video: written.video,
            };
            self.append_frames(&written.text, (&[fed], None), &[frame.features], None)?;
        }
        Ok(())
    }
}
