//! MCAP files, closed ones and those of a recorder that was killed.
//!
//! The file is mapped. Its records are walked through once, for which chunks are decompressed only where no message index stands behind
//! them or their channels are not known yet; after that a message's chunk is decompressed when the message is read.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use mcap::records::{op, Record};
use mcap::{parse_record, Summary};
use memmap2::Mmap;

use super::message::Kind;
use super::topics::Topic;
use super::{Place, Recorded};
use crate::files;

pub use mcap::MAGIC as MCAP_MAGIC;

/// In front of a record: what it is (a byte) and its length (eight).
const RECORD_HEAD: usize = 9;
/// In front of a message's data: channel, sequence, times of recording and of publication.
const MESSAGE_HEAD: usize = 22;
/// The largest chunk that is decompressed, bytes.
const MAX_CHUNK: u64 = 1 << 30;
/// Decompressed chunks are kept up to this many bytes, but always one: messages that are next to each other in time lie in the same
/// chunk or in neighbours.
const KEPT_BYTES: usize = 64 << 20;

pub struct McapFile {
    path: PathBuf,
    bytes: Mmap,
    /// Decompressed chunks by where they begin in the file, the last used at the end.
    chunks: Vec<(NonZeroU64, Vec<u8>)>,
}

impl McapFile {
    pub fn open(path: &Path) -> Result<Self, String> {
        Ok(Self {
            path: path.to_path_buf(),
            bytes: files::map(path).map_err(|e| e.to_string())?,
            chunks: Vec::new(),
        })
    }

    /// The file's topics with their images; a file that was not closed and damages are said in the log.
    pub fn index(&mut self) -> Result<Vec<Topic>, String> {
        let mut index = Index::default();
        if let Ok(Some(summary)) = Summary::read(&self.bytes) {
            index.learn_summary(&summary);
        }
        let closed = index.walk(&self.bytes);
        let file = self.path.display();
        if !closed {
            tracing::warn!(
                "bag file {file} ends in the middle, as of a recorder that was killed: what is whole in it is used"
            );
        }
        if let Some(first) = index.damages.first() {
            let count = index.damages.len();
            tracing::warn!("bag file {file} has {count} damages, the first: {first}");
        }
        Ok(index.topics())
    }

    /// The bytes of a message.
    pub fn read(&mut self, place: Place) -> Result<Vec<u8>, String> {
        let Some(start) = place.chunk else {
            return message(&self.bytes, place.at);
        };
        if let Some(found) = self.chunks.iter().position(|(chunk, _)| *chunk == start) {
            let chunk = self.chunks.remove(found);
            self.chunks.push(chunk);
        } else {
            let chunk = Chunk::at(&self.bytes, start)?;
            match chunk.content() {
                (Cow::Borrowed(content), _) => return message(content, place.at),
                (Cow::Owned(content), _) => self.chunks.push((start, content)),
            }
            let mut kept: usize = self.chunks.iter().map(|(_, content)| content.len()).sum();
            while kept > KEPT_BYTES && self.chunks.len() > 1 {
                kept -= self.chunks.remove(0).1.len();
            }
        }
        match self.chunks.last() {
            Some((_, content)) => message(content, place.at),
            None => Err("no chunk is open".to_string()),
        }
    }
}

/// A record of a file or of a chunk.
struct RawRecord<'a> {
    at: usize,
    op: u8,
    /// As much of it as there is.
    body: &'a [u8],
    /// All of it is there.
    whole: bool,
}

/// The record at a place; none at the end.
fn record(bytes: &[u8], at: usize) -> Option<RawRecord<'_>> {
    let (head, rest) = bytes.get(at..)?.split_first_chunk::<RECORD_HEAD>()?;
    let length = u64::from_le_bytes(*head.last_chunk()?);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    Some(RawRecord {
        at,
        op: head[0],
        body: &rest[..length.min(rest.len())],
        whole: length <= rest.len(),
    })
}

/// The records from a place on, the last of which may not be whole.
fn records(bytes: &[u8], from: usize) -> impl Iterator<Item = RawRecord<'_>> {
    let next = |last: &RawRecord<'_>| record(bytes, last.at + RECORD_HEAD + last.body.len());
    std::iter::successors(record(bytes, from), move |last| {
        last.whole.then(|| next(last)).flatten()
    })
}

/// The data of the message at a place.
fn message(bytes: &[u8], at: u64) -> Result<Vec<u8>, String> {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    match record(bytes, at) {
        Some(record) if record.op == op::MESSAGE && record.whole => {
            let data = record.body.get(MESSAGE_HEAD..);
            data.map(<[u8]>::to_vec)
                .ok_or_else(|| "is shorter than its header".to_string())
        }
        _ => Err("is not where the file's index says, or is cut off".to_string()),
    }
}

