//! What has been seen and read, whole, within a bound of bytes: what is found here can be fed to the model again.
//!
//! - this file: what enters, and what leaves when the bytes run out
//! - `config`: its parameters
//! - `frame`: a frame as it is kept
//! - `unit`: what a unit is
//! - `find`: the units that a question asks for
//! - `text`: a text as units, sentence by sentence

mod config;
mod find;
mod frame;
mod text;
mod unit;

use std::ops::Range;
use std::sync::Arc;

use pulp::Arch;

pub use config::{ArchiveConfig, RecallBy, RecallMode};
pub use find::{Found, Wanted};
pub use frame::Frame;
pub use text::TextUnits;
pub use unit::{Content, Entry, Unit};

/// What became of a unit that was to enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// It is in, by this number.
    New(u64),
    /// It is as the unit of this number is, which has been seen to be still so.
    NothingNew(u64),
    /// It is larger than the archive, or there is none.
    NoRoom,
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
    next_id: u64,
    nothing_new: u64,
    left: u64,
    too_large: TooLarge,
}

/// Units that would not fit into the archive if it were empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TooLarge {
    pub units: u64,
    /// What the smallest of them would take with its place, bytes.
    pub bytes: usize,
}

impl Archive {
    pub fn new(config: ArchiveConfig) -> Self {
        Self {
            config,
            entries: Arc::default(),
            unit_bytes: 0,
            next_id: 0,
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

    /// Units that were nothing new and did not enter.
    pub fn nothing_new(&self) -> u64 {
        self.nothing_new
    }

    /// Units that have left for others.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Units that have not entered, being larger than the whole archive.
    pub fn too_large(&self) -> TooLarge {
        self.too_large
    }

    /// Takes a unit in that is newer than all others, and stands at `extent` in the stream.
    ///
    /// Where the bytes run out, the units leave whose neighbours in time are most like them: what is lost of those can be seen in what
    /// stays. Of two the older leaves.
    pub fn enter(&mut self, unit: Unit, extent: Range<u64>) -> Entered {
        let bytes = unit.bytes();
        let whole = bytes + size_of::<Entry>();
        if whole > self.config.archive_bytes {
            let TooLarge {
                units,
                bytes: least,
            } = self.too_large;
            self.too_large = TooLarge {
                units: units + 1,
                bytes: if units == 0 { whole } else { least.min(whole) },
            };
            return Entered::NoRoom;
        }
        if let Some(at) = self.like(&unit) {
            let known = &mut Arc::make_mut(&mut self.entries)[at];
            known.seen_ns = unit.stamp_ns;
            known.extent = extent;
            self.nothing_new += 1;
            return Entered::NothingNew(known.id);
        }
        let entries = Arc::make_mut(&mut self.entries);
        let place = size_of::<Entry>();
        while self.unit_bytes + bytes + (entries.len() + 1) * place > self.config.archive_bytes {
            self.unit_bytes -= leave(entries).bytes();
            self.left += 1;
        }
        // Exactly as many places as there are units, so that their memory is what it is said to be.
        entries.shrink_to(entries.len() + 1);
        entries.reserve_exact(1);
        let id = self.next_id;
        entries.push(Entry {
            seen_ns: unit.stamp_ns,
            unit: Arc::new(unit),
            id,
            extent,
            explained: -1.0,
        });
        let newest = entries.len() - 1;
        explain(entries, newest);
        explain(entries, newest.saturating_sub(1));
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

    /// The unit that leaves nothing new in this one: of those that are like enough the most like, of several the newest.
    fn like(&self, unit: &Unit) -> Option<usize> {
        // With the widest vectors that this machine has: it is done for every frame, with all units.
        Arch::new().dispatch(|| {
            let mut like = None;
            for (at, entry) in self.entries.iter().enumerate() {
                let likeness = entry.unit.likeness(unit);
                let most = like.map_or(f32::NEG_INFINITY, |(_, most)| most);
                if f64::from(likeness) > self.config.nothing_new && likeness >= most {
                    like = Some((at, likeness));
                }
            }
            like.map(|(at, _)| at)
        })
    }
}

/// Takes out the unit that its neighbours explain best.
fn leave(entries: &mut Vec<Entry>) -> Arc<Unit> {
    let explained = entries
        .iter()
        .map(|entry| entry.explained)
        .enumerate()
        .rev();
    let at = explained.max_by(|(_, a), (_, b)| a.total_cmp(b));
    let at = at.map_or(0, |(at, _)| at);
    let left = entries.remove(at);
    explain(entries, at);
    explain(entries, at.saturating_sub(1));
    left.unit
}

/// Works out how like its neighbours the unit at a place is, if there is one.
fn explain(entries: &mut [Entry], at: usize) {
    let Some(entry) = entries.get(at) else { return };
    let before = at.checked_sub(1).and_then(|before| entries.get(before));
    let neighbours = before.into_iter().chain(entries.get(at + 1));
    let likeness = neighbours.map(|other| entry.unit.likeness(&other.unit));
    let explained = likeness.fold(-1.0, f32::max);
    entries[at].explained = explained;
}
