//! Streams fed in chunks, in lock-step, with the loss of every token by block.

use std::time::Instant;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::loss::{token_losses, ROWS};
use super::model::EvalModel;
use super::EvalError;
use crate::cache::BoundedCache;

/// Sums of token losses by block of positions, nats. Token `i` belongs to block `i / size`; token 0 is never predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Blocks {
    /// Tokens per block.
    pub size: usize,
    pub sums: Vec<f64>,
    /// Tokens in each sum; 0 for a block that was not measured.
    pub counts: Vec<u32>,
}

impl Blocks {
    pub fn new(size: usize) -> Self {
        Self {
            size: size.max(1),
            sums: Vec::new(),
            counts: Vec::new(),
        }
    }

    /// Adds the losses of tokens `first`, `first + 1`, ...
    pub fn add(&mut self, first: usize, losses: &[f32]) {
        for (token, &loss) in (first..).zip(losses) {
            let block = token / self.size;
            if block >= self.sums.len() {
                self.sums.resize(block + 1, 0.0);
                self.counts.resize(block + 1, 0);
            }
            self.sums[block] += f64::from(loss);
            self.counts[block] += 1;
        }
    }

    /// Mean loss per token, nats.
    pub fn mean(&self) -> f64 {
        let tokens = self.counts.iter().sum::<u32>();
        self.sums.iter().sum::<f64>() / f64::from(tokens.max(1))
    }

    pub fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// Mean loss of every block that was measured as a whole in both: (block, own, other's).
    pub fn shared(&self, other: &Self) -> Vec<(usize, f64, f64)> {
        let blocks = self.sums.len().min(other.sums.len());
        (0..blocks)
            .filter(|&i| self.counts[i] > 0 && self.counts[i] == other.counts[i])
            .map(|i| {
                let count = f64::from(self.counts[i]);
                (i, self.sums[i] / count, other.sums[i] / count)
            })
            .collect()
    }
}

/// Several streams of the same tokens under different policies.
pub struct Feed<'m> {
    model: &'m EvalModel,
    pub caches: Vec<BoundedCache>,
    /// Losses of each stream.
    pub blocks: Vec<Blocks>,
    /// Tokens that every stream has taken.
    pub fed: usize,
    /// Time spent in the model and the caches, without the losses, seconds.
    pub seconds: f64,
    /// Hidden states that wait for their losses, each `[streams, tokens, hidden]`: products over the vocabulary want many rows.
    held: Vec<Tensor>,
    targets: Vec<u32>,
    /// The newest token.
    last: Option<u32>,
    /// Tokens whose losses have been worked out; the first token is never predicted.
    settled: usize,
}

impl<'m> Feed<'m> {
    /// `block`: tokens per block of losses.
    pub fn new(model: &'m EvalModel, caches: Vec<BoundedCache>, block: usize) -> Self {
        Self {
            model,
            blocks: vec![Blocks::new(block); caches.len()],
            caches,
            fed: 0,
            seconds: 0.0,
            held: Vec::new(),
            targets: Vec::new(),
            last: None,
            settled: 0,
        }
    }

    /// Appends `chunk` to every stream, which then makes room for one more like it. `next` is the token after it, if there is one.
    pub fn chunk(&mut self, chunk: &[u32], next: Option<u32>) -> Result<(), EvalError> {
        let start = Instant::now();
        let hidden = self.model.append(self.last, chunk, &mut self.caches)?;
        self.last = chunk.last().copied();
        for cache in &mut self.caches {
            cache.reserve(chunk.len())?;
        }
        self.seconds += start.elapsed().as_secs_f64();
        self.fed += chunk.len();
        let targets = chunk[1..].iter().copied().chain(next);
        let before = self.targets.len();
        self.targets.extend(targets);
        let rows = self.targets.len() - before;
        if rows > 0 {
            let hidden = hidden.reshape((self.caches.len(), chunk.len(), ()))?;
            self.held.push(hidden.narrow(1, 0, rows)?);
        }
        if self.targets.len() >= ROWS || next.is_none() {
            self.settle()?;
        }
        Ok(())
    }

    /// Works out the losses that are waiting.
    pub fn settle(&mut self) -> Result<(), EvalError> {
        if self.held.is_empty() {
            return Ok(());
        }
        let hidden = Tensor::cat(&self.held, 1)?;
        let first = self.settled + 1;
        for (i, blocks) in self.blocks.iter_mut().enumerate() {
            let losses = token_losses(&self.model.decoder, &hidden.get(i)?, &self.targets)?;
            blocks.add(first, &losses);
        }
        self.settled += self.targets.len();
        self.held.clear();
        self.targets.clear();
        Ok(())
    }
}
