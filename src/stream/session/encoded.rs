//! Frames that the vision tower has seen: they can be fed to any number of sessions of one model.

use super::{PushError, Session};
use crate::model::finite::check_finite;
use crate::model::vision::{ImageFeatures, Layout};
use crate::model::ModelError;
use crate::stream::frame::CameraImage;

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
                let look = self.encoder.look(&picture, false)?;
                let pixels = self.encoder.pixels(&look)?;
                Ok((pixels.layout, self.encoder.encode(&pixels)?))
            };
            let (layout, features) =
                encode().map_err(|error: candle_core::Error| ModelError::from(error))?;
            check_finite(&features.named())?;
            Ok((layout, features))
        };
        let (layout, features) = encode()?;
        Ok(EncodedFrame {
            image: image.without_data(),
            layout,
            features,
        })
    }

    /// [`Session::push_frame`] of a frame that another session of the same model has encoded. It is used in any case, and by itself: the gate,
    /// which goes by the pixels, is not asked.
    pub fn push_encoded(&mut self, frame: &EncodedFrame) -> Result<(), PushError> {
        let image = &frame.image;
        let jumped = self.arrive(image)?;
        self.follow_jump(jumped, image)?;
        let unit = self.attempt(|session| {
            let elapsed_ns = session.state.stream.memory.since_epoch(image.stamp_ns);
            session.enter(image, elapsed_ns, frame.layout, frame.features.clone())
        })?;
        self.archive_unit(unit);
        self.note_frame(image, None);
        Ok(())
    }
}
