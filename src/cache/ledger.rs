//! The ledger of one layer: which token stands in which slot, at which position, and what has been counted. It knows no tensors.
//!
//! The ledger decides, the store obeys: what is to be written, saved or moved is asked of the ledger ([`Ledger::next`],
//! [`Ledger::unsaved`], [`Ledger::evict`]), done by the store, and noted ([`Ledger::note_appended`], [`Ledger::note_saved`]). So tokens
//! can also be noted that something else has put into the store, by the same rule.

use std::ops::Range;

use super::config::{QuerySource, Scope};
use super::marks::{Counts, LedgerMark, Saved};
use super::numbering::{Numbering, Places};
use super::plan::Plan;
use super::policy::{Evidence, Policy};
use super::queries::{Ring, RingRun};
use super::shape::CacheShape;
use super::slots::{Move, SlotMap, Token};

/// What one layer holds, and where.
#[derive(Debug)]
pub struct Ledger {
    kv_heads: usize,
    budget: usize,
    /// One kept set for the layer, or one per KV head; all of one length.
    sets: Vec<SlotMap>,
    /// How far the tokens of each set are numbered where positions have three axes; empty where they have one.
    numbering: Vec<Numbering>,
    ring: Ring,
    /// Attention of all queries so far, `[kv_heads, budget]`; empty when the policy does not ask for it.
    history: Vec<f32>,
    counts: Counts,
    /// From the outermost to the innermost.
    marks: Vec<LedgerMark>,
}

/// Where the next tokens go.
#[derive(Debug, PartialEq, Eq)]
pub struct Next {
    /// Their slots, in every kept set.
    pub slots: Range<usize>,
    /// Where their queries go in the ring, in the order in which they are to be written.
    pub runs: Vec<RingRun>,
    /// Where they stand in each kept set where positions have three axes; empty where they have one.
    pub places: Vec<Places>,
}

/// Rows that a mark may want back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Keys and values of a kept set.
    Set(usize),
    /// The ring of queries.
    Ring,
}

impl Ledger {
    pub fn new(shape: &CacheShape, plan: &Plan, policy: &dyn Policy) -> Self {
        let sets = match policy.scope() {
            Scope::KvHead => shape.kv_heads,
            Scope::Auto | Scope::Layer | Scope::Model => 1,
        };
        let (source, history) = match policy.evidence() {
            Evidence::Window { source, .. } => (source, 0),
            Evidence::Age => (QuerySource::Stream, 0),
            Evidence::History { .. } => (QuerySource::Stream, shape.kv_heads * plan.budget),
        };
        let numbered = if shape.has_axes() { sets } else { 0 };
        Self {
            kv_heads: shape.kv_heads,
            budget: plan.budget,
            // Not clones of one, which have no room.
            sets: (0..sets)
                .map(|_| SlotMap::with_capacity(plan.budget))
                .collect(),
            numbering: vec![Numbering::default(); numbered],
            ring: Ring::new(source, plan.window),
            history: vec![0.0; history],
            counts: Counts::default(),
            marks: Vec::new(),
        }
    }

    /// Slots in use.
    pub fn len(&self) -> usize {
        self.sets[0].len()
    }

    /// One kept set for the layer, or one per KV head; all of one length.
    pub fn sets(&self) -> &[SlotMap] {
        &self.sets
    }

    /// The KV heads whose rows stand where kept set `set` says.
    pub fn heads_of(&self, set: usize) -> Range<usize> {
        match self.sets.len() {
            1 => 0..self.kv_heads,
            _ => set..set + 1,
        }
    }

    /// The kept set that says where the rows of KV head `head` stand.
    pub fn set_of(&self, head: usize) -> &SlotMap {
        &self.sets[head.min(self.sets.len() - 1)]
    }

    /// Rank in time of each slot in use, for each kept set.
    pub fn ranks(&self) -> Vec<&[u32]> {
        self.sets.iter().map(SlotMap::positions).collect()
    }

    /// Whether tokens after the prefix have been kept by value.
    pub fn has_relevant(&self) -> bool {
        self.sets[0].relevant() > 0
    }

    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Attention of all queries so far to the slots in use, `[kv_heads, len]`; empty when the policy does not ask for it.
    pub fn history(&self) -> Vec<f32> {
        let rows = self.history.chunks_exact(self.budget);
        rows.flat_map(|row| &row[..self.len()]).copied().collect()
    }

