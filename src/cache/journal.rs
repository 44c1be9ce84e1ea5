//! Marks: what a layer needs in order to go back to the moment at which one was set.
//!
//! Setting a mark notes a few numbers. What was appended since is undone by the length alone, for what stands behind the end is never
//! read. Anything else is noted just before it changes for the first time under a mark: rows that a compaction or a new beginning
//! overwrites (where they are, on the CPU or on a GPU), the kept sets, the history of attention, the ring's overwritten queries. So a
//! mark costs what has changed under it, at most once the cache, and nothing is noted while none is set.
//!
//! Every mark keeps its own notes, whatever others are set within it or around it: to let one go is to forget its notes.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::axes::Progress;
use super::bounded::Shared;
use super::compact::{put_rows, take_rows};
use super::evict::Workspace;
use super::layer::LayerCache;
use super::likeness::KeyMean;
use super::queries::RingState;
use super::slots::{Move, SlotMap};

/// Rows of buffers as they were at a mark, each taken before it was first overwritten.
#[derive(Debug)]
pub struct SavedRows {
    /// Rows in use at the mark: those of no higher slot are worth anything.
    len: usize,
    /// By kept set and slot; shorter than that where nothing has been saved.
    saved: Vec<Vec<bool>>,
    pieces: Vec<Piece>,
}

#[derive(Debug)]
struct Piece {
    heads: Range<usize>,
    slots: Vec<u32>,
    /// Of each buffer, `[heads, slots, head_dim]`.
    rows: Vec<Tensor>,
}

impl SavedRows {
    fn new(len: usize) -> Self {
        Self {
            len,
            saved: Vec::new(),
            pieces: Vec::new(),
        }
    }

    /// Takes the rows in `slots` of kept set number `set`, which stand in `heads` of `buffers` (`[heads, slots, head_dim]` each) and
    /// are about to be overwritten; without those that were not in use at the mark or have been taken before.
    pub fn save(
        &mut self,
        (set, heads): (usize, Range<usize>),
        buffers: &[&Tensor],
        slots: impl Iterator<Item = u32>,
    ) -> Result<()> {
        let mut slots = slots.filter(|&slot| (slot as usize) < self.len).peekable();
        if slots.peek().is_none() {
            return Ok(());
        }
        if self.saved.len() <= set {
            self.saved.resize(set + 1, Vec::new());
        }
        let saved = &mut self.saved[set];
        saved.resize(self.len, false);
        let slots = slots.filter(|&slot| !saved[slot as usize]);
        let slots = slots.collect::<Vec<_>>();
        if slots.is_empty() {
            return Ok(());
        }
        let rows = buffers
            .iter()
            .map(|buffer| take_rows(buffer, heads.clone(), &slots))
            .collect::<Result<_>>()?;
        for &slot in &slots {
            saved[slot as usize] = true;
        }
        self.pieces.push(Piece { heads, slots, rows });
        Ok(())
    }

    /// Writes what was taken back to where it was, and forgets it.
    pub fn put_back(&mut self, buffers: &[&Tensor]) -> Result<()> {
        self.saved.clear();
        self.pieces.drain(..).try_for_each(|piece| {
            let rows = buffers.iter().zip(&piece.rows);
            rows.into_iter().try_for_each(|(buffer, rows)| {
                put_rows(buffer, piece.heads.clone(), &piece.slots, rows)
            })
        })
    }
}

/// A layer at the moment of a mark, as far as it has changed since.
#[derive(Debug)]
pub struct LayerMark {
    /// Slots in use.
    len: usize,
    standing: Option<Tensor>,
    mean: KeyMean,
    ring: RingState,
    tables: Vec<Progress>,
    compactions: u64,
    attended: u64,
    moved: u64,
    /// Of keys and values.
    rows: SavedRows,
    /// Of the ring of queries.
    pub(super) queries: SavedRows,
    /// Once they are no longer those of the mark with more behind them.
    sets: Option<Vec<SlotMap>>,
    /// `[kv_heads, len]`, once it has changed.
    history: Option<Vec<f32>>,
}