/// A chunk as it stands in the file.
struct Chunk<'a> {
    compression: &'a str,
    /// What its header says of its length, bytes.
    length: u64,
    data: &'a [u8],
}

impl<'a> Chunk<'a> {
    fn at(bytes: &'a [u8], start: NonZeroU64) -> Result<Self, String> {
        let start = usize::try_from(start.get()).unwrap_or(usize::MAX);
        match record(bytes, start) {
            Some(record) if record.op == op::CHUNK => Self::parse(record.body),
            _ => Err("its chunk is not where the file's index says".to_string()),
        }
    }

    /// From a record, which may be cut off.
    fn parse(body: &'a [u8]) -> Result<Self, String> {
        /// Times of the first and last message, 8 bytes each.
        const TIMES: usize = 16;
        let parse = || {
            let (length, rest) = body.get(TIMES..)?.split_first_chunk()?;
            let (_crc, rest) = rest.split_first_chunk::<4>()?;
            let (size, rest) = rest.split_first_chunk()?;
            let size = u32::from_le_bytes(*size) as usize;
            let (compression, rest) = rest.split_at_checked(size)?;
            let (size, rest) = rest.split_first_chunk()?;
            let size = usize::try_from(u64::from_le_bytes(*size)).unwrap_or(usize::MAX);
            Some(Self {
                compression: std::str::from_utf8(compression).ok()?,
                length: u64::from_le_bytes(*length),
                data: &rest[..size.min(rest.len())],
            })
        };
        parse().ok_or_else(|| "a chunk's header is cut off".to_string())
    }

    /// The records, as far as they can be decompressed, and what went wrong with the rest.
    fn content(&self) -> (Cow<'a, [u8]>, Option<String>) {
        let decompressor: Box<dyn Read + 'a> = match self.compression {
            "" => return (Cow::Borrowed(self.data), None),
            "zstd" => match zstd::stream::read::Decoder::with_buffer(self.data) {
                Ok(decoder) => Box::new(decoder),
                Err(error) => return (Cow::Owned(Vec::new()), Some(error.to_string())),
            },
            "lz4" => match lz4::Decoder::new(self.data) {
                Ok(decoder) => Box::new(decoder),
                Err(error) => return (Cow::Owned(Vec::new()), Some(error.to_string())),
            },
            other => {
                let problem = format!("chunk compression is {other:?}, expected zstd or lz4");
                return (Cow::Owned(Vec::new()), Some(problem));
            }
        };
        // At once what the header says, unless it is more than such data can become.
        let length = self.length.min(16 * self.data.len() as u64);
        let mut content = Vec::with_capacity(length as usize);
        let read = decompressor.take(MAX_CHUNK).read_to_end(&mut content);
        let problem = read.err().map(|e| format!("chunk decompression: {e}"));
        (Cow::Owned(content), problem)
    }
}

/// What is known of a file's messages.
#[derive(Default)]
struct Index {
    /// Names of types.
    schemas: HashMap<u16, String>,
    channels: BTreeMap<u16, Channel>,
    damages: Vec<String>,
}

struct Channel {
    topic: String,
    schema: u16,
    serialization: String,
    messages: Vec<Recorded>,
}

impl Index {
    fn learn_summary(&mut self, summary: &Summary) {
        for schema in summary.schemas.values() {
            self.schemas.insert(schema.id, schema.name.clone());
        }
        for channel in summary.channels.values() {
            let schema = channel.schema.as_ref().map_or(0, |schema| schema.id);
            self.channels.entry(channel.id).or_insert_with(|| Channel {
                topic: channel.topic.clone(),
                schema,
                serialization: channel.message_encoding.clone(),
                messages: Vec::new(),
            });
        }
    }

    /// Takes a schema or a channel from its record; `false` for any other.
    fn learn(&mut self, record: &RawRecord<'_>) -> bool {
        if !matches!(record.op, op::SCHEMA | op::CHANNEL) {
            return false;
        }
        match parse_record(record.op, record.body) {
            Ok(Record::Schema { header, .. }) => {
                self.schemas.insert(header.id, header.name);
            }
            Ok(Record::Channel(channel)) => {
                self.channels.entry(channel.id).or_insert_with(|| Channel {
                    topic: channel.topic,
                    schema: channel.schema_id,
                    serialization: channel.message_encoding,
                    messages: Vec::new(),
                });
            }
            Ok(_) => {}
            Err(error) => self.damages.push(error.to_string()),
        }
        true
    }

