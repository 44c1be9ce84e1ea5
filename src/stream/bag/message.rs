//! A serialised message to an image.

use std::borrow::Cow;
use std::io::Read;

use byteorder::{BigEndian, ByteOrder, LittleEndian};
use serde::Deserialize;

use super::files::ZSTD_MAGIC;
use crate::stream::frame::{CameraImage, ImageData};

pub const RAW: &str = "sensor_msgs/msg/Image";
pub const COMPRESSED: &str = "sensor_msgs/msg/CompressedImage";
/// Length of the header in front of every CDR message, whose second byte tells the byte order.
const CDR_HEADER: usize = 4;
/// The largest message that is decompressed, bytes: more than the largest picture has.
const MAX_BYTES: u64 = 512 << 20;

/// The types of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Raw,
    Compressed,
}

impl Kind {
    /// Of a type's name, as ROS 2 has it or without `msg`, as its first recorders wrote it.
    pub fn of(name: &str) -> Option<Self> {
        match name {
            RAW | "sensor_msgs/Image" => Some(Self::Raw),
            COMPRESSED | "sensor_msgs/CompressedImage" => Some(Self::Compressed),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct Header {
    sec: i32,
    nanosec: u32,
    frame_id: String,
}

#[derive(Deserialize)]
struct RawImage {
    header: Header,
    height: u32,
    width: u32,
    encoding: String,
    is_bigendian: u8,
    step: u32,
    #[serde(with = "serde_bytes")]
    data: Vec<u8>,
}

#[derive(Deserialize)]
struct CompressedImage {
    header: Header,
    format: String,
    #[serde(with = "serde_bytes")]
    data: Vec<u8>,
}

/// The image of a message that was recorded at that time, nanoseconds.
pub fn decode(kind: Kind, bytes: &[u8], recorded_ns: i64) -> Result<CameraImage, String> {
    let bytes = unpacked(bytes)?;
    let (header, data) = match bytes.split_at_checked(CDR_HEADER) {
        Some(([0, 1, ..], body)) => read::<LittleEndian>(kind, body)?,
        Some(([0, 0, ..], body)) => read::<BigEndian>(kind, body)?,
        _ => {
            let beginning = &bytes[..bytes.len().min(CDR_HEADER)];
            return Err(format!("begins with {beginning:02x?}, expected CDR"));
        }
    };
    Ok(CameraImage {
        camera: 0,
        stamp_ns: i64::from(header.sec) * 1_000_000_000 + i64::from(header.nanosec),
        arrival_ns: recorded_ns,
        frame_id: header.frame_id,
        data,
    })
}

/// A message as it was before rosbag2 compressed it by itself (`compression_mode: MESSAGE`).
fn unpacked(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    if !bytes.starts_with(ZSTD_MAGIC) {
        return Ok(Cow::Borrowed(bytes));
    }
    let failed = |e: std::io::Error| format!("cannot be decompressed: {e}");
    let reader = zstd::stream::read::Decoder::with_buffer(bytes).map_err(failed)?;
    let mut message = Vec::new();
    let length = reader.take(MAX_BYTES + 1).read_to_end(&mut message);
    match length.map_err(failed)? as u64 > MAX_BYTES {
        true => Err(format!("is more than {MAX_BYTES} bytes decompressed")),
        false => Ok(Cow::Owned(message)),
    }
}

fn read<B: ByteOrder>(kind: Kind, body: &[u8]) -> Result<(Header, ImageData), String> {
    match kind {
        Kind::Raw => {
            let (image, _) =
                cdr_encoding::from_bytes::<RawImage, B>(body).map_err(|e| e.to_string())?;
            let data = ImageData::Raw {
                encoding: image.encoding,
                width: image.width,
                height: image.height,
                step: image.step,
                is_bigendian: image.is_bigendian != 0,
                data: image.data,
            };
            Ok((image.header, data))
        }
        Kind::Compressed => {
            let (image, _) =
                cdr_encoding::from_bytes::<CompressedImage, B>(body).map_err(|e| e.to_string())?;
            let data = ImageData::Compressed {
                format: image.format,
                data: image.data,
            };
            Ok((image.header, data))
        }
    }
}
