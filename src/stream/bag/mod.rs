//! Images out of a rosbag2 recording, without ROS.
//!
//! - this file: a bag's camera topics, and their images in the order of time
//! - `topics`: the topics that a bag has, and the one to take
//! - `files`: the files of a bag, their order, and their decompression
//! - `mcap`, `sqlite`: what messages a file has, and each of them
//! - `message`: a serialised message to an image
//!
//! Of a bag of any size, an index stays in memory (32 bytes for each image of the topics), and of its messages as much as the chunks hold
//! in which the next images lie.

mod files;
mod mcap;
mod message;
mod sqlite;
mod topics;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use self::files::{Listing, OpenFile};
use self::message::Kind;
use self::topics::{choose, TopicIndex};
use super::frame::CameraImage;

#[derive(Debug, thiserror::Error)]
#[error("bag {path}: {what}")]
pub struct BagError {
    pub path: PathBuf,
    pub what: String,
}

/// Where a message lies in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// MCAP: where the chunk begins in the file, bytes; none of a message outside of chunks.
    chunk: Option<std::num::NonZeroU64>,
    /// MCAP: where the message begins in the decompressed chunk, or in the file, bytes. SQLite: the message's id.
    at: u64,
}

/// A message of a file: when it was recorded, nanoseconds, and where it lies.
type Recorded = (i64, Place);

/// An image of the bag.
#[derive(Debug, Clone, Copy)]
struct Entry {
    recorded_ns: i64,
    place: Place,
    /// Number of the file.
    file: u32,
    /// Index of the camera, by the topics that were asked for.
    camera: u32,
}

/// Files held open, so that those whose times overlap are not opened again for every message.
const OPEN_FILES: usize = 4;

/// Recorded camera topics.
pub struct Bag {
    files: Vec<PathBuf>,
    /// Topic of each camera, and what its messages are.
    cameras: Vec<(String, Kind)>,
    /// In the order in which they are played.
    entries: Vec<Entry>,
    /// By number, the last used at the end.
    open: Mutex<Vec<(u32, OpenFile)>>,
}

impl Bag {
    /// Opens a bag directory, or one file of it; `topic` none takes the first image topic that can be used, one with colours if there is
    /// any. What of the files cannot be read is said in the log.
    pub fn open(path: &Path, topic: Option<&str>) -> Result<Self, BagError> {
        Self::with_topics(path, &[topic])
    }

    /// The same with a topic for each of several cameras, whose images are those of the index that the topic has here.
    pub fn of_cameras(path: &Path, topics: &[&str]) -> Result<Self, BagError> {
        let topics = topics.iter().copied().map(Some);
        Self::with_topics(path, &topics.collect::<Vec<_>>())
    }

    fn with_topics(path: &Path, wanted: &[Option<&str>]) -> Result<Self, BagError> {
        let fail = |what: String| BagError {
            path: path.to_path_buf(),
            what,
        };
        let Listing { files, ordered } = files::find(path).map_err(fail)?;
        let mut bag = Self {
            files,
            cameras: Vec::new(),
            entries: Vec::new(),
            open: Mutex::default(),
        };
        let mut topics = TopicIndex::default();
        let mut failures = Vec::new();
        for (number, file) in (0..).zip(&bag.files) {
            match bag.with_file(number, |open| open.index()) {
                Ok(found) => topics.add(number, found),
                Err(what) => {
                    tracing::warn!("bag file {}: {what}", file.display());
                    failures.push(format!("{}: {what}", file.display()));
                }
            }
        }
        if topics.is_empty() && !failures.is_empty() {
            return Err(fail(failures.join("; ")));
        }
        let mut files = Vec::new();
        for (camera, topic) in (0..).zip(wanted) {
            let image = |kind, entry: &Entry| bag.image(kind, entry);
            let mut chosen = choose(&mut topics, *topic, image).map_err(fail)?;
            for entry in chosen.entries.iter_mut().flatten() {
                entry.camera = camera;
            }
            files.append(&mut chosen.entries);
            bag.cameras.push((chosen.name, chosen.kind));
        }
        bag.entries = in_order(by_file(files), ordered);
        Ok(bag)
    }

    /// The topics that [`Self::images`] reads, with commas between them.
    pub fn topic(&self) -> String {
        let names = self.cameras.iter().map(|(name, _)| name.as_str());
        names.collect::<Vec<_>>().join(", ")
    }

    /// Number of images; none of them is decoded.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// The images of the topics in the order in which they were recorded. A message that is no image is an error of its own; reading
    /// goes on.
    pub fn images(&self) -> impl Iterator<Item = Result<CameraImage, BagError>> + '_ {
        self.entries.iter().map(|entry| {
            let (topic, kind) = &self.cameras[entry.camera as usize];
            self.image(*kind, entry).map_err(|what| BagError {
                path: self.files[entry.file as usize].clone(),
                what: format!("message of {topic}: {what}"),
            })
        })
    }

    fn image(&self, kind: Kind, entry: &Entry) -> Result<CameraImage, String> {
        let bytes = self.with_file(entry.file, |file| file.read(entry.place))?;
        let image = message::decode(kind, &bytes, entry.recorded_ns)?;
        Ok(CameraImage {
            camera: entry.camera as usize,
            ..image
        })
    }

    /// Does something with a file, which is opened if it is not.
    fn with_file<T>(
        &self,
        number: u32,
        action: impl FnOnce(&mut OpenFile) -> Result<T, String>,
    ) -> Result<T, String> {
        // Files stay usable whatever happened to another thread.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match open.iter().position(|(open, _)| *open == number) {
            Some(found) => open.remove(found).1,
            None => {
                if open.len() == OPEN_FILES {
                    open.remove(0);
                }
                OpenFile::open(&self.files[number as usize])?
            }
        };
        open.push((number, file));
        match open.last_mut() {
            Some((_, file)) => action(file),
            None => Err("no file is open".to_string()),
        }
    }
}

/// Messages of several topics, file by file.
fn by_file(mut lists: Vec<Vec<Entry>>) -> Vec<Vec<Entry>> {
    let file = |entries: &Vec<Entry>| entries.first().map(|entry| entry.file);
    lists.sort_by_key(file);
    let files = lists.chunk_by(|a, b| file(a) == file(b));
    files.map(<[_]>::concat).collect()
}

/// Messages by the time at which they were recorded. Files whose times overlap are merged. Where they do not, and the order of the files
/// is known (`ordered`), that order counts: the clock may have been set between two of them.
fn in_order(mut files: Vec<Vec<Entry>>, ordered: bool) -> Vec<Entry> {
    let span = |entries: &[Entry]| {
        let times = || entries.iter().map(|entry| entry.recorded_ns);
        Some((times().min()?, times().max()?))
    };
    files.retain(|entries| !entries.is_empty());
    if !ordered {
        files.sort_by_key(|entries| span(entries));
    }
    let mut groups: Vec<((i64, i64), Vec<Entry>)> = Vec::new();
    for entries in files {
        let Some((first, last)) = span(&entries) else {
            continue;
        };
        match groups.last_mut() {
            Some(((begin, end), group)) if first <= *end && last >= *begin => {
                (*begin, *end) = (first.min(*begin), last.max(*end));
                group.extend(entries);
            }
            _ => groups.push(((first, last), entries)),
        }
    }
    let mut all = Vec::new();
    for (_, mut group) in groups {
        group.sort_by_key(|entry| (entry.recorded_ns, entry.file, entry.place));
        all.append(&mut group);
    }
    all
}