    /// The same of all slots, `[kv_heads, budget]`.
    pub fn histories(&self) -> &[f32] {
        &self.history
    }

    /// Means over the KV heads of each kept set, for numbers `[kv_heads, len]`.
    pub fn per_set(&self, numbers: &[f32]) -> Vec<Vec<f32>> {
        let share = |set| 1.0 / self.heads_of(set).len() as f32;
        self.weighted_per_set(numbers, share)
    }

    /// Sums over the KV heads of each kept set, likewise.
    pub fn sums_per_set(&self, numbers: &[f32]) -> Vec<Vec<f32>> {
        self.weighted_per_set(numbers, |_| 1.0)
    }

    fn weighted_per_set(&self, numbers: &[f32], share: impl Fn(usize) -> f32) -> Vec<Vec<f32>> {
        let len = self.len();
        (0..self.sets.len())
            .map(|set| {
                let share = share(set);
                let mut sums = vec![0.0; len];
                for head in self.heads_of(set) {
                    for (sum, number) in sums.iter_mut().zip(&numbers[head * len..][..len]) {
                        *sum += number * share;
                    }
                }
                sums
            })
            .collect()
    }

    /// Where `tokens` go if they come next; there is room for them.
    pub fn next(&self, tokens: &[Token]) -> Next {
        let mut runs = Vec::new();
        let mut ring = self.ring;
        ring.push(tokens, |run| runs.push(run));
        let places = self.numbering.iter().map(|&numbering| {
            let mut numbering = numbering;
            numbering.append(tokens)
        });
        Next {
            slots: self.len()..self.len() + tokens.len(),
            runs,
            places: places.collect(),
        }
    }

    /// Takes note of tokens that stand in the store where [`Self::next`] has them, and that have attended to the whole cache as one
    /// chunk. Their own history of attention begins.
    pub fn note_appended(&mut self, tokens: &[Token]) {
        let start = self.len();
        for set in &mut self.sets {
            set.append(tokens);
        }
        for numbering in &mut self.numbering {
            numbering.append(tokens);
        }
        self.ring.push(tokens, |_| {});
        let len = self.len();
        for row in self.history.chunks_exact_mut(self.budget) {
            row[start..len].fill(0.0);
        }
        self.counts.attended += (tokens.len() * len) as u64;
    }

    /// Adds the attention that the slots in use got in one step (`[kv_heads, len]`) to the history, which fades by `decay`.
    pub fn remember(&mut self, sums: &[f32], decay: f32) {
        self.before_remembering();
        let rows = self.history.chunks_exact_mut(self.budget);
        for (history, sums) in rows.zip(sums.chunks_exact(self.sets[0].len())) {
            for (history, sum) in history.iter_mut().zip(sums) {
                *history = *history * decay + sum;
            }
        }
    }