    /// Goes through a file; whether it was closed.
    fn walk(&mut self, bytes: &[u8]) -> bool {
        let mut chunk: Option<RawRecord<'_>> = None;
        let mut indexed = Vec::new();
        let mut closed = false;
        for record in records(bytes, MCAP_MAGIC.len()) {
            if record.op == op::MESSAGE_INDEX && record.whole && chunk.is_some() {
                indexed.push(record.body);
                continue;
            }
            if let Some(chunk) = chunk.take() {
                self.add_chunk(&chunk, &indexed);
                indexed.clear();
            }
            match record.op {
                op::CHUNK => chunk = Some(record),
                op::MESSAGE if record.whole => self.add_message(None, &record),
                op::FOOTER => {
                    closed = record.whole;
                    break;
                }
                _ if record.whole => {
                    self.learn(&record);
                }
                _ => {}
            }
        }
        if let Some(chunk) = chunk {
            self.add_chunk(&chunk, &indexed);
        }
        closed
    }

    /// Adds the messages of a chunk by the message indexes behind it, or, where these are missing, by its content.
    fn add_chunk(&mut self, chunk: &RawRecord<'_>, indexed: &[&[u8]]) {
        let Some(start) = NonZeroU64::new(chunk.at as u64) else {
            return;
        };
        let indexes = indexed
            .iter()
            .map(|body| parse_record(op::MESSAGE_INDEX, body));
        let indexes: Option<Vec<_>> = indexes
            .map(|parsed| match parsed {
                Ok(Record::MessageIndex(index)) => Some(index),
                _ => None,
            })
            .collect();
        let indexes = indexes.filter(|indexes| chunk.whole && !indexes.is_empty());
        let known = |index: &Self, id: &u16| index.channels.contains_key(id);
        let Some(indexes) = indexes else {
            return self.scan(start, chunk, true);
        };
        if !indexes.iter().all(|index| known(self, &index.channel_id)) {
            self.scan(start, chunk, false);
        }
        for index in indexes {
            let Some(messages) = self.images(index.channel_id) else {
                continue;
            };
            messages.extend(index.records.iter().map(|message| {
                let place = Place {
                    chunk: Some(start),
                    at: message.offset,
                };
                (time(message.log_time), place)
            }));
        }
    }

    /// Goes through a chunk's records for schemas and channels, and for messages if asked to.
    fn scan(&mut self, start: NonZeroU64, chunk: &RawRecord<'_>, messages: bool) {
        let chunk = match Chunk::parse(chunk.body) {
            Ok(parsed) => parsed,
            Err(damage) => return self.damages.push(damage),
        };
        let (content, damage) = chunk.content();
        self.damages.extend(damage);
        for record in records(&content, 0).filter(|record| record.whole) {
            if !self.learn(&record) && messages && record.op == op::MESSAGE {
                self.add_message(Some(start), &record);
            }
        }
    }

    fn add_message(&mut self, chunk: Option<NonZeroU64>, record: &RawRecord<'_>) {
        let body = record.body;
        let Some(channel) = body.first_chunk().map(|id| u16::from_le_bytes(*id)) else {
            return;
        };
        let logged = body.get(6..).and_then(|body| body.first_chunk());
        let Some(logged) = logged.map(|time| u64::from_le_bytes(*time)) else {
            return;
        };
        if !self.channels.contains_key(&channel) {
            return self.damages.push(format!(
                "a message of channel {channel}, which is not defined"
            ));
        }
        let at = record.at as u64;
        if let Some(messages) = self.images(channel) {
            messages.push((time(logged), Place { chunk, at }));
        }
    }

    /// The messages of a channel, if they are images.
    fn images(&mut self, channel: u16) -> Option<&mut Vec<Recorded>> {
        let channel = self.channels.get_mut(&channel)?;
        Kind::of(self.schemas.get(&channel.schema)?)?;
        Some(&mut channel.messages)
    }

    fn topics(self) -> Vec<Topic> {
        let topic = |channel: Channel| Topic {
            message_type: match self.schemas.get(&channel.schema) {
                Some(name) => name.clone(),
                None => "unknown".to_string(),
            },
            name: channel.topic,
            serialization: channel.serialization,
            messages: channel.messages,
        };
        self.channels.into_values().map(topic).collect()
    }
}

/// A time of MCAP, nanoseconds.
fn time(nanoseconds: u64) -> i64 {
    i64::try_from(nanoseconds).unwrap_or(i64::MAX)
}
