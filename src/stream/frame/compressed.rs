//! Compressed images: what their data is, and decoding that a hostile file cannot make expensive.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use super::{check_size, jpeg, said, FrameError};

/// What a decoder may allocate beside the picture, bytes: rows, tables and metadata such as a colour profile, which can inflate to
/// anything.
const WORKING_BYTES: u64 = 16 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Jpeg,
    Png,
}

/// What the first bytes of a compressed image say.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    kind: Kind,
    pub is_grey: bool,
}

/// The kind of a compressed image by its first bytes, and whether it is one that can be used, for which nothing is decoded; the
/// `format` text of a message only serves the error.
pub fn head(format: &str, data: &[u8]) -> Result<Head, FrameError> {
    let kind = kind(format, data)?;
    let (name, size, bits, is_grey) = match kind {
        Kind::Jpeg => {
            let frame = jpeg::frame(data).map_err(FrameError::Corrupt)?;
            let size = (frame.width.into(), frame.height.into());
            ("jpeg", size, frame.bits, frame.components == 1)
        }
        Kind::Png => {
            let (size, bits, is_grey) = png_header(data)
                .ok_or_else(|| FrameError::Corrupt("its header is too short".to_string()))?;
            ("png", size, bits, is_grey)
        }
    };
    if bits > 8 {
        return Err(FrameError::Bits {
            kind: name,
            bits,
            format: format.to_string(),
        });
    }
    check_size(size)?;
    Ok(Head { kind, is_grey })
}

/// The picture of a compressed image (jpeg or png), turned as its EXIF orientation says. Its size is checked before any of it is
/// decoded; `format` is what came with the data about it, which only serves the error.
pub fn decode(format: &str, data: &[u8]) -> Result<RgbImage, FrameError> {
    match head(format, data)?.kind {
        Kind::Jpeg => {
            let (frame, pixels, orientation) = jpeg::decode(data).map_err(FrameError::Corrupt)?;
            let picture = RgbImage::from_raw(frame.width.into(), frame.height.into(), pixels);
            let picture = picture.ok_or_else(|| {
                FrameError::Corrupt("its pixels are not of its header's size".to_string())
            })?;
            let mut picture = DynamicImage::ImageRgb8(picture);
            picture.apply_orientation(orientation);
            Ok(picture.into_rgb8())
        }
        Kind::Png => {
            let corrupt = |e: image::ImageError| FrameError::Corrupt(e.to_string());
            let mut reader = ImageReader::with_format(Cursor::new(data), ImageFormat::Png);
            let mut limits = Limits::default();
            limits.max_alloc = Some(WORKING_BYTES);
            reader.limits(limits);
            let mut decoder = reader.into_decoder().map_err(corrupt)?;
            let orientation = decoder.orientation();
            let mut picture = DynamicImage::from_decoder(decoder).map_err(corrupt)?;
            // A picture is none the worse for EXIF data that cannot be read.
            picture.apply_orientation(orientation.unwrap_or(Orientation::NoTransforms));
            Ok(picture.into_rgb8())
        }
    }
}

fn kind(format: &str, data: &[u8]) -> Result<Kind, FrameError> {
    let what = match image::guess_format(data) {
        Ok(ImageFormat::Jpeg) => return Ok(Kind::Jpeg),
        Ok(ImageFormat::Png) => return Ok(Kind::Png),
        Ok(other) => format!("the data is {other:?}"),
        Err(_) => match other_kind(format, data) {
            Some(name) => format!("the data is {name}"),
            None => format!("{} bytes without a known beginning", data.len()),
        },
    };
    Err(FrameError::Format(format!("{what}{}", said(format))))
}

/// Names of formats that come as CompressedImage now and then, beside those that the decoders' crate knows.
fn other_kind(format: &str, data: &[u8]) -> Option<&'static str> {
    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
    /// What compressed_depth_image_transport writes in front of a picture of distances.
    const DEPTH_HEADER: usize = 12;
    let is_depth = data.get(DEPTH_HEADER..).is_some_and(|d| d.starts_with(PNG));
    if is_depth || format.contains("compressedDepth") {
        return Some("a depth image of compressedDepth transport");
    }
    if let Some(unit) = annex_b(data) {
        return Some(unit);
    }
    match data {
        [_, _, _, _, b'f', b't', b'y', b'p', b'h', b'e', ..] => Some("HEIF"),
        [_, _, _, _, b'f', b't', b'y', b'p', b'm', b'i', ..] => Some("HEIF"),
        [_, _, _, _, b'f', b't', b'y', b'p', b'a', b'v', ..] => Some("AVIF"),
        [0xFF, 0x0A, ..] => Some("JPEG XL"),
        [0, 0, 0, 12, b'J', b'X', b'L', ..] => Some("JPEG XL"),
        [0, 0, 0, 12, b'j', b'P', ..] => Some("JPEG 2000"),
        [0xFF, 0x4F, 0xFF, 0x51, ..] => Some("JPEG 2000"),
        [0x12, 0, ..] => Some("AV1 video"),
        _ => None,
    }
}

/// The name of a video whose units begin with start codes (ITU-T H.264 and H.265, annex B).
fn annex_b(data: &[u8]) -> Option<&'static str> {
    let [0, 0, rest @ ..] = data else {
        return None;
    };
    let ([1, unit @ ..] | [0, 1, unit @ ..]) = rest else {
        return None;
    };
    match *unit {
        // H.265: one bit of zero, the type (parameter sets are 32 to 34), layer 0 and temporal id 1.
        [0x40 | 0x42 | 0x44 | 0x46 | 0x4E, 1, ..] => Some("H.265 video"),
        [_, ..] => Some("H.264 or H.265 video"),
        [] => None,
    }
}

/// Size, bits of a sample, and whether it is grey, of the header that a PNG begins with (PNG, 11.2.1).
fn png_header(data: &[u8]) -> Option<((u32, u32), u8, bool)> {
    const GREY: [u8; 2] = [0, 4];
    let header: &[u8; 26] = data.first_chunk()?;
    let number = |at: usize| Some(u32::from_be_bytes(*header[at..].first_chunk()?));
    Some((
        (number(16)?, number(20)?),
        header[24],
        GREY.contains(&header[25]),
    ))
}
