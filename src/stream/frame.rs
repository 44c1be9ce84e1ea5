//! Camera messages to pictures, with every check that a message from outside needs.

use std::io::Cursor;

use image::{ImageFormat, ImageReader, Limits, RgbImage};

/// The largest picture that is accepted, pixels: more than any robot camera gives, less than a bomb needs.
pub const MAX_PIXELS: u64 = 64_000_000;

/// A camera message, free of ROS types.
#[derive(Debug, Clone)]
pub struct CameraImage {
    /// The header's stamp, nanoseconds.
    pub stamp_ns: i64,
    pub frame_id: String,
    pub data: ImageData,
}

#[derive(Debug, Clone)]
pub enum ImageData {
    /// Fields of sensor_msgs/Image.
    Raw {
        encoding: String,
        width: u32,
        height: u32,
        /// Bytes per row.
        step: u32,
        is_bigendian: bool,
        data: Vec<u8>,
    },
    /// Fields of sensor_msgs/CompressedImage.
    Compressed { format: String, data: Vec<u8> },
}

/// Why an image was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("image encoding is {0:?}, expected rgb8, bgr8 or mono8")]
    Encoding(String),
    #[error(
        "image size is {width} x {height}, expected at least 1 x 1 and at most {MAX_PIXELS} pixels"
    )]
    Size { width: u32, height: u32 },
    #[error(
        "image step is {step} bytes, expected at least {expected} ({width} pixels of {encoding})"
    )]
    Step {
        step: u32,
        expected: u64,
        width: u32,
        encoding: String,
    },
    #[error("image data is {length} bytes, expected {expected} ({height} rows of {step} bytes)")]
    Length {
        length: usize,
        expected: u64,
        height: u32,
        step: u32,
    },
    #[error("compressed image is neither jpeg nor png: {0}")]
    Format(String),
    #[error("compressed image cannot be decoded: {0}")]
    Corrupt(String),
}

impl CameraImage {
    /// The checks that cost nothing: what a raw image's fields promise, and the kind of a compressed one.
    pub fn check(&self) -> Result<(), FrameError> {
        match &self.data {
            ImageData::Raw {
                encoding,
                width,
                height,
                step,
                data,
                ..
            } => check_raw(encoding, *width, *height, *step, data.len()),
            ImageData::Compressed { format, data } => compressed_kind(format, data).map(|_| ()),
        }
    }

    /// The picture in RGB.
    pub fn decode(&self) -> Result<RgbImage, FrameError> {
        self.check()?;
        match &self.data {
            ImageData::Raw {
                encoding,
                width,
                height,
                step,
                data,
                ..
            } => Ok(decode_raw(encoding, *width, *height, *step as usize, data)),
            ImageData::Compressed { format, data } => decode_compressed(format, data),
        }
    }
}

/// Bytes per pixel of the encodings that are understood.
fn channels(encoding: &str) -> Result<usize, FrameError> {
    match encoding {
        "rgb8" | "bgr8" => Ok(3),
        "mono8" => Ok(1),
        other => Err(FrameError::Encoding(other.to_string())),
    }
}

fn check_raw(
    encoding: &str,
    width: u32,
    height: u32,
    step: u32,
    length: usize,
) -> Result<(), FrameError> {
    let row = u64::from(width) * channels(encoding)? as u64;
    if width == 0 || height == 0 || u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(FrameError::Size { width, height });
    }
    if u64::from(step) < row {
        return Err(FrameError::Step {
            step,
            expected: row,
            width,
            encoding: encoding.to_string(),
        });
    }
    let expected = u64::from(step) * u64::from(height);
    if length as u64 != expected {
        return Err(FrameError::Length {
            length,
            expected,
            height,
            step,
        });
    }
    Ok(())
}

