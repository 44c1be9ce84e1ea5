//! Chunks of tokens through the decoder, and what is undone when one fails.

use candle_core::Tensor;

use super::{Session, SessionState};
use crate::cache::{FrameId, Heard, Mark, Place, Video};
use crate::model::chooser::{Choice, Limits};
use crate::model::finite::check_finite;
use crate::model::vision::{ImageFeatures, Layout};
use crate::model::{mllm, ModelError};
use crate::stream::grammar::{Shot, Written};

/// What the decoder gives for a chunk's last token.
const HIDDEN: &str = "hidden state of the decoder";

/// What a chunk of tokens is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk<'a> {
    Prefix,
    /// These are its pictures, all of this camera where it matters.
    Frames(&'a [Fed], Option<u8>),
    Instruction,
    Answer,
}

/// A picture that is fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fed {
    pub id: FrameId,
    /// The video that it is a part of, if it is of one.
    pub video: Option<Video>,
}

impl Session {
    /// Does something to the state as a whole: if it fails, the state is what it was.
    pub(super) fn attempt<T, E>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        self.state.mark();
        let outcome = work(self);
        if outcome.is_err() {
            self.put_back();
        }
        self.state.let_go();
        outcome
    }

    /// Does something to the state that is not to last, whether it fails or not.
    pub(super) fn passing<T, E>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        self.state.mark();
        let outcome = work(self);
        self.put_back();
        self.state.let_go();
        outcome
    }

    pub(super) fn put_back(&mut self) {
        if let Err(error) = self.state.put_back() {
            self.damage = Some(format!("the memory could not be put back: {error}"));
        }
    }

    /// Ids of text that goes on where the stream has come to.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let last = self.state.stream.last_id;
        self.model.tokenizer.encode_after(last, text)
    }

    /// A frame as it comes next in the stream: its time since the epoch began, nanoseconds, and the index of its camera.
    pub(super) fn write_frame(
        &mut self,
        layout: &Layout,
        elapsed_ns: i64,
        camera: usize,
    ) -> Written {
        let markup = self.model.vision.markup(layout);
        let shot = Shot {
            grid: layout.grid,
            elapsed_ns,
            camera: (camera, self.config.cameras.label(camera)),
        };
        self.state.stream.grammar.frame(&markup, &shot)
    }

    /// Feeds frames in one chunk: `text` with their markup, `features` in the place of their image tokens. Returns the ids of the
    /// chunk. The next one needs room for about `next` tokens.
    pub(super) fn append_frames(
        &mut self,
        text: &str,
        (frames, camera): (&[Fed], Option<u8>),
        features: &[ImageFeatures],
        next: Option<usize>,
    ) -> Result<Vec<u32>, ModelError> {
        let ids = self.encode(text)?;
        let next = next.unwrap_or(ids.len());
        let hidden = self.pass(&ids, features, Chunk::Frames(frames, camera), next)?;
        // What is no number in a key or a value is in the state of the last token, which attends to all; but where visual tokens are
        // withdrawn there may be none behind the picture.
        let mut computed = features
            .iter()
            .flat_map(ImageFeatures::named)
            .collect::<Vec<_>>();
        computed.extend(hidden.as_ref().map(|hidden| (HIDDEN, hidden)));
        check_finite(&computed)?;
        Ok(ids)
    }

    /// Feeds text after which nothing is chosen.
    pub(super) fn append(
        &mut self,
        ids: &[u32],
        chunk: Chunk<'_>,
        next: usize,
    ) -> Result<(), ModelError> {
        match self.pass(ids, &[], chunk, next)? {
            Some(hidden) => check_finite(&[(HIDDEN, &hidden)]),
            None => Ok(()),
        }
    }

    /// Puts text through the first layers, as far as the last of these, and gives what they were given of it. Within [`Self::passing`]: the
    /// cache is worth nothing afterwards.
    pub(super) fn hear(
        &mut self,
        ids: &[u32],
        chunk: Chunk<'_>,
        layers: &[usize],
    ) -> Result<Vec<Heard>, ModelError> {
        let embedded = self.model.embed(ids, &[])?;
        let marks = self.marks(ids, &embedded, chunk);
        let deep = layers.iter().max().map_or(0, |&last| last + 1);
        let cache = &mut self.state.cache;
        cache.listen(layers);
        let decoder = &self.model.decoder;
        let hidden = decoder.pass_through(deep, &embedded.embedded, &marks, cache)?;
        check_finite(&[(HIDDEN, &hidden)])?;
        Ok(cache.heard()?)
    }

    /// Feeds a chunk and sees to the room for the `next` tokens.
    ///
    /// Returns the hidden state of its last token, `[1, hidden]`; where visual tokens are withdrawn that of its last text token, if it
    /// has one. Whether it is made of numbers is for the caller to see. An error leaves the state in between: see [`Self::attempt`].
    pub(super) fn pass(
        &mut self,
        ids: &[u32],
        images: &[ImageFeatures],
        chunk: Chunk<'_>,
        next: usize,
    ) -> Result<Option<Tensor>, ModelError> {
        let hidden = self.pass_whole(ids, images, chunk, next)?;
        let last = hidden.dim(0)?.checked_sub(1);
        Ok(last.map(|last| hidden.narrow(0, last, 1)).transpose()?)
    }

    /// The same; returns the hidden states of all tokens that reach the top, `[tokens, hidden]`.
    pub(super) fn pass_whole(
        &mut self,
        ids: &[u32],
        images: &[ImageFeatures],
        chunk: Chunk<'_>,
        next: usize,
    ) -> Result<Tensor, ModelError> {
        let embedded = self.model.embed(ids, images)?;
        let marks = self.marks(ids, &embedded, chunk);
        let cache = &mut self.state.cache;
        let decoder = &self.model.decoder;
        let hidden = decoder.append_embedded(&embedded.embedded, &marks, cache)?;
        cache.reserve(next)?;
        self.state.stream.last_id = ids.last().copied();
        Ok(hidden)
    }

    /// Feeds a token of an answer in the device's own kernels, if there are such, and chooses what follows it within limits. If
    /// that fails, the state is what it was.
    pub(super) fn step(
        &mut self,
        token: u32,
        limits: Limits<'_>,
    ) -> Result<Option<Choice>, ModelError> {
        let Some(stepper) = &mut self.stepper else {
            return Ok(None);
        };
        let mark = Mark {
            boundary: self.borders.contains(&token),
            ..Mark::default()
        };
        let SessionState { cache, stream, .. } = &mut self.state;
        let rules = (&self.chooser, &mut stream.draws);
        let choice = stepper.step_within(token, mark, cache, rules, limits)?;
        stream.last_id = Some(token);
        self.attempt(|session| Ok::<_, ModelError>(session.state.cache.reserve(1)?))?;
        Ok(Some(choice))
    }

    fn marks(&self, ids: &[u32], input: &mllm::Chunk, chunk: Chunk<'_>) -> Vec<Mark> {
        let fed = |i: usize| match chunk {
            Chunk::Frames(frames, _) => input.images[i].map(|image| frames[image]),
            _ => None,
        };
        ids.iter()
            .enumerate()
            .map(|(i, id)| Mark {
                frame: fed(i).map(|fed| fed.id),
                place: Place {
                    video: fed(i).and_then(|fed| fed.video),
                    ..input.places[i]
                },
                camera: match chunk {
                    Chunk::Frames(_, camera) => camera,
                    _ => None,
                },
                // An answer belongs to what it answers.
                starts_unit: i == 0 && chunk != Chunk::Answer,
                boundary: self.borders.contains(id),
                instruction: chunk == Chunk::Instruction,
            })
            .collect()
    }
}
