//! What has been seen and read, whole, within a bound of bytes: what is found here can be fed to the model again.
//!
//! - this file: what enters, and what leaves when the bytes run out
//! - `config`: its parameters
//! - `frame`: a frame as it is kept
//! - `unit`: what a unit is
//! - `find`: the units that a question asks for
//! - `text`: text as units, sentence by sentence or turn by turn

mod config;
mod find;
mod frame;
mod text;
mod unit;

use std::ops::Range;
use std::sync::Arc;

pub use config::{ArchiveConfig, RecallBy, RecallMode};
pub use find::{Found, Wanted};
pub use frame::{Frame, Moment};
pub use text::{TextUnits, Turn};
pub use unit::{Content, Entry, Kind, Unit};

/// Text may take so large a part of the bytes (one of so many) before it has to make room for frames.
const TEXT_PART: usize = 4;

/// What became of a unit that was to enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// It is in, by this number.
    New(u64),
    /// It is as the unit of this number is, which has been seen to be still so.
    NothingNew(u64),
    /// It is larger than the archive, or there is none; so many bytes would hold it.
    NoRoom(usize),
}

/// How much of what is there is text.
#[derive(Debug, Clone, Copy, Default)]
struct Texts {
    units: usize,
    bytes: usize,
}

impl Texts {
    fn take(&mut self, unit: &Unit) {
        if unit.kind() == Kind::Text {
            self.units += 1;
            self.bytes += unit.bytes();
        }
    }

    fn let_go(&mut self, unit: &Unit) {
        if unit.kind() == Kind::Text {
            self.units -= 1;
            self.bytes -= unit.bytes();
        }
    }
}

/// The units in the order of time. A copy shares them, and costs as much as they are many only when one of the two changes.
///
/// `bytes() <= config.archive_bytes` at every moment. What a change displaces while a copy is held is the copy's.
#[derive(Debug, Clone)]
pub struct Archive {
    config: ArchiveConfig,
    entries: Arc<Vec<Entry>>,
    /// Of the units, without their places.
    unit_bytes: usize,
    text: Texts,
    next_id: u64,
    /// Sightings of all units so far.
    seen: u64,
    nothing_new: u64,
    left: u64,
    too_large: TooLarge,
}

/// Frames that would not fit into the archive if it were empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TooLarge {
    pub frames: u64,
    /// What the smallest of them would take with its place, bytes.
    pub bytes: usize,
}

impl TooLarge {
    fn add(&mut self, bytes: usize) {
        self.bytes = match self.frames {
            0 => bytes,
            _ => self.bytes.min(bytes),
        };
        self.frames += 1;
    }
}

impl Archive {
    pub fn new(config: ArchiveConfig) -> Self {
        Self {
            config,
            entries: Arc::default(),
            unit_bytes: 0,
            text: Texts::default(),
            next_id: 0,
            seen: 0,
            nothing_new: 0,
            left: 0,
            too_large: TooLarge::default(),
        }
    }

    pub fn config(&self) -> &ArchiveConfig {
        &self.config
    }

    pub fn is_off(&self) -> bool {
        self.config.archive_bytes == 0
    }

    /// In the order of time.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Memory of the units and their places, bytes.
    pub fn bytes(&self) -> usize {
        self.unit_bytes + self.entries.capacity() * size_of::<Entry>()
    }

    /// Units that are text.
    pub fn texts(&self) -> usize {
        self.text.units
    }

    /// Units that were nothing new and did not enter.
    pub fn nothing_new(&self) -> u64 {
        self.nothing_new
    }

    /// Units that have left for others.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Frames that have not entered, being larger than the whole archive.
    pub fn too_large(&self) -> TooLarge {
        self.too_large
    }