impl LayerCache {
    pub(super) fn mark(&mut self) {
        let mark = LayerMark {
            len: self.len(),
            standing: self.standing.clone(),
            mean: self.mean.clone(),
            ring: self.queries.state(),
            tables: self.tables.iter().map(|table| table.progress()).collect(),
            compactions: self.compactions,
            attended: self.attended,
            moved: self.moved,
            rows: SavedRows::new(self.len()),
            queries: SavedRows::new(self.queries.count()),
            sets: None,
            history: None,
        };
        self.marks.push(mark);
    }

    /// Before all heads get new rows in `slots`.
    pub(super) fn before_writing(&mut self, slots: Range<usize>) -> Result<()> {
        for set in 0..self.sets.len() {
            let at = (set, self.heads_of(set)?);
            let buffers = [&self.keys, &self.values];
            for mark in &mut self.marks {
                let slots = slots.clone().map(|slot| slot as u32);
                mark.rows.save(at.clone(), &buffers, slots)?;
            }
        }
        Ok(())
    }

    /// Before rows of one kept set move.
    pub(super) fn before_moving(&mut self, set: usize, moves: &[Move]) -> Result<()> {
        let at = (set, self.heads_of(set)?);
        let buffers = [&self.keys, &self.values];
        for mark in &mut self.marks {
            let slots = moves.iter().map(|&(_, to)| to);
            mark.rows.save(at.clone(), &buffers, slots)?;
        }
        Ok(())
    }

    /// Before slots are given up.
    pub(super) fn before_eviction(&mut self) {
        self.before_remembering();
        for mark in self.marks.iter_mut().filter(|mark| mark.sets.is_none()) {
            // Until now tokens have come behind those of the mark, no more.
            let sets = self.sets.iter().map(|set| set.first(mark.len));
            mark.sets = Some(sets.collect());
        }
    }

    /// Before the history of attention changes.
    pub(super) fn before_remembering(&mut self) {
        let Ok(heads) = self.keys.dim(0) else { return };
        let budget = self.history.len() / heads.max(1);
        if budget == 0 {
            return;
        }
        for mark in self.marks.iter_mut().filter(|mark| mark.history.is_none()) {
            let rows = self.history.chunks_exact(budget);
            let rows = rows.flat_map(|row| &row[..mark.len]);
            mark.history = Some(rows.copied().collect());
        }
    }

    /// Goes back to the innermost mark, which stays set. Where a device fails, the layer is whole but for rows that could not be put back.
    pub(super) fn put_back(&mut self, shared: &Shared, work: &mut Workspace) -> Result<()> {
        let Some(mark) = self.marks.last_mut() else {
            return Ok(());
        };
        let evicted = mark.sets.take();
        for (i, set) in self.sets.iter_mut().enumerate() {
            match &evicted {
                Some(sets) => set.clone_from(&sets[i]),
                None => set.truncate(mark.len),
            }
        }
        if let Some(saved) = mark.history.take() {
            let budget = self.history.len() / (saved.len() / mark.len.max(1)).max(1);
            let saved = saved.chunks_exact(mark.len.max(1));
            for (row, saved) in self.history.chunks_exact_mut(budget.max(1)).zip(saved) {
                row[..mark.len].copy_from_slice(saved);
            }
        }
        self.standing.clone_from(&mark.standing);
        self.mean = mark.mean.clone();
        (self.compactions, self.attended, self.moved) =
            (mark.compactions, mark.attended, mark.moved);
        let queries = self.queries.go_back(mark.ring, &mut mark.queries);
        let rows = mark.rows.put_back(&[&self.keys, &self.values]);
        let mut tables = Ok(());
        for (i, table) in self.tables.iter_mut().enumerate() {
            match (&evicted, &mut work.axes) {
                (Some(_), Some(axes)) => {
                    let set = &self.sets[i];
                    let border = shared.plan.border().filter(|_| set.relevant() > 0);
                    tables = tables.and(table.restart(&set.by_time(), border, axes));
                }
                _ => table.go_back(mark.tables[i]),
            }
        }
        queries.and(rows).and(tables)
    }

    /// Forgets the innermost mark.
    pub(super) fn let_go(&mut self) {
        self.marks.pop();
    }
}