    /// Takes note of the history of the slots in use (`[kv_heads, budget]` or wider rows), where something else has added it up.
    pub fn note_history<'a>(&mut self, rows: impl Iterator<Item = &'a [f32]>) {
        self.before_remembering();
        let len = self.len();
        for (history, row) in self.history.chunks_exact_mut(self.budget).zip(rows) {
            history[..len].copy_from_slice(&row[..len]);
        }
    }

    /// Drops the slots of kept set `set` that are not `kept` (by slot), of which `relevant` were kept by value; `order` is what
    /// [`SlotMap::order`] gives. Rows that are to move are in `moves`. Tokens of rank `border` and above stand the gap farther on.
    ///
    /// Returns where the tokens stand that are left, where positions have three axes. The other sets are to drop as many.
    pub fn evict(
        &mut self,
        set: usize,
        (kept, order): (&[bool], &[u32]),
        (relevant, border): (usize, Option<usize>),
        moves: &mut Vec<Move>,
    ) -> Option<Places> {
        self.before_eviction();
        self.sets[set].evict(kept, order, relevant, moves);
        self.counts.moved += moves.len() as u64;
        let heads = self.heads_of(set);
        let histories = self.history.chunks_exact_mut(self.budget);
        for history in histories.skip(heads.start).take(heads.len()) {
            for &(from, to) in moves.iter() {
                history[to as usize] = history[from as usize];
            }
        }
        let numbering = self.numbering.get_mut(set)?;
        *numbering = Numbering::from_the_start(border);
        Some(numbering.append(&self.sets[set].by_time()))
    }

    /// Takes note of a compaction of all kept sets.
    pub fn note_compaction(&mut self) {
        self.counts.compactions += 1;
    }

    /// Forgets everything but the marks; the ring turns through `window` queries from now on.
    pub fn clear(&mut self, window: usize) {
        self.before_eviction();
        self.sets.iter_mut().for_each(SlotMap::clear);
        self.numbering.fill(Numbering::default());
        self.ring.empty(window);
        self.counts = Counts::default();
    }

    /// Sets a mark, within those that are set.
    pub fn mark(&mut self) {
        self.marks.push(LedgerMark {
            len: self.len(),
            ring: self.ring,
            numbering: self.numbering.clone(),
            counts: self.counts,
            rows: vec![Saved::new(self.len()); self.sets.len()],
            queries: Saved::new(self.ring.count()),
            sets: None,
            history: None,
        });
    }

    /// How many marks are set.
    pub fn marks(&self) -> usize {
        self.marks.len()
    }

    /// Which of `slots`, which are about to be overwritten, were in use at a mark (counted from the outermost) and have not been
    /// saved under it.
    pub fn unsaved(&self, mark: usize, part: Part, slots: impl Iterator<Item = u32>) -> Vec<u32> {
        let mark = &self.marks[mark];
        match part {
            Part::Set(set) => mark.rows[set].without(slots),
            Part::Ring => mark.queries.without(slots),
        }
    }

    /// Takes note of slots that the store has saved under a mark.
    pub fn note_saved(&mut self, mark: usize, part: Part, slots: &[u32]) {
        let mark = &mut self.marks[mark];
        match part {
            Part::Set(set) => mark.rows[set].note(slots),
            Part::Ring => mark.queries.note(slots),
        }
    }

    /// Before slots are given up.
    fn before_eviction(&mut self) {
        self.before_remembering();
        for mark in self.marks.iter_mut().filter(|mark| mark.sets.is_none()) {
            // Until now tokens have come behind those of the mark, no more.
            let sets = self.sets.iter().map(|set| set.first(mark.len));
            mark.sets = Some(sets.collect());
        }
    }

    /// Before the history of attention changes.
    fn before_remembering(&mut self) {
        if self.history.is_empty() {
            return;
        }
        for mark in self.marks.iter_mut().filter(|mark| mark.history.is_none()) {
            let rows = self.history.chunks_exact(self.budget);
            let rows = rows.flat_map(|row| &row[..mark.len]);
            mark.history = Some(rows.copied().collect());
        }
    }

    /// Goes back to the innermost mark, which stays set; the store puts back what it has saved under it. Without one nothing happens.
    ///
    /// Returns where the tokens of each kept set stand, where positions have three axes and others have stood there since.
    pub fn put_back(&mut self) -> Vec<Places> {
        let Some(mark) = self.marks.last_mut() else {
            return Vec::new();
        };
        mark.rows.iter_mut().for_each(Saved::forget);
        mark.queries.forget();
        self.ring = mark.ring;
        self.counts = mark.counts;
        self.numbering.clone_from(&mark.numbering);
        if let Some(saved) = mark.history.take() {
            let saved = saved.chunks_exact(mark.len.max(1));
            for (row, saved) in self.history.chunks_exact_mut(self.budget).zip(saved) {
                row[..mark.len].copy_from_slice(saved);
            }
        }
        let Some(sets) = mark.sets.take() else {
            self.sets.iter_mut().for_each(|set| set.truncate(mark.len));
            return Vec::new();
        };
        self.sets.clone_from(&sets);
        self.places()
    }

    /// Where the tokens of each kept set stand, where positions have three axes.
    pub fn places(&self) -> Vec<Places> {
        let numbered = self.numbering.iter().zip(&self.sets);
        let places = numbered.map(|(numbering, set)| numbering.restarted().append(&set.by_time()));
        places.collect()
    }

    /// Forgets the innermost mark.
    pub fn let_go(&mut self) {
        self.marks.pop();
    }
}

#[cfg(test)]
mod tests;
