//! What the tokens that somebody follows attend to, at one layer: those of a question's end and of its answer.
//!
//! On the CPU it is noted frame by frame as attention is computed. The kernels of a device do not tell what they find; there the newest
//! queries are kept before rotation, by reference to the tensors that attention was given, and asked once more afterwards. Of tokens that
//! a step's kernels have appended the queries are in the ring, as far as it holds them.

use std::collections::{BTreeMap, VecDeque};

use candle_core::{Result, Tensor};

use super::slots::{FrameId, SlotMap, Token};

/// Whether a chunk is followed: a question or a piece of an answer, but no frame in between.
pub fn is_followed(chunk: &[Token]) -> bool {
    let first = chunk.first().map(|token| token.mark);
    first.is_some_and(|mark| mark.is_text() && (mark.instruction || !mark.starts_unit))
}

/// What is known of the tokens that are followed.
#[derive(Debug)]
pub enum Followed {
    Frames(Frames),
    Queries(Queries),
}

/// What frames have got so far.
#[derive(Debug, Default)]
pub struct Frames {
    /// Probability that the image tokens of each have got, the sum over tokens and KV heads.
    pub sums: BTreeMap<FrameId, f32>,
    /// Tokens that this is the sum of.
    pub tokens: usize,
}

impl Frames {
    /// Adds what the image tokens of a kept set get of `sums`, `[len]`, by slot.
    pub fn add(&mut self, slots: &SlotMap, sums: &[f32]) {
        // Tokens of a frame mostly stand side by side.
        let mut slots = slots.tokens().iter().zip(sums).peekable();
        while let Some((token, &sum)) = slots.next() {
            let frame = token.mark.frame;
            let mut sum = sum;
            while let Some((_, more)) = slots.next_if(|(next, _)| next.mark.frame == frame) {
                sum += more;
            }
            if let Some(frame) = frame {
                *self.sums.entry(frame).or_default() += sum;
            }
        }
    }
}

/// The newest queries.
#[derive(Debug)]
pub struct Queries {
    /// Queries that are kept, at most.
    limit: usize,
    /// Of chunks, oldest first, `[heads, tokens, head_dim]` each.
    chunks: VecDeque<Tensor>,
    /// Tokens of steps since the last chunk, whose queries are in the ring if anywhere.
    steps: usize,
}

impl Queries {
    /// Keeps at most `limit` queries.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            chunks: VecDeque::new(),
            steps: 0,
        }
    }

    /// The queries of a chunk; those that are too many by now are forgotten.
    pub fn push(&mut self, queries: &Tensor) -> Result<()> {
        if std::mem::take(&mut self.steps) > 0 {
            self.chunks.clear();
        }
        let tokens = queries.dim(1)?;
        let kept = tokens.min(self.limit);
        self.chunks
            .push_back(queries.narrow(1, tokens - kept, kept)?);
        let mut held = self.held()?;
        while let Some(oldest) = self.chunks.front() {
            let oldest = oldest.dim(1)?;
            if held - oldest < self.limit {
                break;
            }
            held -= oldest;
            self.chunks.pop_front();
        }
        Ok(())
    }

    /// Tokens that a step has appended.
    pub fn step(&mut self, tokens: usize) {
        self.steps += tokens;
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Tokens of steps since the last chunk.
    pub fn steps(&self) -> usize {
        self.steps
    }

    fn held(&self) -> Result<usize> {
        self.chunks.iter().map(|chunk| chunk.dim(1)).sum()
    }

    /// The newest of the chunks' queries, at most `count`, `[heads, count, head_dim]`; none where there are none.
    pub fn newest(&self, count: usize) -> Result<Option<Tensor>> {
        let held = self.held()?;
        let count = count.min(held);
        if count == 0 {
            return Ok(None);
        }
        let chunks = self.chunks.iter().collect::<Vec<_>>();
        let all = Tensor::cat(&chunks, 1)?;
        Ok(Some(all.narrow(1, held - count, count)?.contiguous()?))
    }
}
