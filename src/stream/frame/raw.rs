//! Raw images: what their fields promise, and their rows in RGB.

use std::sync::Once;

use pulp::{Arch, NullaryFnOnce};

use super::{check_size, FrameError};
use crate::model::preprocess::picture::{Picture, PlanarRow};

/// The pixel formats that are understood, all of 8 bits a channel, so that the byte order of a message has no meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Rgb,
    Bgr,
    Rgba,
    Bgra,
    Mono,
    /// Pairs of pixels as U, Y, V, Y.
    Uyvy,
    /// Pairs of pixels as Y, U, Y, V.
    Yuyv,
    /// A plane of Y, then one of U, V pairs at half the width and height.
    Nv12,
    /// The same with V before U.
    Nv21,
}

/// Names as in sensor_msgs/image_encodings.hpp.
pub const ENCODINGS: &str =
    "rgb8, bgr8, rgba8, bgra8, mono8, yuv422 (uyvy), yuv422_yuy2 (yuyv), nv12 or nv21";

/// The encodings of OpenCV's types, which do not say what the channels are, with what they are taken for: the order that OpenCV has.
const UNNAMED: [(&str, &str, Encoding); 3] = [
    ("8UC1", "mono8", Encoding::Mono),
    ("8UC3", "bgr8", Encoding::Bgr),
    ("8UC4", "bgra8", Encoding::Bgra),
];

impl Encoding {
    fn parse(name: &str) -> Result<Self, FrameError> {
        Ok(match name {
            "rgb8" => Self::Rgb,
            "bgr8" => Self::Bgr,
            "rgba8" => Self::Rgba,
            "bgra8" => Self::Bgra,
            "mono8" => Self::Mono,
            "yuv422" | "uyvy" => Self::Uyvy,
            "yuv422_yuy2" | "yuyv" => Self::Yuyv,
            "nv12" => Self::Nv12,
            "nv21" => Self::Nv21,
            other => return Self::unnamed(other),
        })
    }

    fn unnamed(name: &str) -> Result<Self, FrameError> {
        static SAID: Once = Once::new();
        let known = UNNAMED.iter().find(|(unnamed, ..)| *unnamed == name);
        let (_, taken_for, encoding) =
            known.ok_or_else(|| FrameError::Encoding(name.to_string()))?;
        SAID.call_once(|| {
            tracing::warn!(
                "image encoding {name} does not say what its channels are: taken for {taken_for}"
            );
        });
        Ok(*encoding)
    }

    /// Bytes of a row of the picture's width, without padding.
    fn row_bytes(self, width: u32) -> u64 {
        u64::from(width)
            * match self {
                Self::Mono | Self::Nv12 | Self::Nv21 => 1,
                Self::Uyvy | Self::Yuyv => 2,
                Self::Rgb | Self::Bgr => 3,
                Self::Rgba | Self::Bgra => 4,
            }
    }

    /// Rows of `step` bytes that the data of `height` rows of pixels takes.
    fn rows(self, height: u32) -> u64 {
        let height = u64::from(height);
        match self {
            Self::Nv12 | Self::Nv21 => height + height / 2,
            _ => height,
        }
    }

    /// Colour shared by pairs of pixels needs whole pairs.
    fn fits(self, width: u32, height: u32) -> bool {
        match self {
            Self::Uyvy | Self::Yuyv => width.is_multiple_of(2),
            Self::Nv12 | Self::Nv21 => width.is_multiple_of(2) && height.is_multiple_of(2),
            _ => true,
        }
    }
}

/// Bytes of a row and number of rows of a raw image without padding; `None` if the encoding is unknown.
pub fn layout(encoding: &str, width: u32, height: u32) -> Option<(u64, u64)> {
    let encoding = Encoding::parse(encoding).ok()?;
    Some((encoding.row_bytes(width), encoding.rows(height)))
}

/// A checked raw image.
#[derive(Debug, Clone, Copy)]
pub struct RawPicture<'a> {
    encoding: Encoding,
    width: usize,
    height: usize,
    step: usize,
    data: &'a [u8],
}

/// Height of the picture and bytes of a row of Y, of an image of two planes (nv12, nv21) with so much data.
///
/// Its `step` is the length of a row of Y and its `height` the picture's, but not every driver's are: a `step` can be the bytes of all
/// planes by row (the data's length divided by the height), or two bytes a pixel, which Jazzy's `numChannels` makes of nv21, and a
/// `height` can count the rows of colours. Where the data is too short for the fields as they should be and just right for those, these
/// are meant.
fn planes((width, height): (u32, u32), step: u32, length: usize) -> (u32, u32) {
    let (w, h, s) = (u64::from(width), u64::from(height), u64::from(step));
    let length = length as u64;
    if length >= s * (h + h / 2) || length != s * h {
        return (height, step);
    }
    if 2 * s == 3 * w || s == 2 * w {
        (height, width)
    } else if 2 * s > 3 * w && step.is_multiple_of(3) {
        (height, step / 3 * 2)
    } else if height.is_multiple_of(3) {
        (height / 3 * 2, step)
    } else {
        (height, step)
    }
}

