//! The newest queries of a layer before rotation, for what is to be known of the tokens that have come last.
//!
//! Nothing is kept unless somebody follows. What is kept are references to the tensors that attention was given. Of tokens that a step's
//! kernels have appended the queries are in the ring, as far as it holds them.

use std::collections::VecDeque;

use candle_core::{Result, Tensor};

/// The newest queries of one layer, before rotation.
#[derive(Debug)]
pub struct Followed {
    /// Queries that are kept, at most.
    limit: usize,
    /// Of chunks, oldest first, `[heads, tokens, head_dim]` each.
    chunks: VecDeque<Tensor>,
    /// Tokens of steps since the last chunk, whose queries are in the ring if anywhere.
    steps: usize,
}

impl Followed {
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
