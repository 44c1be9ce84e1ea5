//! What the attention of every decoder layer does between its projections: streams apart, heads apart, each on its cache.

use candle_core::{Result, Tensor};

use super::working::Moment;
use crate::cache::{LayerSlots, Token};

/// How many heads a layer has, and how wide they are.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// Queries, keys and values before rotation, `[streams * tokens, heads * head_dim]` (keys and values: `kv_heads`).
pub struct Projected {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
}

impl Heads {
    /// Numbers of a token's queries, and of its keys.
    pub fn widths(&self) -> (usize, usize) {
        (self.heads * self.head_dim, self.kv_heads * self.head_dim)
    }

    /// What is alive in [`Self::attend`] beside `numbers` numbers of each token: what was projected, the same head by head, queries that are
    /// turned, and what comes of them.
    pub fn attending(&self, numbers: usize) -> Moment {
        let (queries, keys) = self.widths();
        Moment {
            numbers: numbers + 2 * (queries + 2 * keys) + 2 * queries,
            rounded: 0,
            attends: true,
        }
    }

    /// The attention of each stream on its own cache: `[streams * tokens, heads * head_dim]`.
    pub fn attend(
        &self,
        projected: &Projected,
        tokens: &[Vec<Token>],
        caches: Vec<LayerSlots<'_>>,
    ) -> Result<Tensor> {
        let mut attended = Vec::with_capacity(tokens.len());
        for (i, (mut cache, tokens)) in caches.into_iter().zip(tokens).enumerate() {
            let split = |x: &Tensor, heads: usize| {
                // [tokens, heads * head_dim] of one stream -> [heads, tokens, head_dim]
                x.narrow(0, i * tokens.len(), tokens.len())?
                    .reshape((tokens.len(), heads, self.head_dim))?
                    .transpose(0, 1)?
                    .contiguous()
            };
            attended.push(cache.attend(
                &split(&projected.q, self.heads)?,
                &split(&projected.k, self.kv_heads)?,
                &split(&projected.v, self.kv_heads)?,
                tokens,
            )?);
        }
        match attended.as_slice() {
            [one] => Ok(one.clone()),
            several => Tensor::cat(several, 0),
        }
    }

    /// `change` on every head of `x` (`[rows, heads * head_dim]`), which it gets as `[rows * heads, head_dim]`.
    pub fn each(&self, x: &Tensor, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        change(&x.reshape(((), self.head_dim))?)?.reshape(x.shape())
    }
}

/// A head's dimensions such that those which rotate, the first `rotary_dim`, lie in pairs `(i, i + head_dim / 2)`, as the cache has
/// them. Products of queries and keys are the same in any order.
pub fn rotary_order(head_dim: usize, rotary_dim: usize) -> Vec<usize> {
    let (half, turning) = (head_dim / 2, rotary_dim / 2);
    let first = (0..turning).chain(rotary_dim..rotary_dim + half - turning);
    let second = (turning..rotary_dim).chain(rotary_dim + half - turning..head_dim);
    first.chain(second).collect()
}