impl<'a> RawPicture<'a> {
    /// Checks that the data is at least what the other fields promise; what lies behind it is left alone.
    pub fn new(
        encoding: &str,
        (width, height): (u32, u32),
        step: u32,
        data: &'a [u8],
    ) -> Result<Self, FrameError> {
        let known = Encoding::parse(encoding)?;
        check_size((width, height))?;
        let (height, step) = match known {
            Encoding::Nv12 | Encoding::Nv21 => planes((width, height), step, data.len()),
            _ => (height, step),
        };
        if !known.fits(width, height) {
            return Err(FrameError::Odd {
                width,
                height,
                encoding: encoding.to_string(),
            });
        }
        let row = known.row_bytes(width);
        if u64::from(step) < row {
            return Err(FrameError::Step {
                step,
                expected: row,
                width,
                encoding: encoding.to_string(),
            });
        }
        let rows = known.rows(height);
        let expected = u64::from(step) * rows;
        if (data.len() as u64) < expected {
            return Err(FrameError::Length {
                length: data.len(),
                expected,
                rows,
                step,
            });
        }
        Ok(Self {
            encoding: known,
            width: width as usize,
            height: height as usize,
            step: step as usize,
            data,
        })
    }

    /// Whether it has no colours.
    pub fn is_grey(&self) -> bool {
        self.encoding == Encoding::Mono
    }

    /// A row of two planes, the second of pairs that `colours` brings into the order of U, V.
    fn read_planes(&self, y: usize, row: &mut PlanarRow, colours: impl Fn(&[u8; 2]) -> (u8, u8)) {
        let shared = self.line(self.height + y / 2).as_chunks::<2>().0;
        let pairs = self.line(y).as_chunks::<2>().0.iter().zip(shared);
        let pairs = pairs.map(|(luma, shared)| {
            let (u, v) = colours(shared);
            (*luma, u, v)
        });
        Arch::new().dispatch(WritePairs { pairs, row });
    }

    fn line(&self, row: usize) -> &'a [u8] {
        &self.data[row * self.step..][..self.step]
    }
}

impl Picture for RawPicture<'_> {
    fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    fn read_row(&self, y: usize, row: &mut PlanarRow) {
        let line = self.line(y);
        match self.encoding {
            Encoding::Rgb => row.unpack::<3>(line, [0, 1, 2]),
            Encoding::Bgr => row.unpack::<3>(line, [2, 1, 0]),
            Encoding::Rgba => row.unpack::<4>(line, [0, 1, 2]),
            Encoding::Bgra => row.unpack::<4>(line, [2, 1, 0]),
            Encoding::Mono => row.unpack::<1>(line, [0, 0, 0]),
            Encoding::Uyvy => {
                let pairs = line
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|p| ([p[1], p[3]], p[0], p[2]));
                Arch::new().dispatch(WritePairs { pairs, row });
            }
            Encoding::Yuyv => {
                let pairs = line
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|p| ([p[0], p[2]], p[1], p[3]));
                Arch::new().dispatch(WritePairs { pairs, row });
            }
            Encoding::Nv12 => self.read_planes(y, row, |&[u, v]| (u, v)),
            Encoding::Nv21 => self.read_planes(y, row, |&[v, u]| (u, v)),
        }
    }
}

/// Writes pairs of pixels (two Y, U, V) as RGB, with the widest instructions that this machine has.
struct WritePairs<'a, I> {
    pairs: I,
    row: &'a mut PlanarRow,
}

impl<I: Iterator<Item = ([u8; 2], u8, u8)>> NullaryFnOnce for WritePairs<'_, I> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let PlanarRow { red, green, blue } = self.row;
        let red = red.as_chunks_mut::<2>().0;
        let green = green.as_chunks_mut::<2>().0;
        let blue = blue.as_chunks_mut::<2>().0;
        let planes = red.iter_mut().zip(green).zip(blue);
        for (((red, green), blue), (luma, u, v)) in planes.zip(self.pairs) {
            let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
            let tint = [V_TO_RED * v, U_TO_GREEN * u + V_TO_GREEN * v, U_TO_BLUE * u];
            for i in 0..2 {
                let grey = (i32::from(luma[i]) - 16).max(0) * LUMA + HALF;
                red[i] = to_level(grey + tint[0]);
                green[i] = to_level(grey + tint[1]);
                blue[i] = to_level(grey + tint[2]);
            }
        }
    }
}

/// ITU-R BT.601, video range (Y 16 to 235, U and V 16 to 240), which is what OpenCV's conversions assume and cv_bridge gives
/// with them: 1.164, 1.596, -0.391, -0.813 and 2.018 with 20 fractional bits.
const YUV_BITS: u32 = 20;
const HALF: i32 = 1 << (YUV_BITS - 1);
const LUMA: i32 = 1_220_542;
const V_TO_RED: i32 = 1_673_527;
const U_TO_GREEN: i32 = -409_993;
const V_TO_GREEN: i32 = -852_492;
const U_TO_BLUE: i32 = 2_116_026;

#[inline(always)]
fn to_level(value: i32) -> i32 {
    (value >> YUV_BITS).clamp(0, 255)
}
