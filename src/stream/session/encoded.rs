//! Frames that the vision tower has seen: they can be fed to any number of sessions of one model.

use std::sync::Arc;

use super::groups::{Alone, Waiting};
use super::{PushError, Session};
use crate::model::finite::check_finite;
use crate::model::vision::{ImageFeatures, Layout, Prepared};
use crate::model::ModelError;
use crate::stream::frame::CameraImage;

/// A frame as tower and connector left it.
#[derive(Debug, Clone)]
pub struct EncodedFrame {
    /// Stamp and camera; the pixels are gone.
    image: CameraImage,
    layout: Layout,
    /// Of it by itself.
    features: ImageFeatures,
    /// At the size that the tower takes, where the tower may see it again with the next one.
    prepared: Option<Arc<Prepared>>,
}

impl EncodedFrame {
    /// The header's stamp, nanoseconds.
    pub fn stamp_ns(&self) -> i64 {
        self.image.stamp_ns
    }

    /// Its image tokens.
    pub fn tokens(&self) -> usize {
        self.features.rows.dims().first().copied().unwrap_or(0)
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
            let encode = || {
                let pairs = self.takes_pairs();
                let look = self.encoder.look(&picture, pairs)?;
                let features = self.encoder.encode(&self.encoder.pixels(&look)?)?;
                let layout = look.prepared.layout;
                let prepared = pairs.then(|| Arc::new(look.prepared));
                Ok((layout, features, prepared))
            };
            let encoded = encode().map_err(|error: candle_core::Error| ModelError::from(error))?;
            check_finite(&encoded.1.named())?;
            Ok(encoded)
        };
        let (layout, features, prepared) = encode()?;
        Ok(EncodedFrame {
            image: image.without_data(),
            layout,
            features,
            prepared,
        })
    }

    /// [`Session::push_frame`] of a frame that another session of the same model has encoded. It is used in any case: the gate, which goes by
    /// the pixels, is not asked. Where frames are taken two at a time the tower sees the two of them together.
    pub fn push_encoded(&mut self, frame: &EncodedFrame) -> Result<(), PushError> {
        let image = &frame.image;
        let jumped = self.arrive(image)?;
        if jumped.is_some() {
            self.show_waiting(image.camera);
        }
        self.follow_jump(jumped, image)?;
        if let Some(prepared) = frame.prepared.as_ref().filter(|_| self.takes_pairs()) {
            let pixels = self.model.vision.pixels(prepared);
            let next = Waiting {
                image: image.clone(),
                pixels: pixels.map_err(ModelError::from)?,
                thumbnail: None,
                alone: Alone::of(frame.features.clone()),
            };
            let entered = self.attempt(|session| session.feed_in_pairs(next));
            if entered.is_err() {
                // It may be what failed.
                self.state.stream.cameras[image.camera].waiting = None;
            }
            if let Some(entered) = entered? {
                self.note_entered(entered);
            }
            return Ok(());
        }
        let unit = self.attempt(|session| {
            let elapsed_ns = session.state.stream.memory.since_epoch(image.stamp_ns);
            session.enter(image, elapsed_ns, frame.layout, frame.features.clone())
        })?;
        self.archive_unit(unit);
        self.note_frame(image, None);
        Ok(())
    }
}
