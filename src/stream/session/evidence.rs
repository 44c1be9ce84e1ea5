//! What is told beside an answer: which frames its tokens attended to, and the boxes in its text.

use std::sync::Arc;

use super::Session;
use crate::stream::answer::{Answer, FinishReason};
use crate::stream::archive::Content;
use crate::stream::detections::{Detections, Format, Notation, Sizes};
use crate::stream::evidence::Glimpse;
use crate::stream::frame::CameraImage;
use crate::stream::instruction::Instruction;
use crate::stream::thumbnail::{Thumbnail, Thumbnails};

/// Where a device's kernels attend, the newest tokens of an answer that are asked what they attended to.
const TOKENS: usize = 32;

impl Session {
    /// What makes the thumbnails of frames.
    pub fn thumbnails(&self) -> Arc<Thumbnails> {
        self.thumbnails.clone()
    }

    /// Notes what the tokens attend to that come next: the last one of a question, by which an answer's first is chosen, and the answer's.
    pub(super) fn follow_answer(&mut self) {
        let tokens = match self.config.evidence.evidence_frames {
            0 => 0,
            _ => TOKENS,
        };
        self.state.cache.follow(tokens);
    }

    /// Notes in an answer that has just been generated, and is still in the cache with all that was fed for it, which frames its tokens
    /// attended to: those by whose queries each of them was chosen.
    pub(super) fn note_evidence(&mut self, answer: &mut Answer, finish: Option<FinishReason>) {
        let count = self.config.evidence.evidence_frames;
        if count == 0 || answer.output_tokens == 0 {
            return;
        }
        // Each token was chosen by the one before it. An end is not fed.
        let tokens = match finish {
            Some(FinishReason::Stop) => answer.output_tokens,
            _ => answer.output_tokens + 1,
        };
        match self.state.cache.attended(tokens) {
            Ok(attended) => answer.evidence = self.state.stream.glimpses.most(&attended, count),
            Err(error) => tracing::warn!("answer {} has no evidence: {error}", answer.id),
        }
    }

    /// Notes what is known of the newest frame, which has entered the memory; outside of marks, whose copy would have to be made whole.
    pub(super) fn note_frame(&mut self, image: &CameraImage, thumbnail: Option<Arc<Thumbnail>>) {
        if self.config.evidence.evidence_frames == 0 {
            return;
        }
        let camera = self.config.cameras.label(image.camera);
        let camera = camera.unwrap_or_default().to_string();
        let stream = &mut self.state.stream;
        let Some(id) = stream.memory.next_id().checked_sub(1) else {
            return;
        };
        let glimpse = Glimpse {
            stamp_ns: image.stamp_ns,
            thumbnail,
            camera,
        };
        let (cache, archive, last) = (&self.state.cache, &stream.archive, &stream.last);
        stream.glimpses.take(id, glimpse, || {
            let kept = cache.retained_frames().into_keys();
            let archived = archive
                .entries()
                .iter()
                .filter_map(|entry| match &entry.unit.content {
                    Content::Frame(frame) => Some(frame.at.id),
                    Content::Text(_) | Content::Turn(_) => None,
                });
            kept.chain(archived).chain(last.ids()).collect()
        });
    }

    /// How its model writes boxes and points, if it does.
    pub fn detection_format(&self) -> Option<Format> {
        Format::of_family(self.model.family.name)
    }

    /// Boxes and points in the text of an answer, in the newest frame; none where the instruction brought pictures, as the text does not say
    /// which one is meant.
    pub(super) fn detections(
        &self,
        instruction: &Instruction,
        answer: &Answer,
        picture: Option<(usize, usize)>,
    ) -> Detections {
        let format = self.detection_format();
        let (Some(format), Some(camera), []) = (format, picture, &instruction.images[..]) else {
            return Detections::default();
        };
        let recipe = self.model.vision.frame(camera);
        let sizes = Sizes {
            camera,
            tower: recipe.sizes.last().copied().unwrap_or(camera),
        };
        match format.notation {
            Notation::Json => format.read(&answer.text, sizes),
            Notation::ControlTokens => {
                let text = self.model.tokenizer.decode_whole(answer.answer_ids());
                format.read(&text.unwrap_or_default(), sizes)
            }
        }
    }
}
