//! What was found, fed again in front of an instruction, and the newest frames behind it.

use std::sync::Arc;
use std::time::Instant;

use crate::model::ModelError;
use crate::stream::answer::{Answer, Recalled};
use crate::stream::archive::{Content, Found, Frame};
use crate::stream::session::chunks::Fed;
use crate::stream::session::Session;

impl Session {
    /// The newest frame of every camera, which is fed once more behind what is recalled, in the order in which they came.
    pub(super) fn newest_again(&self) -> Vec<Arc<Frame>> {
        if !self.config.archive.recall_newest {
            return Vec::new();
        }
        let cameras = self.state.stream.cameras.iter();
        let mut newest = cameras
            .filter_map(|camera| camera.newest.clone())
            .collect::<Vec<_>>();
        newest.sort_by_key(|frame| frame.at.id);
        newest
    }

    /// Feeds again what was found, as frames and turns of the stream, behind everything else, and then the newest frame. `question` is what
    /// comes behind that, tokens.
    pub(in crate::stream::session) fn feed_again(
        &mut self,
        found: &[Found],
        question: usize,
        answer: &mut Answer,
    ) -> Result<(), ModelError> {
        let started = Instant::now();
        let newest = self.newest_again();
        let tokens = found.iter().map(|found| found.unit.content.tokens());
        let tokens = tokens.sum::<usize>() + newest.iter().map(|frame| frame.tokens).sum::<usize>();
        // One compaction for all of it and for the turn that follows, where feeding would take one after the other; one in the middle of it
        // could evict its beginning.
        let cache = &mut self.state.cache;
        cache.make_room(tokens + question.max(cache.plan().slack))?;
        let from = self.usage().tokens_seen;
        let mut frames = Vec::new();
        for found in found {
            match &found.unit.content {
                // The label is of the last time that it was so.
                Content::Frame(frame) => {
                    let since_ns = found.seen_ns.saturating_sub(found.unit.stamp_ns);
                    frames.push((frame.as_ref(), frame.at.elapsed_ns.saturating_add(since_ns)));
                }
                Content::Turn(turn) => {
                    self.feed_frames_again(&std::mem::take(&mut frames))?;
                    self.append_turn(&turn.asked, &turn.said)?;
                }
                Content::Text(_) => {}
            }
        }
        frames.extend(
            newest
                .iter()
                .map(|frame| (frame.as_ref(), frame.at.elapsed_ns)),
        );
        self.feed_frames_again(&frames)?;
        answer.recalled_tokens = (self.usage().tokens_seen - from) as usize;
        answer.recalled = found
            .iter()
            .map(|found| Recalled {
                kind: found.unit.kind(),
                stamp_ns: found.unit.stamp_ns,
                seen_ns: found.seen_ns,
                score: found.score,
            })
            .collect();
        answer.recall_time += started.elapsed();
        Ok(())
    }

    /// Feeds frames with the times that their labels are to tell, in one chunk.
    fn feed_frames_again(&mut self, frames: &[(&Frame, i64)]) -> Result<(), ModelError> {
        if frames.is_empty() {
            return Ok(());
        }
        let (dtype, device) = (self.model.dtype(), self.model.device().clone());
        let mut text = String::new();
        let (mut fed, mut features) = (Vec::new(), Vec::new());
        for (frame, elapsed_ns) in frames {
            let written = self.write_frame(&frame.layout, *elapsed_ns, frame.at.camera);
            text.push_str(&written.text);
            fed.push(Fed {
                id: frame.at.id,
                video: written.video,
            });
            features.push(frame.features(dtype, &device)?);
        }
        self.append_frames(&text, (&fed, None), &features, Some(1))?;
        Ok(())
    }
}
