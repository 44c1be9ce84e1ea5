//! Which of the last queries of a layer its ring holds, and in which of the ring's slots: scores are computed from them at a compaction.

use std::ops::Range;

use super::config::QuerySource;
use super::slots::Token;

/// What a ring of the newest `window` queries holds, overwritten in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    source: QuerySource,
    /// Queries that it turns through.
    window: usize,
    /// Queries held, at most `window`.
    count: usize,
    /// Slot of the next query.
    cursor: usize,
    /// An instruction has come since the ring was last emptied, and the last token was one of its.
    instructed: bool,
    within_instruction: bool,
}

/// Queries of a chunk that follow one another, and the slots of the ring that they go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingRun {
    /// The first of them, counted in the chunk.
    pub from: usize,
    pub slots: Range<usize>,
}

impl Ring {
    pub fn new(source: QuerySource, window: usize) -> Self {
        Self {
            source,
            window,
            count: 0,
            cursor: 0,
            instructed: false,
            within_instruction: false,
        }
    }

    /// Takes the newest queries of a chunk of `tokens` that the source wants; `write` is told where each goes, in the order in which
    /// they are to be written.
    pub fn push(&mut self, tokens: &[Token], mut write: impl FnMut(RingRun)) {
        if self.window == 0 {
            return;
        }
        if self.source == QuerySource::Stream {
            return self.take(0..tokens.len(), &mut write);
        }
        let mut at = 0;
        for run in tokens.chunk_by(|a, b| a.mark.instruction == b.mark.instruction) {
            let instruction = run[0].mark.instruction;
            if instruction && !self.within_instruction {
                self.instructed = true;
                self.count = 0;
                self.cursor = 0;
            }
            self.within_instruction = instruction;
            if instruction || !self.instructed {
                self.take(at..at + run.len(), &mut write);
            }
            at += run.len();
        }
    }

    /// Takes the newest of the queries `given` of a chunk.
    fn take(&mut self, given: Range<usize>, write: &mut impl FnMut(RingRun)) {
        let taken = given.len().min(self.window);
        let mut from = given.end - taken;
        while from < given.end {
            let count = (self.window - self.cursor).min(given.end - from);
            write(RingRun {
                from,
                slots: self.cursor..self.cursor + count,
            });
            from += count;
            self.cursor = (self.cursor + count) % self.window;
        }
        self.count = (self.count + taken).min(self.window);
    }

    /// Queries that it turns through.
    pub fn window(&self) -> usize {
        self.window
    }

    /// Slot of the next query.
    pub fn cursor(&self) -> usize {
        self.cursor
    }

    /// Whether it takes the queries of tokens that are no instruction's.
    pub fn takes_answers(&self) -> bool {
        self.source == QuerySource::Stream || !self.instructed
    }

    /// Queries held, in the first slots of the ring.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Position of each query by its slot in the ring, when `len` slots of the cache are in use: as if the newest stood at the end of
    /// the stream.
    pub fn positions(&self, len: usize) -> Vec<u32> {
        let Self { window, cursor, .. } = *self;
        (0..self.count)
            .map(|slot| {
                let age = (cursor + window - 1 - slot) % window;
                (len - 1 - age) as u32
            })
            .collect()
    }

    /// Slots of the newest queries, at most `count`, oldest first.
    pub fn newest(&self, count: usize) -> Vec<u32> {
        let count = count.min(self.count);
        let slot = |age: usize| (self.cursor + self.window - 1 - age) % self.window;
        (0..count).rev().map(|age| slot(age) as u32).collect()
    }

    /// Forgets all queries, and turns through `window` from now on.
    pub fn empty(&mut self, window: usize) {
        *self = Self::new(self.source, window);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::slots::Mark;

    /// Pushes queries 0, 1, 2 ... in chunks; those in `instructions` (from, to) are an instruction's. Returns query and position, oldest first.
    fn held(source: QuerySource, chunks: &[usize], instructions: &[(u64, u64)]) -> Vec<(u64, u32)> {
        let mut ring = Ring::new(source, 4);
        let mut queries = [0; 4];
        let mut next = 0;
        for &chunk in chunks {
            let tokens = (next..next + chunk as u64)
                .map(|index| Token {
                    index,
                    unit: index,
                    mark: Mark {
                        instruction: instructions
                            .iter()
                            .any(|&(from, to)| from <= index && index < to),
                        ..Mark::default()
                    },
                })
                .collect::<Vec<_>>();
            ring.push(&tokens, |run| {
                for (query, slot) in tokens[run.from..].iter().zip(run.slots) {
                    queries[slot] = query.index;
                }
            });
            next += chunk as u64;
        }
        let mut held = queries
            .into_iter()
            .zip(ring.positions(9))
            .collect::<Vec<_>>();
        held.sort_by_key(|&(_, position)| position);
        held
    }

    #[test]
    fn the_newest_queries_are_held_with_their_positions_whatever_the_chunks() {
        for chunks in [vec![9], vec![2, 1, 3, 3], vec![4, 5], vec![1; 9]] {
            let held = held(QuerySource::Stream, &chunks, &[]);
            assert_eq!(held, [(5, 5), (6, 6), (7, 7), (8, 8)]);
        }
    }

    #[test]
    fn an_instruction_is_held_until_the_next_one_and_asked_at_the_end() {
        for chunks in [vec![9], vec![2, 1, 3, 3], vec![4, 5], vec![1; 9]] {
            let held = |spans: &[(u64, u64)]| held(QuerySource::Instruction, &chunks, spans);
            assert_eq!(held(&[]), [(5, 5), (6, 6), (7, 7), (8, 8)]);
            assert_eq!(held(&[(2, 4)]), [(2, 7), (3, 8)]);
            assert_eq!(held(&[(0, 6)]), [(2, 5), (3, 6), (4, 7), (5, 8)]);
            assert_eq!(held(&[(1, 3), (5, 8)]), [(5, 6), (6, 7), (7, 8)]);
        }
    }
}
