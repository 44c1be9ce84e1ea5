//! Compressed images: their kind, and decoding that a hostile file cannot make expensive.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

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

/// What a decoder may allocate beside the picture, bytes: rows, tables and metadata such as a colour profile, which can inflate to
/// anything.
const WORKING_BYTES: u64 = 16 << 20;

/// The picture. Its size is checked before any of it is decoded.
pub fn decode(format: &str, data: &[u8]) -> Result<RgbImage, FrameError> {
    let kind = kind(format, data)?;
    let corrupt = |e: image::ImageError| FrameError::Corrupt(e.to_string());
    let mut reader = ImageReader::with_format(Cursor::new(data), kind);
    let mut limits = Limits::default();
    limits.max_alloc = Some(WORKING_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(corrupt)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(FrameError::Size { width, height });
    }
    let picture = DynamicImage::from_decoder(decoder).map_err(corrupt)?;
    Ok(picture.into_rgb8())
}
