//! Camera messages to pictures, with every check that a message from outside needs.
//!
//! - `raw`: sensor_msgs/Image, read row by row where it lies
//! - `compressed`: sensor_msgs/CompressedImage
//! - `jpeg`: a JPEG's headers, and whether its data is all there
//! - `huffman`: the tables of a JPEG that has none

mod compressed;
mod huffman;
mod jpeg;
mod raw;

use image::RgbImage;

pub use compressed::decode;
pub use raw::layout;
use raw::{RawPicture, ENCODINGS};

use crate::excerpt::excerpt;
use crate::model::preprocess::picture::{Picture, PlanarRow, MAX_ASPECT, MAX_SIDE};

/// The largest picture that is accepted, pixels: an 8K camera's (7680 x 4320) and a little more.
pub const MAX_PIXELS: u64 = 36_000_000;

/// A camera message, free of ROS types.
#[derive(Debug, Clone)]
pub struct CameraImage {
    /// Index of its camera in the parameter `cameras`; 0 where there is but one.
    pub camera: usize,
    /// The header's stamp, nanoseconds.
    pub stamp_ns: i64,
    /// When it arrived, nanoseconds on the node's clock (ROS time, which stamps should be of as well); a recorded one: when it was
    /// recorded.
    pub arrival_ns: i64,
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
    #[error("image encoding is {:?}, expected {ENCODINGS}", excerpt(.0))]
    Encoding(String),
    #[error(
        "image size is {width} x {height}, expected sides of 1 to {MAX_SIDE} pixels, none more than {MAX_ASPECT} times the other, and at most {MAX_PIXELS} pixels"
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
    #[error(
        "image data is {length} bytes, expected at least {expected} ({rows} rows of {step} bytes)"
    )]
    Length {
        length: usize,
        expected: u64,
        rows: u64,
        step: u32,
    },
    #[error(
        "image is of camera number {camera}, expected less than {count}, the number of cameras"
    )]
    Camera { camera: usize, count: usize },
    #[error("image size is {width} x {height}, expected even numbers: {encoding} shares colour between neighbours")]
    Odd {
        width: u32,
        height: u32,
        encoding: String,
    },
    #[error("image stamp is {} s, expected {} s or later, the newest frame's: it was overtaken", *.stamp_ns as f64 * 1e-9, *.newest_ns as f64 * 1e-9)]
    OutOfOrder { stamp_ns: i64, newest_ns: i64 },
    #[error("image stamp is {} s, but the other images are at {} s: a single strange stamp, the first one of a clock that jumps, or stamps of two clocks (two publishers, or a driver that stamps some images otherwise), and it is left out", *.stamp_ns as f64 * 1e-9, *.newest_ns as f64 * 1e-9)]
    OtherClock { stamp_ns: i64, newest_ns: i64 },
    #[error("compressed image is neither jpeg nor png: {0}")]
    Format(String),
    #[error("compressed image is a {kind} of {bits} bits a channel{}, expected 8 bits", said(.format))]
    Bits {
        kind: &'static str,
        bits: u8,
        format: String,
    },
    #[error("compressed image cannot be decoded: {0}")]
    Corrupt(String),
}

/// What a message says of its data, behind what the data is; nothing where it says nothing.
fn said(format: &str) -> String {
    match format {
        "" => String::new(),
        format => format!(", the message says {:?}", excerpt(format)),
    }
}

impl FrameError {
    /// The kind of refusal, for counting.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Encoding(_) | Self::Bits { .. } => "encoding",
            Self::Size { .. } | Self::Odd { .. } => "size",
            Self::Step { .. } => "step",
            Self::Length { .. } => "length",
            Self::OutOfOrder { .. } => "out_of_order",
            Self::OtherClock { .. } => "other_clock",
            Self::Format(_) => "format",
            Self::Corrupt(_) => "corrupt",
            Self::Camera { .. } => "camera",
        }
    }
}

/// Checks the sides of a picture before anything is done with it.
fn check_size((width, height): (u32, u32)) -> Result<(), FrameError> {
    let (short, long) = (width.min(height), width.max(height));
    let fits = short > 0
        && long as usize <= MAX_SIDE
        && u64::from(long) <= u64::from(short) * MAX_ASPECT as u64
        && u64::from(width) * u64::from(height) <= MAX_PIXELS;
    match fits {
        true => Ok(()),
        false => Err(FrameError::Size { width, height }),
    }
}

/// A picture ready to be read: a raw one where it lies in the message, a compressed one decoded.
#[derive(Debug)]
pub enum CameraPicture<'a> {
    Raw(RawPicture<'a>),
    Decoded(RgbImage),
}

impl Picture for CameraPicture<'_> {
    fn size(&self) -> (usize, usize) {
        match self {
            Self::Raw(picture) => picture.size(),
            Self::Decoded(picture) => Picture::size(picture),
        }
    }

    fn read_row(&self, y: usize, row: &mut PlanarRow) {
        match self {
            Self::Raw(picture) => picture.read_row(y, row),
            Self::Decoded(picture) => picture.read_row(y, row),
        }
    }
}

impl CameraImage {
    /// Its stamps and its camera; the pixels are gone.
    pub fn without_data(&self) -> Self {
        Self {
            frame_id: self.frame_id.clone(),
            data: ImageData::Compressed {
                format: String::new(),
                data: Vec::new(),
            },
            ..*self
        }
    }

    /// An image that arrives at the time of its stamp.
    pub fn recorded(stamp_ns: i64, frame_id: &str, data: ImageData) -> Self {
        Self {
            camera: 0,
            stamp_ns,
            arrival_ns: stamp_ns,
            frame_id: frame_id.to_string(),
            data,
        }
    }

    /// Gives an image without a stamp the time of its arrival, or of its receipt where the node has no clock; true if it had none.
    pub fn date(&mut self, received_ns: i64) -> bool {
        let undated = self.stamp_ns == 0;
        if undated {
            self.stamp_ns = match self.arrival_ns {
                0 => received_ns,
                arrival_ns => arrival_ns,
            };
        }
        undated
    }

    /// Bytes of pixels.
    pub fn bytes(&self) -> usize {
        match &self.data {
            ImageData::Raw { data, .. } | ImageData::Compressed { data, .. } => data.len(),
        }
    }

    /// The checks that cost nothing: what a raw image's fields promise, and what the header of a compressed one says. One that cannot be
    /// read is left to decoding.
    pub fn check(&self) -> Result<(), FrameError> {
        match self.is_grey() {
            Ok(_) | Err(FrameError::Corrupt(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the picture has no colours, by fields and header.
    pub fn is_grey(&self) -> Result<bool, FrameError> {
        match &self.data {
            ImageData::Raw { .. } => match self.picture()? {
                CameraPicture::Raw(picture) => Ok(picture.is_grey()),
                CameraPicture::Decoded(_) => Ok(false),
            },
            ImageData::Compressed { format, data } => Ok(compressed::head(format, data)?.is_grey),
        }
    }

    /// The picture. A compressed one is decoded here.
    pub fn picture(&self) -> Result<CameraPicture<'_>, FrameError> {
        match &self.data {
            ImageData::Raw {
                encoding,
                width,
                height,
                step,
                data,
                ..
            } => RawPicture::new(encoding, (*width, *height), *step, data).map(CameraPicture::Raw),
            ImageData::Compressed { format, data } => {
                compressed::decode(format, data).map(CameraPicture::Decoded)
            }
        }
    }
}

#[cfg(test)]
mod tests;
