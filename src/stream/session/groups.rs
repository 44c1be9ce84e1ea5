//! Frames that the tower takes two at a time, as it was trained on videos: the first waits for the second, and for no question.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::frames::Entered;
use super::Session;
use crate::model::vision::{ImageFeatures, Pixels};
use crate::model::ModelError;
use crate::stream::frame::CameraImage;
use crate::stream::thumbnail::Thumbnail;

/// Frames further apart are not taken together, nanoseconds: the published processors take two frames of a second.
const APART_NS: i64 = 2_000_000_000;

/// A frame at work.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Without its data.
    pub image: CameraImage,
    pub pixels: Pixels,
    pub thumbnail: Option<Arc<Thumbnail>>,
    pub alone: Alone,
}

/// What the tower has made of a frame by itself, if that has been asked for: copies share it, so that ephemeral questions, behind each of which
/// the frame waits again, ask for it once.
#[derive(Clone, Default)]
pub struct Alone(Arc<OnceLock<ImageFeatures>>);

impl fmt::Debug for Alone {
    /// It follows from the frame's pixels, and is no part of a state.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Alone")
    }
}

impl Waiting {
    /// Whether the tower can take another frame of this camera together with this one.
    fn goes_with(&self, next: &Self) -> bool {
        let apart_ns = next.image.stamp_ns.saturating_sub(self.image.stamp_ns);
        let (grid, next_grid) = (self.pixels.layout.grid, next.pixels.layout.grid);
        grid == next_grid && (0..=APART_NS).contains(&apart_ns)
    }
}

impl Session {
    /// Whether frames are taken two at a time.
    pub fn takes_pairs(&self) -> bool {
        self.config.frames_at_once(&self.model) == 2
    }

    /// Whether a question could be answered from what has come so far.
    pub fn has_seen(&self) -> bool {
        self.memory().seen() > 0 || self.anything_waits()
    }

    fn anything_waits(&self) -> bool {
        let cameras = self.state.stream.cameras.iter();
        cameras.into_iter().any(|camera| camera.waiting.is_some())
    }

    /// Takes a frame together with the one that waits, or lets it wait: what has entered the memory.
    pub(super) fn feed_in_pairs(&mut self, next: Waiting) -> Result<Option<Entered>, ModelError> {
        let camera = next.image.camera;
        let waiting = self.state.stream.cameras[camera].waiting.take();
        match waiting {
            Some(first) if first.goes_with(&next) => self.enter_pair(&first, next).map(Some),
            first => {
                let entered = first.map(|first| self.enter_alone(first)).transpose()?;
                let stream = &mut self.state.stream;
                stream.memory.confirm(&next.image);
                stream.cameras[camera].waiting = Some(next);
                Ok(entered)
            }
        }
    }

    fn enter_pair(&mut self, first: &Waiting, second: Waiting) -> Result<Entered, ModelError> {
        let pixels = self.model.vision.join(&first.pixels, &second.pixels)?;
        let features = self.see(&pixels)?;
        let memory = &mut self.state.stream.memory;
        let [from_ns, to_ns] =
            [first, &second].map(|frame| memory.since_epoch(frame.image.stamp_ns));
        memory.pass_over();
        let elapsed_ns = self.state.stream.grammar.time_of_pair(from_ns, to_ns);
        let unit = self.enter(&second.image, elapsed_ns, pixels.layout, features)?;
        Ok(Entered::new(second.image, second.thumbnail, unit))
    }

    /// Tower and connector.
    fn see(&mut self, pixels: &Pixels) -> Result<ImageFeatures, ModelError> {
        let started = Instant::now();
        let features = self.encoder.encode(pixels)?;
        self.times.vision = started.elapsed();
        Ok(features)
    }

    /// A frame that stands for both of a pair, as the published processors fill up an odd number of frames.
    fn enter_alone(&mut self, frame: Waiting) -> Result<Entered, ModelError> {
        let seen = &frame.alone.0;
        let features = match seen.get() {
            Some(features) => features.clone(),
            None => {
                let features = self.see(&frame.pixels)?;
                seen.get_or_init(|| features).clone()
            }
        };
        let elapsed_ns = self.state.stream.memory.since_epoch(frame.image.stamp_ns);
        let layout = frame.pixels.layout;
        let unit = self.enter(&frame.image, elapsed_ns, layout, features)?;
        Ok(Entered::new(frame.image, frame.thumbnail, unit))
    }

    /// Takes the frame of a camera that waits into the memory by itself. One that fails is lost, which the log says.
    pub(super) fn show_waiting(&mut self, camera: usize) {
        if let Some(entered) = self.enter_waiting(camera) {
            self.note_entered(entered);
        }
    }

    fn enter_waiting(&mut self, camera: usize) -> Option<Entered> {
        let frame = self.state.stream.cameras[camera].waiting.take()?;
        let entered = self.attempt(|session| session.enter_alone(frame));
        entered
            .inspect_err(|error| {
                if let Some(more) = self.complaints.due("waiting", Instant::now()) {
                    tracing::warn!("a frame that waited for the next one is lost: {error}{more}");
                }
            })
            .ok()
    }

    /// Takes what waits of all cameras, in the order of the stamps.
    fn enter_all_waiting(&mut self) -> Vec<Entered> {
        let cameras = self.state.stream.cameras.iter().enumerate();
        let mut waiting = cameras
            .filter_map(|(index, camera)| Some((camera.waiting.as_ref()?.image.stamp_ns, index)))
            .collect::<Vec<_>>();
        waiting.sort_unstable();
        let cameras = waiting.into_iter().map(|(_, camera)| camera);
        cameras
            .filter_map(|camera| self.enter_waiting(camera))
            .collect()
    }

    /// Answers with the frames that wait in the memory. They stay there, but for an ephemeral question, which leaves no trace: behind it they
    /// wait again.
    pub(super) fn with_all_shown<T, E>(
        &mut self,
        ephemeral: bool,
        answer: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        if !self.anything_waits() {
            return answer(self);
        }
        if !ephemeral {
            for entered in self.enter_all_waiting() {
                self.note_entered(entered);
            }
            return answer(self);
        }
        self.passing(|session| {
            for entered in session.enter_all_waiting() {
                // What is in the memory need not be recalled.
                session.note_frame(&entered.image, entered.thumbnail);
            }
            answer(session)
        })
    }
}
