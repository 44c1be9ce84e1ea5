//! Images out of a rosbag2 directory of mcap files, without ROS.

use std::path::{Path, PathBuf};

use byteorder::LittleEndian;
use mcap::MessageStream;
use memmap2::Mmap;
use serde::Deserialize;

use super::frame::{CameraImage, ImageData};

const RAW: &str = "sensor_msgs/msg/Image";
const COMPRESSED: &str = "sensor_msgs/msg/CompressedImage";
/// Length of the header in front of every CDR message.
const CDR_HEADER: usize = 4;

#[derive(Debug, thiserror::Error)]
#[error("bag {path}: {what}")]
pub struct BagError {
    pub path: PathBuf,
    pub what: String,
}

/// A recorded camera topic.
pub struct Bag {
    files: Vec<(PathBuf, Mmap)>,
    topic: String,
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

impl Bag {
    /// Opens a bag directory, or one mcap file; `topic` none takes the first image topic.
    pub fn open(path: &Path, topic: Option<&str>) -> Result<Self, BagError> {
        let fail = |what: String| BagError {
            path: path.to_path_buf(),
            what,
        };
        let mut names = if path.is_dir() {
            std::fs::read_dir(path)
                .map_err(|e| fail(e.to_string()))?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|name| name.extension().is_some_and(|ext| ext == "mcap"))
                .collect()
        } else {
            vec![path.to_path_buf()]
        };
        names.sort();
        if names.is_empty() {
            return Err(fail("no .mcap file in it".to_string()));
        }
        let mut files = Vec::new();
        for name in names {
            let file = std::fs::File::open(&name).map_err(|e| fail(e.to_string()))?;
            // SAFETY: mapped for reading; a bag must not be written to while it is replayed.
            let bytes = unsafe { Mmap::map(&file) }.map_err(|e| fail(e.to_string()))?;
            files.push((name, bytes));
        }
        let mut bag = Self {
            files,
            topic: topic.unwrap_or_default().to_string(),
        };
        if topic.is_none() {
            bag.topic = bag
                .first_image_topic()?
                .ok_or_else(|| fail(format!("no topic of type {RAW} or {COMPRESSED}")))?;
        }
        Ok(bag)
    }

    /// The topic that [`Self::images`] reads.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    fn first_image_topic(&self) -> Result<Option<String>, BagError> {
        for (file, bytes) in &self.files {
            for message in messages(file, bytes)? {
                let message = message?;
                if image_type(&message).is_some() {
                    return Ok(Some(message.channel.topic.clone()));
                }
            }
        }
        Ok(None)
    }

    /// Number of messages on the topic, as far as the bag can be read; none of them is decoded.
    pub fn count(&self) -> usize {
        let readable = |(file, bytes): &'_ (PathBuf, Mmap)| {
            messages(file, bytes).map_or(0, |messages| {
                messages
                    .flatten()
                    .filter(|message| message.channel.topic == self.topic)
                    .count()
            })
        };
        self.files.iter().map(readable).sum()
    }

    /// The images of the topic in recorded order. A message that is no image is an error of its own; reading goes on.
    pub fn images(&self) -> impl Iterator<Item = Result<CameraImage, BagError>> + '_ {
        self.files.iter().flat_map(move |(file, bytes)| {
            let (opened, failed) = match messages(file, bytes) {
                Ok(messages) => (Some(messages), None),
                Err(error) => (None, Some(Err(error))),
            };
            let images = opened
                .into_iter()
                .flatten()
                .filter_map(move |message| match message {
                    Err(error) => Some(Err(error)),
                    Ok(message) if message.channel.topic != self.topic => None,
                    Ok(message) => Some(decode(file, &message)),
                });
            failed.into_iter().chain(images)
        })
    }
}

fn messages<'a>(
    file: &'a Path,
    bytes: &'a [u8],
) -> Result<impl Iterator<Item = Result<mcap::Message<'a>, BagError>> + 'a, BagError> {
    let fail = move |e: mcap::McapError| BagError {
        path: file.to_path_buf(),
        what: e.to_string(),
    };
    Ok(MessageStream::new(bytes)
        .map_err(fail)?
        .map(move |message| message.map_err(fail)))
}

/// True for a raw image, false for a compressed one, none for anything else.
fn image_type(message: &mcap::Message<'_>) -> Option<bool> {
    let schema = message.channel.schema.as_ref()?;
    match schema.name.as_str() {
        RAW => Some(true),
        COMPRESSED => Some(false),
        _ => None,
    }
}

fn decode(file: &Path, message: &mcap::Message<'_>) -> Result<CameraImage, BagError> {
    let fail = |what: String| BagError {
        path: file.to_path_buf(),
        what: format!(
            "message {} of {}: {what}",
            message.sequence, message.channel.topic
        ),
    };
    let Some(raw) = image_type(message) else {
        let schema = message.channel.schema.as_ref();
        return Err(fail(format!(
            "type is {}, expected {RAW} or {COMPRESSED}",
            schema.map_or("unknown", |schema| schema.name.as_str())
        )));
    };
    let body = match message.data.get(..CDR_HEADER) {
        Some([0, 1, _, _]) => &message.data[CDR_HEADER..],
        _ => return Err(fail("not little-endian CDR".to_string())),
    };
    let (header, data) = if raw {
        let (image, _) = cdr_encoding::from_bytes::<RawImage, LittleEndian>(body)
            .map_err(|e| fail(e.to_string()))?;
        let data = ImageData::Raw {
            encoding: image.encoding,
            width: image.width,
            height: image.height,
            step: image.step,
            is_bigendian: image.is_bigendian != 0,
            data: image.data,
        };
        (image.header, data)
    } else {
        let (image, _) = cdr_encoding::from_bytes::<CompressedImage, LittleEndian>(body)
            .map_err(|e| fail(e.to_string()))?;
        let data = ImageData::Compressed {
            format: image.format,
            data: image.data,
        };
        (image.header, data)
    };
    let stamp_ns = i64::from(header.sec) * 1_000_000_000 + i64::from(header.nanosec);
    Ok(CameraImage {
        arrival_ns: i64::try_from(message.log_time).unwrap_or(i64::MAX),
        ..CameraImage::recorded(stamp_ns, &header.frame_id, data)
    })
}
