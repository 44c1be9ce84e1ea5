//! Bags as recorders really leave them.
//!
//! - this file: bags to read
//! - `order`: split, unordered, not closed and damaged files
//! - `formats`: types, compression by rosbag2 itself, sqlite3, files that are no bag
//! - `choice`: which topic is taken, and what `inf_mllm replay` makes of it

mod choice;
mod formats;
mod order;

use std::fs;
use std::path::{Path, PathBuf};

use byteorder::{BigEndian, ByteOrder, LittleEndian};
use inf_mllm::stream::bag::Bag;
use inf_mllm::stream::{CameraImage, ImageData};
use mcap::records::MessageHeader;
use mcap::{Compression, WriteOptions};
use rusqlite::Connection;
use serde::Serialize;
use tempfile::TempDir;

const TOPIC: &str = "/camera/image";
const MS: u64 = 1_000_000;
const SIDE: u32 = 12;

#[derive(Serialize)]
pub struct Header {
    pub sec: i32,
    pub nanosec: u32,
    pub frame_id: &'static str,
}

#[derive(Serialize)]
pub struct RawImage {
    pub header: Header,
    pub height: u32,
    pub width: u32,
    pub encoding: &'static str,
    pub is_bigendian: u8,
    pub step: u32,
    pub data: Vec<u8>,
}

/// An image whose stamp says which it is: number `i` of ten per second from 100 s on.
fn image(i: u32, encoding: &'static str) -> RawImage {
    let channels = match encoding {
        "16UC1" => 2,
        "mono8" => 1,
        _ => 3,
    };
    RawImage {
        header: Header {
            sec: 100 + (i / 10) as i32,
            nanosec: i % 10 * 100_000_000,
            frame_id: "camera",
        },
        height: SIDE,
        width: SIDE,
        encoding,
        is_bigendian: 0,
        step: SIDE * channels,
        data: vec![(i * 7 % 256) as u8; (SIDE * SIDE * channels) as usize],
    }
}

/// A message with its CDR header, whose second byte is the byte order `B`: 1 for little-endian.
pub fn serialized<B: ByteOrder>(image: &RawImage, order: u8) -> Vec<u8> {
    let mut bytes = vec![0, order, 0, 0];
    bytes.extend(cdr_encoding::to_vec::<_, B>(image).unwrap());
    bytes
}

fn cdr(i: u32) -> Vec<u8> {
    serialized::<LittleEndian>(&image(i, "rgb8"), 1)
}

/// Which images these are.
fn numbers(bag: &Bag) -> Vec<i64> {
    let images = bag.images().map(|image| image.unwrap());
    images.map(|image| number(&image)).collect()
}

fn number(image: &CameraImage) -> i64 {
    (image.stamp_ns / 1_000_000 - 100_000) / 100
}

/// A message: topic, time of its recording in milliseconds, and bytes.
type Message<'a> = (&'a str, u64, Vec<u8>);

/// A message of number `i` of the camera.
fn of_camera(i: u32) -> Message<'static> {
    (TOPIC, u64::from(i) * 100, cdr(i))
}

fn small_chunks() -> WriteOptions {
    WriteOptions::new().chunk_size(Some(2000))
}

/// Writes an mcap file of images.
fn write_mcap(file: &Path, options: WriteOptions, messages: &[Message<'_>]) {
    write_mcap_of("sensor_msgs/msg/Image", "cdr", file, options, messages);
}

fn write_mcap_of(
    message_type: &str,
    serialization: &str,
    file: &Path,
    options: WriteOptions,
    messages: &[Message<'_>],
) {
    let out = std::io::BufWriter::new(fs::File::create(file).unwrap());
    let mut writer = options.create(out).unwrap();
    let schema = writer.add_schema(message_type, "ros2msg", b"").unwrap();
    for (i, (topic, log_ms, data)) in messages.iter().enumerate() {
        let channel = writer
            .add_channel(schema, topic, serialization, &Default::default())
            .unwrap();
        let header = MessageHeader {
            channel_id: channel,
            sequence: i as u32,
            log_time: log_ms * MS,
            publish_time: log_ms * MS,
        };
        writer.write_to_known_channel(&header, data).unwrap();
    }
    writer.finish().unwrap();
}

/// Writes a file of rosbag2's sqlite3 plug-in, as its first releases had it or as today's have.
fn write_sqlite(file: &Path, first_release: bool, message_type: &str, messages: &[Message<'_>]) {
    let database = Connection::open(file).unwrap();
    let more = match first_release {
        true => "",
        false => ", offered_qos_profiles TEXT NOT NULL DEFAULT ''",
    };
    let tables = format!(
        "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, serialization_format TEXT NOT NULL{more});
         CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL, data BLOB NOT NULL);"
    );
    database.execute_batch(&tables).unwrap();
    for (topic, log_ms, data) in messages {
        let known = "INSERT INTO topics(name, type, serialization_format) SELECT ?1, ?2, 'cdr'
                     WHERE NOT EXISTS (SELECT 1 FROM topics WHERE name = ?1)";
        database.execute(known, (topic, message_type)).unwrap();
        let message = "INSERT INTO messages(topic_id, timestamp, data) SELECT id, ?2, ?3 FROM topics WHERE name = ?1";
        let time = (log_ms * MS) as i64;
        database.execute(message, (topic, time, data)).unwrap();
    }
}

/// A bag of sqlite3 with so many images.
pub fn write_sqlite_images(file: &Path, images: u32) {
    let messages: Vec<_> = (0..images).map(of_camera).collect();
    write_sqlite(file, false, "sensor_msgs/msg/Image", &messages);
}

fn write_metadata(folder: &Path, files: &[&str]) {
    let list: String = files.iter().map(|file| format!("    - {file}\n")).collect();
    let text =
        format!("rosbag2_bagfile_information:\n  version: 5\n  relative_file_paths:\n{list}");
    fs::write(folder.join("metadata.yaml"), text).unwrap();
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(path: &Path) -> Bag {
    Bag::open(path, None).unwrap()
}

fn refused(path: &Path, topic: Option<&str>) -> String {
    match Bag::open(path, topic) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error.to_string(),
    }
}