    /// Takes a unit in that is newer than all others, and stands at `extent` in the stream.
    ///
    /// Where the bytes run out, the units leave whose neighbours in time are most like them, of their kind: what is lost of those can be
    /// seen in what stays. Of two the older leaves. Frames leave as long as there are any and text has no more than its part.
    pub fn enter(&mut self, unit: Unit, extent: Range<u64>) -> Entered {
        let bytes = unit.bytes();
        let whole = bytes + size_of::<Entry>();
        if whole > self.config.archive_bytes {
            if unit.kind() == Kind::Frame {
                self.too_large.add(whole);
            }
            return Entered::NoRoom(whole);
        }
        let like = self.like(&unit);
        self.seen += 1;
        if let Some(at) = like {
            let known = &mut Arc::make_mut(&mut self.entries)[at];
            known.seen_ns = unit.stamp_ns;
            known.seen = self.seen;
            known.extent = extent;
            self.nothing_new += 1;
            return Entered::NothingNew(known.id);
        }
        let entries = Arc::make_mut(&mut self.entries);
        let place = size_of::<Entry>();
        while self.unit_bytes + bytes + (entries.len() + 1) * place > self.config.archive_bytes {
            let too_much = self.text.bytes > self.config.archive_bytes / TEXT_PART;
            let kind = match too_much || self.text.units == entries.len() {
                true => Kind::Text,
                false => Kind::Frame,
            };
            let left = leave(entries, kind);
            self.unit_bytes -= left.bytes();
            self.text.let_go(&left);
            self.left += 1;
        }
        self.text.take(&unit);
        // Exactly as many places as there are units, so that their memory is what it is said to be.
        entries.shrink_to(entries.len() + 1);
        entries.reserve_exact(1);
        let id = self.next_id;
        entries.push(Entry {
            seen_ns: unit.stamp_ns,
            seen: self.seen,
            unit: Arc::new(unit),
            id,
            extent,
            explained: -1.0,
        });
        let newest = entries.len() - 1;
        let kind = entries[newest].unit.kind();
        explain(entries, Some(newest));
        let beside = before(entries, newest, kind);
        explain(entries, beside);
        self.unit_bytes += bytes;
        self.next_id += 1;
        Entered::New(id)
    }

    /// A unit has been fed again and stays where it is now in the stream.
    pub fn stands_at(&mut self, id: u64, extent: Range<u64>) {
        if let Ok(at) = self.entries.binary_search_by_key(&id, |entry| entry.id) {
            Arc::make_mut(&mut self.entries)[at].extent = extent;
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::new(self.config.clone());
    }

    /// The unit that leaves nothing new in this one: of those that are like enough and may still be so the most like, of several the newest.
    fn like(&self, unit: &Unit) -> Option<usize> {
        let of_kind = self
            .entries
            .iter()
            .filter(|entry| entry.unit.kind() == unit.kind());
        let newest = of_kind.map(|entry| entry.seen).max();
        let entries = self.entries.iter().enumerate();
        let still = entries.filter(|(_, entry)| entry.goes_on(unit, Some(entry.seen) == newest));
        let likeness = still.map(|(at, entry)| (at, entry.unit.sameness(unit)));
        let near = likeness.filter(|&(_, likeness)| f64::from(likeness) > self.config.nothing_new);
        near.max_by(|(_, a), (_, b)| a.total_cmp(b))
            .map(|(at, _)| at)
    }
}

/// Takes out the unit of a kind that its neighbours explain best; some unit if there is none of it.
fn leave(entries: &mut Vec<Entry>, kind: Kind) -> Arc<Unit> {
    let of_kind = entries.iter().enumerate().rev();
    let of_kind = of_kind.filter(|(_, entry)| entry.unit.kind() == kind);
    let at = of_kind.max_by(|(_, a), (_, b)| a.explained.total_cmp(&b.explained));
    let at = at.map_or(0, |(at, _)| at);
    let left = entries.remove(at);
    for beside in [behind(entries, at, kind), before(entries, at, kind)] {
        explain(entries, beside);
    }
    left.unit
}

/// The last unit of a kind before a place.
fn before(entries: &[Entry], at: usize, kind: Kind) -> Option<usize> {
    entries[..at]
        .iter()
        .rposition(|entry| entry.unit.kind() == kind)
}

/// The first unit of a kind from a place on.
fn behind(entries: &[Entry], at: usize, kind: Kind) -> Option<usize> {
    let mut behind = (at..).zip(entries.get(at..)?);
    behind
        .find(|(_, entry)| entry.unit.kind() == kind)
        .map(|(at, _)| at)
}

/// Works out how like its neighbours of its kind the unit at a place is, if there is one.
fn explain(entries: &mut [Entry], at: Option<usize>) {
    let Some(at) = at else { return };
    let unit = &entries[at].unit;
    let neighbours = [
        before(entries, at, unit.kind()),
        behind(entries, at + 1, unit.kind()),
    ];
    let neighbours = neighbours.into_iter().flatten();
    let likeness = neighbours.map(|other| unit.likeness(&entries[other].unit));
    let explained = likeness.fold(-1.0, f32::max);
    entries[at].explained = explained;
}
