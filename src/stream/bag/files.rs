//! The files of a bag, their order, and their decompression.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tempfile::NamedTempFile;

use super::mcap::{McapFile, MCAP_MAGIC};
use super::sqlite::SqliteFile;
use super::topics::Topic;
use super::Place;
use crate::files;

const METADATA: &str = "metadata.yaml";
/// How the files of a bag end.
const ENDINGS: [&str; 4] = [".mcap", ".db3", ".mcap.zstd", ".db3.zstd"];
const ZSTD_ENDING: &str = ".zstd";

const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";
/// What a zstd frame begins with (RFC 8878, 3.1.1).
pub const ZSTD_MAGIC: &[u8] = &[0x28, 0xB5, 0x2F, 0xFD];
const ROS1_MAGIC: &[u8] = b"#ROSBAG V";

/// What of metadata.yaml is needed.
#[derive(Deserialize)]
struct Metadata {
    rosbag2_bagfile_information: Information,
}

#[derive(Deserialize)]
struct Information {
    relative_file_paths: Vec<PathBuf>,
}

/// The files of a bag.
#[derive(Debug)]
pub struct Listing {
    pub files: Vec<PathBuf>,
    /// Their order is the recorder's.
    pub ordered: bool,
}

/// Finds the files of a bag directory in the order of its metadata.yaml, or takes one file as a bag.
pub fn find(path: &Path) -> Result<Listing, String> {
    let folder = if path.is_dir() {
        path
    } else {
        files::check(path).map_err(|e| e.to_string())?;
        if !path.ends_with(METADATA) {
            return Ok(Listing {
                files: vec![path.to_path_buf()],
                ordered: true,
            });
        }
        path.parent().unwrap_or(path)
    };
    let entries = std::fs::read_dir(folder).map_err(|e| e.to_string())?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.sort();
    let ends = |file: &PathBuf, endings: &[&str]| {
        let name = file.to_string_lossy();
        endings.iter().any(|ending| name.ends_with(ending))
    };
    let listed = listed(folder);
    if !listed.is_empty() {
        return Ok(Listing {
            files: listed,
            ordered: true,
        });
    }
    if let Some(bag) = files.iter().find(|file| ends(file, &[".bag"])) {
        if !files.iter().any(|file| ends(file, &ENDINGS)) {
            return Err(ros1(bag));
        }
    }
    files.retain(|file| ends(file, &ENDINGS));
    match files.is_empty() {
        true => Err(format!("no file in it ends with {}", ENDINGS.join(", "))),
        false => Ok(Listing {
            files,
            ordered: false,
        }),
    }
}

/// The files that metadata.yaml lists, as far as they are there.
fn listed(folder: &Path) -> Vec<PathBuf> {
    let metadata = folder.join(METADATA);
    let Ok(text) = files::text(&metadata) else {
        return Vec::new();
    };
    let information = match serde_yaml::from_str::<Metadata>(&text) {
        Ok(metadata) => metadata.rosbag2_bagfile_information,
        Err(error) => {
            tracing::warn!(
                "{}: {error}; the files are played by the time of their first message",
                metadata.display()
            );
            return Vec::new();
        }
    };
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for path in information.relative_file_paths {
        // Early rosbag2 wrote the folder's name in front.
        let Some(name) = path.file_name().map(|name| name.to_string_lossy()) else {
            continue;
        };
        let other = match name.strip_suffix(ZSTD_ENDING) {
            Some(unpacked) => unpacked.to_string(),
            None => format!("{name}{ZSTD_ENDING}"),
        };
        let places = [folder.join(&*name), folder.join(other)];
        match places.into_iter().find(|place| place.is_file()) {
            Some(place) => found.push(place),
            None => missing.push(name.into_owned()),
        }
    }
    if !missing.is_empty() {
        tracing::warn!(
            "{} lists files that are not there: {}",
            metadata.display(),
            missing.join(", ")
        );
    }
    found
}

fn ros1(file: &Path) -> String {
    let file = file.display();
    format!(
        "{file} is a ROS 1 bag, expected a ROS 2 one; to convert it: pip install rosbags && rosbags-convert --src {file} --dst \
         FOLDER"
    )
}

/// A file whose messages can be read.
pub struct OpenFile {
    storage: Storage,
    /// The decompressed file, removed when this is dropped.
    _unpacked: Option<NamedTempFile>,
}

enum Storage {
    Mcap(McapFile),
    Sqlite(SqliteFile),
}

impl OpenFile {
    pub fn open(path: &Path) -> Result<Self, String> {
        let (beginning, mut file) = begin(path)?;
        if !beginning.starts_with(ZSTD_MAGIC) {
            return Ok(Self {
                storage: Storage::open(path, &beginning)?,
                _unpacked: None,
            });
        }
        let failed = |e: std::io::Error| format!("cannot be decompressed: {e}");
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut unpacked = NamedTempFile::new().map_err(failed)?;
        let copied = zstd::stream::copy_decode(&file, &mut unpacked);
        if let Err(error) = copied {
            // Of a file that is cut off, what is there can be used.
            tracing::warn!("bag file {}: decompression: {error}", path.display());
        }
        let (beginning, _) = begin(unpacked.path())?;
        Ok(Self {
            storage: Storage::open(unpacked.path(), &beginning)?,
            _unpacked: Some(unpacked),
        })
    }

    /// The file's topics; its damages are said in the log.
    pub fn index(&mut self) -> Result<Vec<Topic>, String> {
        match &mut self.storage {
            Storage::Mcap(file) => file.index(),
            Storage::Sqlite(file) => file.index(),
        }
    }

    /// The bytes of a message.
    pub fn read(&mut self, place: Place) -> Result<Vec<u8>, String> {
        match &mut self.storage {
            Storage::Mcap(file) => file.read(place),
            Storage::Sqlite(file) => file.read(place),
        }
    }
}

/// A file and its first bytes.
fn begin(path: &Path) -> Result<(Vec<u8>, File), String> {
    let mut file = files::open(path).map_err(|e| e.to_string())?;
    let mut beginning = Vec::new();
    let read = (&mut file).take(SQLITE_MAGIC.len() as u64);
    { read }
        .read_to_end(&mut beginning)
        .map_err(|e| e.to_string())?;
    Ok((beginning, file))
}

impl Storage {
    fn open(path: &Path, beginning: &[u8]) -> Result<Self, String> {
        if beginning.starts_with(MCAP_MAGIC) {
            McapFile::open(path).map(Self::Mcap)
        } else if beginning.starts_with(SQLITE_MAGIC) {
            SqliteFile::open(path).map(Self::Sqlite)
        } else if beginning.starts_with(ROS1_MAGIC) {
            Err(ros1(path))
        } else if beginning.is_empty() {
            Err("is empty".to_string())
        } else {
            Err("is neither mcap nor sqlite3".to_string())
        }
    }
}
