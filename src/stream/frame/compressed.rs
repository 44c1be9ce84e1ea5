//! Compressed images: their kind, and decoding that a hostile file cannot make expensive.

use std::io::Cursor;

use image::{ImageFormat, ImageReader, Limits, RgbImage};

use super::{FrameError, MAX_PIXELS};

/// The kind of a compressed image by its first bytes; the `format` text of a message only serves the error.
pub fn kind(format: &str, data: &[u8]) -> Result<ImageFormat, FrameError> {
    match image::guess_format(data) {
        Ok(kind @ (ImageFormat::Jpeg | ImageFormat::Png)) => Ok(kind),
        Ok(other) => Err(FrameError::Format(format!(
            "the data is {other:?}, the message says {format:?}"
        ))),
        Err(_) => Err(FrameError::Format(format!(
            "{} bytes without a known beginning, the message says {format:?}",
            data.len()
        ))),
    }
}

/// The picture, with the decoder's memory limited.
pub fn decode(format: &str, data: &[u8]) -> Result<RgbImage, FrameError> {
    let kind = kind(format, data)?;
    let corrupt = |e: image::ImageError| FrameError::Corrupt(e.to_string());
    let (width, height) = ImageReader::with_format(Cursor::new(data), kind)
        .into_dimensions()
        .map_err(corrupt)?;
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(FrameError::Size { width, height });
    }
    let mut reader = ImageReader::with_format(Cursor::new(data), kind);
    let mut limits = Limits::default();
    // Enough for any picture that has passed, at four channels of 16 bits.
    limits.max_alloc = Some(MAX_PIXELS * 8);
    reader.limits(limits);
    Ok(reader.decode().map_err(corrupt)?.into_rgb8())
}
