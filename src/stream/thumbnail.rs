//! Small pictures of frames, to be shown where a frame is pointed at.

use std::io::Cursor;
use std::sync::Arc;

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageReader, RgbImage};

use crate::model::preprocess::picture::{Bounded, Picture};
use crate::model::preprocess::resample::{Filter, Resizer};

const QUALITY: u8 = 80;

/// A small picture, jpeg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thumbnail(Box<[u8]>);

impl Thumbnail {
    /// Memory of it, bytes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.0.len()
    }

    /// Its pixels; none where it cannot be read, which is not so of what [`Thumbnails::of`] has made.
    pub fn pixels(&self) -> Option<RgbImage> {
        let reader = ImageReader::new(Cursor::new(&self.0)).with_guessed_format();
        let image = reader.ok()?.decode().ok()?;
        Some(image.into_rgb8())
    }
}

/// What makes thumbnails.
#[derive(Debug)]
pub struct Thumbnails {
    /// The longer side, pixels; 0: there are none.
    side: usize,
    resizer: Resizer,
}

impl Thumbnails {
    /// Of pictures whose longer side is to be `side` pixels, or as it is where it is shorter; 0: none are made.
    pub fn new(side: usize) -> Self {
        Self {
            side,
            resizer: Resizer::new(Filter::Bilinear),
        }
    }

    pub fn of(&self, picture: &dyn Picture) -> Option<Arc<Thumbnail>> {
        if self.side == 0 {
            return None;
        }
        let picture = Bounded::new(picture);
        let (width, height) = picture.size();
        let longest = width.max(height);
        let side = |side: usize| match longest > self.side {
            true => (side * self.side / longest).max(1),
            false => side,
        };
        let (width, height) = (side(width), side(height));
        let pixels = self.resizer.resize(&picture, (width, height));
        let jpeg = jpeg(&pixels, (width as u32, height as u32), QUALITY)?;
        Some(Arc::new(Thumbnail(jpeg.into())))
    }
}

/// Packed RGB bytes as jpeg; none for a size that jpeg does not know, which none of ours is.
pub(super) fn jpeg(pixels: &[u8], (width, height): (u32, u32), quality: u8) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, quality);
    let encoded = encoder.encode(pixels, width, height, ExtendedColorType::Rgb8);
    encoded.is_ok().then_some(bytes)
}
