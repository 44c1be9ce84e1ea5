//! Bags of rosbag2's sqlite3 plug-in.

use std::fmt::Write;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::message::Kind;
use super::topics::Topic;
use super::{Place, Recorded};

pub struct SqliteFile(Connection);

impl SqliteFile {
    pub fn open(path: &Path) -> Result<Self, String> {
        // A recorder that was killed may have left a write-ahead log, which is then part of the bag. Without one the file is opened as
        // one that nobody writes to, as SQLite would make files beside it otherwise, which a read-only folder does not allow.
        let log = path.as_os_str().to_string_lossy().into_owned() + "-wal";
        let has_log = std::fs::metadata(log).is_ok_and(|log| log.len() > 0);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = match has_log {
            true => Connection::open_with_flags(path, flags),
            false => {
                let address = format!("file:{}?immutable=1", escaped(path));
                Connection::open_with_flags(address, flags | OpenFlags::SQLITE_OPEN_URI)
            }
        };
        connection.map(Self).map_err(|e| e.to_string())
    }

    pub fn index(&mut self) -> Result<Vec<Topic>, String> {
        self.topics()
            .map_err(|e| format!("no bag of rosbag2 can be read from it: {e}"))
    }

    fn topics(&self) -> rusqlite::Result<Vec<Topic>> {
        let columns = "SELECT id, name, type, serialization_format FROM topics";
        let mut query = self.0.prepare(columns)?;
        let rows = query.query_map([], |row| {
            let topic = Topic {
                name: row.get(1)?,
                message_type: row.get(2)?,
                serialization: row.get(3)?,
                messages: Vec::new(),
            };
            Ok((row.get(0)?, topic))
        })?;
        let mut topics = Vec::new();
        for row in rows {
            let (id, mut topic) = row?;
            if Kind::of(&topic.message_type).is_some() {
                topic.messages = self.messages(id)?;
            }
            topics.push(topic);
        }
        Ok(topics)
    }

    /// The messages of a topic, as far as the file can be read.
    fn messages(&self, topic: i64) -> rusqlite::Result<Vec<Recorded>> {
        let columns = "SELECT timestamp, id FROM messages WHERE topic_id = ?1";
        let mut query = self.0.prepare(columns)?;
        let rows = query.query_map([topic], |row| {
            let at = row.get::<_, i64>(1)?.cast_unsigned();
            Ok((row.get(0)?, Place { chunk: None, at }))
        })?;
        let mut messages = Vec::new();
        for row in rows {
            match row {
                Ok(message) => messages.push(message),
                // A row that is no message of rosbag2.
                Err(rusqlite::Error::InvalidColumnType(..)) => {}
                Err(error) => {
                    let read = messages.len();
                    tracing::warn!("bag file is damaged behind {read} messages: {error}");
                    break;
                }
            }
        }
        Ok(messages)
    }

    pub fn read(&mut self, place: Place) -> Result<Vec<u8>, String> {
        let data = "SELECT data FROM messages WHERE id = ?1";
        let id = place.at.cast_signed();
        self.0
            .query_row(data, [id], |row| row.get(0))
            .map_err(|e| e.to_string())
    }
}

/// A path as it stands in a URI.
fn escaped(path: &Path) -> String {
    let mut escaped = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                escaped.push(char::from(*byte));
            }
            other => {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "%{other:02X}");
            }
        }
    }
    escaped
}
