//! Marks: what the ledger of a layer needs in order to go back to the moment at which one was set.
//!
//! Setting a mark notes a few numbers. What was appended since is undone by the length alone, for what stands behind the end is never
//! read. Anything else is noted just before it changes for the first time under a mark: the kept sets, the history of attention, and,
//! in the store, rows of keys, values and queries that are overwritten (where they are, on the CPU or on a GPU). So a mark costs what
//! has changed under it, at most once the cache, and nothing is noted while none is set.
//!
//! Every mark keeps its own notes, whatever others are set within it or around it: to let one go is to forget its notes.

use super::numbering::Numbering;
use super::queries::Ring;
use super::slots::SlotMap;

/// What has been counted since the layer was empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub compactions: u64,
    /// Keys that queries have attended to.
    pub attended: u64,
    /// Rows that compactions have moved.
    pub moved: u64,
}

/// A ledger at the moment of a mark, as far as it has changed since.
#[derive(Debug)]
pub struct LedgerMark {
    /// Slots in use.
    pub len: usize,
    pub ring: Ring,
    pub numbering: Vec<Numbering>,
    pub counts: Counts,
    /// Which keys and values the store has saved, by kept set.
    pub rows: Vec<Saved>,
    /// Which queries of the ring the store has saved.
    pub queries: Saved,
    /// Once they are no longer those of the mark with more behind them.
    pub sets: Option<Vec<SlotMap>>,
    /// `[kv_heads, len]`, once it has changed.
    pub history: Option<Vec<f32>>,
}

/// Which rows have been saved under a mark.
#[derive(Debug, Clone)]
pub struct Saved {
    /// Rows in use at the mark: those of no higher slot are worth anything.
    len: usize,
    /// By slot; empty as long as nothing has been saved.
    flags: Vec<bool>,
}

impl Saved {
    pub fn new(len: usize) -> Self {
        Self {
            len,
            flags: Vec::new(),
        }
    }

    /// Those of `slots` that were in use at the mark and have not been saved.
    pub fn without(&self, slots: impl Iterator<Item = u32>) -> Vec<u32> {
        let saved = |slot: u32| self.flags.get(slot as usize).is_some_and(|&saved| saved);
        slots
            .filter(|&slot| (slot as usize) < self.len && !saved(slot))
            .collect()
    }

    pub fn note(&mut self, slots: &[u32]) {
        self.flags.resize(self.len, false);
        for &slot in slots {
            self.flags[slot as usize] = true;
        }
    }

    /// Nothing has been saved.
    pub fn forget(&mut self) {
        self.flags.clear();
    }
}
