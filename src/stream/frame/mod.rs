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
mod tests {
    use std::io::Cursor;

    use image::ImageFormat;

    use super::*;
    use crate::model::preprocess::picture::to_rgb_image;

    fn rgb(image: &CameraImage) -> Vec<u8> {
        to_rgb_image(&image.picture().unwrap()).into_raw()
    }

    fn raw(encoding: &str, width: u32, height: u32, step: u32, data: Vec<u8>) -> CameraImage {
        let data = ImageData::Raw {
            encoding: encoding.to_string(),
            width,
            height,
            step,
            is_bigendian: false,
            data,
        };
        CameraImage::recorded(0, "", data)
    }

    #[test]
    fn every_packed_encoding_gives_rgb_and_row_padding_is_dropped() {
        let padded = raw("rgb8", 1, 2, 5, vec![1, 2, 3, 0, 0, 4, 5, 6, 0, 0]);
        assert_eq!(rgb(&padded), [1, 2, 3, 4, 5, 6]);
        for (encoding, pixel) in [
            ("rgb8", vec![1, 2, 3]),
            ("bgr8", vec![3, 2, 1]),
            ("rgba8", vec![1, 2, 3, 99]),
            ("bgra8", vec![3, 2, 1, 99]),
        ] {
            let step = pixel.len() as u32 * 2;
            assert_eq!(
                rgb(&raw(encoding, 2, 1, step, pixel.repeat(2))),
                [1, 2, 3, 1, 2, 3],
                "{encoding}"
            );
        }
        assert_eq!(rgb(&raw("mono8", 2, 1, 2, vec![7, 9])), [7, 7, 7, 9, 9, 9]);
    }

    /// Video levels of BT.601: black is Y 16, white Y 235, and pure red, green and blue are (81, 90, 240), (145, 54, 34)
    /// and (41, 240, 110) in Y, U, V (ITU-R BT.601-7).
    #[test]
    fn every_yuv_layout_gives_the_colours_of_bt601() {
        for ([y, u, v], wanted) in [
            ([16, 128, 128], [0, 0, 0]),
            ([235, 128, 128], [255, 255, 255]),
            ([81, 90, 240], [255, 0, 0]),
            ([145, 54, 34], [0, 255, 0]),
            ([41, 240, 110], [0, 0, 255]),
        ] {
            for (encoding, height, data) in [
                ("yuv422", 1, vec![u, y, v, y]),
                ("uyvy", 1, vec![u, y, v, y]),
                ("yuv422_yuy2", 1, vec![y, u, y, v]),
                ("yuyv", 1, vec![y, u, y, v]),
                ("nv12", 2, vec![y, y, y, y, u, v]),
            ] {
                let step = if encoding == "nv12" { 2 } else { 4 };
                let got = rgb(&raw(encoding, 2, height, step, data));
                for (got, wanted) in got.iter().zip(wanted.iter().cycle()) {
                    assert!(
                        got.abs_diff(*wanted) <= 1,
                        "{encoding} of {y} {u} {v}: {got} for {wanted}"
                    );
                }
            }
        }
    }

    #[test]
    fn nv12_takes_the_colour_of_the_right_block_and_the_luma_of_each_pixel() {
        // Two blocks side by side, rows padded to 6 bytes: grey, then red with four different lumas.
        let data = [
            [50, 60, 81, 91, 0, 0],
            [70, 80, 101, 111, 0, 0],
            [128, 128, 90, 240, 0, 0],
        ]
        .concat();
        let got = rgb(&raw("nv12", 4, 2, 6, data));
        let red: Vec<u8> = got.iter().step_by(3).copied().collect();
        let blue: Vec<u8> = got.iter().skip(2).step_by(3).copied().collect();
        assert!(
            red[0] < red[1] && red[4] < red[5] && red[1] < red[4],
            "{red:?}"
        );
        assert_eq!(red[..2], blue[..2]);
        assert!(
            red[2] >= 254 && blue[2] == 0 && blue[2] < blue[7],
            "{red:?} {blue:?}"
        );
    }

    #[test]
    fn shared_colour_needs_whole_pairs() {
        for (encoding, width, height) in [
            ("yuv422", 3, 2),
            ("yuyv", 1, 1),
            ("nv12", 2, 3),
            ("nv12", 3, 2),
        ] {
            let image = raw(encoding, width, height, 8, vec![0; 64]);
            assert!(
                matches!(image.check(), Err(FrameError::Odd { .. })),
                "{encoding}"
            );
        }
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
        for length in [0, 5] {
            assert!(matches!(
                raw("rgb8", 2, 1, 6, vec![0; length]).check(),
                Err(FrameError::Length { .. })
            ));
        }
        // What a driver leaves behind the rows is not looked at.
        assert!(raw("rgb8", 2, 1, 6, vec![0; 7]).check().is_ok());
    }

    #[test]
    fn a_damaged_jpeg_is_refused_and_a_whole_one_is_not() {
        let mut jpeg = Vec::new();
        RgbImage::from_pixel(16, 16, image::Rgb([200, 30, 30]))
            .write_to(&mut Cursor::new(&mut jpeg), ImageFormat::Jpeg)
            .unwrap();
        let compressed = |data: Vec<u8>| {
            let format = "jpeg".to_string();
            CameraImage::recorded(0, "", ImageData::Compressed { format, data })
        };
        let whole = rgb(&compressed(jpeg.clone()));
        assert!(whole.chunks_exact(3).all(|p| p[0] > 180 && p[1] < 60));
        assert!(compressed(jpeg[..jpeg.len() / 2].to_vec())
            .picture()
            .is_err());
        assert!(compressed(Vec::new()).check().is_err());
        assert!(compressed(b"GIF89a".to_vec()).check().is_err());
    }
}
