//! The ring of the last raw queries of a layer, from which scores are computed at a compaction.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::journal::SavedRows;
use super::parameter::choice;
use super::slots::Token;

/// Which queries score the cached keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuerySource {
    /// The newest of the stream, whatever they are.
    Stream,
    /// Those of the newest instruction, asked again at the end of the stream; before the first one, the stream's.
    Instruction,
}

impl QuerySource {
    pub const ALL: [Self; 2] = [Self::Stream, Self::Instruction];

    /// As parameters name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Instruction => "instruction",
        }
    }
}

choice!(QuerySource);

/// The newest `window` queries before rotation, overwritten in place.
#[derive(Debug)]
pub struct QueryRing {
    /// `[heads, capacity, head_dim]`, not rotated; in ring order.
    raw: Tensor,
    source: QuerySource,
    state: RingState,
}

/// What the ring holds.
#[derive(Debug, Clone, Copy)]
pub struct RingState {
    /// Queries that it turns through, at most its capacity.
    window: usize,
    /// Queries held, at most `window`.
    count: usize,
    /// Ring slot of the next query.
    cursor: usize,
    /// An instruction has come since the ring was last emptied, and the last token was one of its.
    instructed: bool,
    within_instruction: bool,
}

impl RingState {
    fn empty(window: usize) -> Self {
        Self {
            window,
            count: 0,
            cursor: 0,
            instructed: false,
            within_instruction: false,
        }
    }
}

/// What is done before slots of the ring (`[heads, capacity, head_dim]`) are overwritten.
pub type BeforeWriting<'a> = &'a mut dyn FnMut(&Tensor, Range<usize>) -> Result<()>;

impl QueryRing {
    /// An empty ring of `window` queries, which can be [emptied](Self::empty) to one of up to `capacity`.
    pub fn new(
        heads: usize,
        (window, capacity, source): (usize, usize, QuerySource),
        head_dim: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let capacity = capacity.max(window);
        Ok(Self {
            // A ring of one that nothing reads stands in where no score is needed.
            raw: Tensor::zeros((heads, capacity.max(1), head_dim), dtype, device)?,
            source,
            state: RingState::empty(window),
        })
    }

    /// Takes the newest of the queries `q` (`[heads, tokens, head_dim]`, not rotated) that the source wants.
    pub fn push(&mut self, q: &Tensor, tokens: &[Token], before: BeforeWriting) -> Result<()> {
        if self.state.window == 0 {
            return Ok(());
        }
        if self.source == QuerySource::Stream {
            return self.take(q, 0..tokens.len(), before);
        }
        let mut at = 0;
        for run in tokens.chunk_by(|a, b| a.mark.instruction == b.mark.instruction) {
            let instruction = run[0].mark.instruction;
            if instruction && !self.state.within_instruction {
                self.state.instructed = true;
                self.state.count = 0;
                self.state.cursor = 0;
            }
            self.state.within_instruction = instruction;
            if instruction || !self.state.instructed {
                self.take(q, at..at + run.len(), before)?;
            }
            at += run.len();
        }
        Ok(())
    }

    /// Takes the newest of the queries `given` of `q`.
    fn take(&mut self, q: &Tensor, given: Range<usize>, before: BeforeWriting) -> Result<()> {
        let RingState { window, .. } = self.state;
        let taken = given.len().min(window);
        let mut from = given.end - taken;
        while from < given.end {
            let cursor = self.state.cursor;
            let run = (window - cursor).min(given.end - from);
            before(&self.raw, cursor..cursor + run)?;
            let new = q.narrow(1, from, run)?.contiguous()?;
            self.raw.slice_set(&new, 1, cursor)?;
            from += run;
            self.state.cursor = (cursor + run) % window;
        }
        self.state.count = (self.state.count + taken).min(window);
        Ok(())
    }

    pub fn count(&self) -> usize {
        self.state.count
    }

    /// The queries held, `[heads, count, head_dim]`, in ring order.
    pub fn raw(&self) -> Result<Tensor> {
        self.raw.narrow(1, 0, self.count())?.contiguous()
    }

    /// Position of each query in ring order, when `len` slots are in use: as if the newest stood at the end of the stream.
    pub fn positions(&self, len: usize) -> Vec<u32> {
        let RingState { window, cursor, .. } = self.state;
        (0..self.count())
            .map(|slot| {
                let age = (cursor + window - 1 - slot) % window;
                (len - 1 - age) as u32
            })
            .collect()
    }

    /// Forgets all queries; `window` is at most the capacity.
    pub fn empty(&mut self, window: usize) {
        self.state = RingState::empty(window);
    }

    pub fn state(&self) -> RingState {
        self.state
    }

    /// Goes back to a state, with the queries that have been overwritten since.
    pub fn go_back(&mut self, state: RingState, overwritten: &mut SavedRows) -> Result<()> {
        self.state = state;
        overwritten.put_back(&[&self.raw])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::slots::Mark;

    /// Pushes queries 0, 1, 2 ... in chunks; those in `instructions` (from, to) are an instruction's. Returns query and position, oldest first.
    fn held(source: QuerySource, chunks: &[usize], instructions: &[(u64, u64)]) -> Vec<(f32, u32)> {
        let mut ring = QueryRing::new(1, (4, 4, source), 1, DType::F32, &Device::Cpu).unwrap();
        let mut next = 0;
        for &chunk in chunks {
            let indices = next..next + chunk as u64;
            let q = indices.clone().map(|i| i as f32).collect::<Vec<_>>();
            let tokens = indices
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
            let q = Tensor::from_vec(q, (1, chunk, 1), &Device::Cpu).unwrap();
            ring.push(&q, &tokens, &mut |_, _| Ok(())).unwrap();
            next += chunk as u64;
        }
        let raw = ring.raw().unwrap().flatten_all().unwrap();
        let queries = raw.to_vec1::<f32>().unwrap();
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
            assert_eq!(held, [(5., 5), (6., 6), (7., 7), (8., 8)]);
        }
    }

    #[test]
    fn an_instruction_is_held_until_the_next_one_and_asked_at_the_end() {
        for chunks in [vec![9], vec![2, 1, 3, 3], vec![4, 5], vec![1; 9]] {
            let held = |spans: &[(u64, u64)]| held(QuerySource::Instruction, &chunks, spans);
            assert_eq!(held(&[]), [(5., 5), (6., 6), (7., 7), (8., 8)]);
            assert_eq!(held(&[(2, 4)]), [(2., 7), (3., 8)]);
            assert_eq!(held(&[(0, 6)]), [(2., 5), (3., 6), (4., 7), (5., 8)]);
            assert_eq!(held(&[(1, 3), (5, 8)]), [(5., 6), (6., 7), (7., 8)]);
        }
    }
}
