//! Pictures that belong to an instruction: shown right in front of it, and gone with it.

use super::checks::AskError;
use super::chunks::Fed;
use super::last_frames::{Frame, Shown};
use super::Session;
use crate::cache::{FrameId, PolicyKind};
use crate::model::finite::check_finite;
use crate::model::vision::{ImageFeatures, Layout};
use crate::model::ModelError;
use crate::stream::frame::{CameraImage, FrameError};
use crate::stream::instruction::Instruction;

/// What the tower made of the pictures of an instruction.
#[derive(Debug, Default)]
pub(super) struct Pictures {
    shown: Vec<(Layout, ImageFeatures)>,
    /// What they take in the cache with their labels and markup.
    pub tokens: usize,
}

impl Pictures {
    pub fn is_empty(&self) -> bool {
        self.shown.is_empty()
    }
}

impl Session {
    /// The pictures of an instruction through tower and connector; the memory does not change. One that cannot be shown refuses all, and
    /// so does a turn that they make too long.
    pub(super) fn look_at(&self, instruction: &Instruction) -> Result<Pictures, AskError> {
        let (count, limit) = (
            instruction.images.len(),
            self.config.instruction_images_limit,
        );
        if count == 0 {
            return Ok(Pictures::default());
        }
        if count > limit {
            return Err(AskError::TooManyPictures { count, limit });
        }
        let mut pictures = Pictures::default();
        for (number, image) in (1..).zip(&instruction.images) {
            let refused = |error| AskError::Picture {
                number,
                count,
                error,
            };
            pictures.shown.push(self.shown(image, refused)?);
        }
        pictures.tokens = self.encode(&self.text_of(&pictures))?.len();
        let question = self.question(&instruction.text)?.len();
        let room = self.state.cache.longest_turn();
        match pictures.tokens + question > room {
            true => Err(AskError::PicturesTooLarge {
                pictures: pictures.tokens,
                question,
                room,
            }),
            false => Ok(pictures),
        }
    }

    fn shown(
        &self,
        image: &CameraImage,
        refused: impl Fn(FrameError) -> AskError,
    ) -> Result<(Layout, ImageFeatures), AskError> {
        image.check().map_err(&refused)?;
        let picture = image.picture().map_err(&refused)?;
        let encode = || {
            let look = self.encoder.look(&picture, false)?;
            let pixels = self.encoder.pixels(&look)?;
            Ok::<_, candle_core::Error>((pixels.layout, self.encoder.encode(&pixels)?))
        };
        let (layout, features) = encode().map_err(ModelError::from)?;
        check_finite(&features.named())?;
        Ok((layout, features))
    }

    /// Their text, as if it came next.
    fn text_of(&self, pictures: &Pictures) -> String {
        let mut grammar = self.state.stream.grammar.clone();
        let texts = pictures.shown.iter().map(|(layout, _)| {
            let markup = self.model.vision.markup(layout);
            grammar.sent_picture(&markup)
        });
        texts.collect()
    }

    /// Feeds them behind everything else, in one chunk, with room for a question of so many tokens behind them. Within
    /// [`Self::passing`]: they are no frames of the stream.
    pub(super) fn feed_pictures(
        &mut self,
        pictures: &Pictures,
        question: usize,
    ) -> Result<(), ModelError> {
        if pictures.is_empty() {
            return Ok(());
        }
        // Numbers that no frame has.
        let numbers = (self.state.stream.memory.next_id()..).take(pictures.shown.len());
        let numbers = numbers.collect::<Vec<FrameId>>();
        if self.config.cache.policy == PolicyKind::LastFrames {
            // They come behind the last frames, which are fed with the question.
            for (id, (layout, features)) in numbers.into_iter().zip(&pictures.shown) {
                let frame = Frame {
                    id,
                    shown: Shown::Sent,
                    layout: *layout,
                    features: features.clone(),
                };
                self.state.stream.last.push(frame, usize::MAX);
            }
            return Ok(());
        }
        let cache = &mut self.state.cache;
        cache.make_room(pictures.tokens + question.max(cache.plan().slack))?;
        let mut text = String::new();
        let mut features = Vec::new();
        for (layout, shown) in &pictures.shown {
            let markup = self.model.vision.markup(layout);
            text.push_str(&self.state.stream.grammar.sent_picture(&markup));
            features.push(shown.clone());
        }
        let fed = numbers
            .into_iter()
            .map(|id| Fed { id, video: None })
            .collect::<Vec<_>>();
        self.append_frames(&text, (&fed, None), &features, Some(question))?;
        Ok(())
    }
}