/// Copies a checked raw image, row by row, without its padding.
fn decode_raw(encoding: &str, width: u32, height: u32, step: usize, data: &[u8]) -> RgbImage {
    let row = width as usize * if encoding == "mono8" { 1 } else { 3 };
    let mut rgb = Vec::with_capacity(width as usize * height as usize * 3);
    for line in data.chunks_exact(step) {
        let line = &line[..row];
        match encoding {
            "rgb8" => rgb.extend_from_slice(line),
            "bgr8" => rgb.extend(line.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]])),
            _ => rgb.extend(line.iter().flat_map(|&grey| [grey; 3])),
        }
    }
    let mut picture = RgbImage::new(width, height);
    picture.copy_from_slice(&rgb);
    picture
}

/// The kind of a compressed image by its first bytes; the `format` text of a message only serves the error.
fn compressed_kind(format: &str, data: &[u8]) -> Result<ImageFormat, FrameError> {
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

fn decode_compressed(format: &str, data: &[u8]) -> Result<RgbImage, FrameError> {
    let kind = compressed_kind(format, data)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(encoding: &str, width: u32, height: u32, step: u32, data: Vec<u8>) -> CameraImage {
        CameraImage {
            stamp_ns: 0,
            frame_id: String::new(),
            data: ImageData::Raw {
                encoding: encoding.to_string(),
                width,
                height,
                step,
                is_bigendian: false,
                data,
            },
        }
    }

    #[test]
    fn every_encoding_gives_rgb_and_row_padding_is_dropped() {
        let rgb = raw("rgb8", 1, 2, 5, vec![1, 2, 3, 0, 0, 4, 5, 6, 0, 0]);
        assert_eq!(rgb.decode().unwrap().as_raw(), &[1, 2, 3, 4, 5, 6]);
        let bgr = raw("bgr8", 2, 1, 6, vec![1, 2, 3, 4, 5, 6]);
        assert_eq!(bgr.decode().unwrap().as_raw(), &[3, 2, 1, 6, 5, 4]);
        let mono = raw("mono8", 2, 1, 2, vec![7, 9]);
        assert_eq!(mono.decode().unwrap().as_raw(), &[7, 7, 7, 9, 9, 9]);
    }

    #[test]
    fn a_raw_image_must_hold_what_its_fields_promise() {
        assert!(matches!(
            raw("rgb16", 1, 1, 6, vec![0; 6]).check(),
            Err(FrameError::Encoding(_))
        ));
        assert!(matches!(
            raw("rgb8", 0, 1, 0, vec![]).check(),
            Err(FrameError::Size { .. })
        ));
        assert!(matches!(
            raw("rgb8", 10_000, 10_000, 30_000, vec![0; 10]).check(),
            Err(FrameError::Size { .. })
        ));
        assert!(matches!(
            raw("rgb8", 2, 1, 5, vec![0; 5]).check(),
            Err(FrameError::Step { .. })
        ));
        for length in [0, 5, 7] {
            assert!(matches!(
                raw("rgb8", 2, 1, 6, vec![0; length]).check(),
                Err(FrameError::Length { .. })
            ));
        }
    }

    #[test]
    fn a_damaged_jpeg_is_refused_and_a_whole_one_is_not() {
        let mut jpeg = Vec::new();
        RgbImage::from_pixel(16, 16, image::Rgb([200, 30, 30]))
            .write_to(&mut Cursor::new(&mut jpeg), ImageFormat::Jpeg)
            .unwrap();
        let compressed = |data: Vec<u8>| CameraImage {
            stamp_ns: 0,
            frame_id: String::new(),
            data: ImageData::Compressed {
                format: "jpeg".to_string(),
                data,
            },
        };
        let whole = compressed(jpeg.clone()).decode().unwrap();
        assert!(whole.pixels().all(|p| p[0] > 180 && p[1] < 60));
        assert!(compressed(jpeg[..jpeg.len() / 2].to_vec())
            .decode()
            .is_err());
        assert!(compressed(Vec::new()).check().is_err());
        assert!(compressed(b"GIF89a".to_vec()).check().is_err());
    }
}
