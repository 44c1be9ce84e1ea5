//! Frames that the vision tower has seen: fed to any number of sessions of one model, and once more in front of a question.

use super::{PushError, Session};
use crate::cache::PolicyKind;
use crate::model::finite::check_finite;
use crate::model::vision::{ImageFeatures, Layout, View};
use crate::model::ModelError;
use crate::stream::answer::{Answer, AnswerDelta, FinishReason, Instruction};
use crate::stream::frame::{CameraImage, ImageData};

/// A frame as tower and connector left it.
#[derive(Debug, Clone)]
pub struct EncodedFrame {
    /// Stamp and camera; the pixels are gone.
    image: CameraImage,
    layout: Layout,
    features: ImageFeatures,
}

impl EncodedFrame {
    /// The header's stamp, nanoseconds.
    pub fn stamp_ns(&self) -> i64 {
        self.image.stamp_ns
    }

    /// Width and height of its picture, pixels.
    pub fn size(&self) -> (usize, usize) {
        self.layout.picture
    }

    /// What this one shows, with the times of another.
    pub fn at_the_time_of(&self, other: &Self) -> Self {
        Self {
            image: other.image.clone(),
            ..self.clone()
        }
    }
}

impl Session {
    /// A frame through tower and connector; the memory does not change.
    pub fn encode_frame(&self, image: &CameraImage) -> Result<EncodedFrame, PushError> {
        let encode = || -> Result<_, PushError> {
            let picture = image.picture()?;
            let vision = &self.model.vision;
            let prepared = vision.prepare(&picture, View::Frame);
            let pixels = vision.pixels(&prepared).map_err(ModelError::from)?;
            let features = vision.encode(&pixels).map_err(ModelError::from)?;
            check_finite(&features.named())?;
            Ok((prepared.layout, features))
        };
        let (layout, features) = encode()?;
        let nothing = ImageData::Compressed {
            format: String::new(),
            data: Vec::new(),
        };
        let image = CameraImage {
            frame_id: image.frame_id.clone(),
            data: nothing,
            ..*image
        };
        Ok(EncodedFrame {
            image,
            layout,
            features,
        })
    }

    /// [`Session::push_frame`] of a frame that another session of the same model has encoded. It is used in any case: the gate, which
    /// goes by the pixels, is not asked.
    pub fn push_encoded(&mut self, frame: &EncodedFrame) -> Result<(), PushError> {
        let image = &frame.image;
        let jumped = self.arrive(image)?;
        self.follow_jump(jumped, image.stamp_ns)?;
        self.attempt(|session| session.enter(image, frame.layout, frame.features.clone()))?;
        Ok(())
    }

    /// [`Session::ask`] with frames of this epoch fed again in front of the instruction, in the order given, with the time labels they
    /// had. None of it leaves a trace, whatever the instruction says.
    pub fn ask_after(
        &mut self,
        frames: &[EncodedFrame],
        instruction: &Instruction,
        cancelled: &dyn Fn() -> bool,
        on_delta: &mut dyn FnMut(AnswerDelta),
    ) -> Answer {
        let answer = self.passing(|session| {
            session.feed_again(frames, &instruction.text)?;
            Ok::<_, ModelError>(session.ask(instruction, cancelled, on_delta))
        });
        answer.unwrap_or_else(|error| {
            let reason = error.to_string();
            self.unanswered(instruction, FinishReason::Error, reason, on_delta)
        })
    }

    /// Feeds frames again, of which all are to be there when `question` is read behind them.
    fn feed_again(&mut self, frames: &[EncodedFrame], question: &str) -> Result<(), ModelError> {
        if self.config.cache.policy == PolicyKind::LastFrames {
            return Err(ModelError::Inputs(
                "frames to be fed again under policy last_frames, expected a policy with a memory to feed them into"
                    .to_string(),
            ));
        }
        let tokens = self.tokens_of(frames, question)?;
        let cache = &mut self.state.cache;
        let room = cache.longest_turn();
        if tokens > room {
            return Err(ModelError::Inputs(format!(
                "{} frames to be fed again and the question are {tokens} tokens, expected at most {room} (what the cache can hold of one turn)",
                frames.len()
            )));
        }
        if tokens > cache.plan().recent {
            // A compaction in the middle of it could evict its beginning.
            cache.reserve(tokens)?;
        }
        let first = self.state.stream.memory.next_id();
        for (id, frame) in (first..).zip(frames) {
            let stream = &mut self.state.stream;
            let elapsed_ns = stream.memory.since_epoch(frame.stamp_ns());
            let markup = self.model.vision.markup(&frame.layout);
            let text = stream.grammar.frame(&markup, elapsed_ns);
            self.append_frame(&text, id, frame.features.clone())?;
        }
        Ok(())
    }

    /// Tokens of frames and a question behind them.
    fn tokens_of(&self, frames: &[EncodedFrame], question: &str) -> Result<usize, ModelError> {
        let tokenizer = &self.model.tokenizer;
        let mut grammar = self.state.stream.grammar.clone();
        let mut text = String::new();
        for frame in frames {
            let markup = self.model.vision.markup(&frame.layout);
            text.push_str(&grammar.frame(&markup, 0));
        }
        text.push_str(&grammar.instruction(question, tokenizer));
        Ok(self.encode(&text)?.len())
    }
}
