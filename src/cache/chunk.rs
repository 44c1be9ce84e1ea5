//! A chunk of the stream at one layer, in pieces where it does not fit.

use candle_core::{bail, Result, Tensor};

use super::compaction::{compact, Workspace};
use super::config::Scope;
use super::layer::LayerCache;
use super::policy::Evidence;
use super::shared::Shared;
use super::slots::Token;
use super::store::Chunk;

/// A layer at work: its cache, and what it shares with the others.
pub struct LayerSlots<'a> {
    pub(super) layer: &'a mut LayerCache,
    pub(super) shared: &'a Shared,
    pub(super) workspace: &'a mut Workspace,
}

impl LayerSlots<'_> {
    /// Appends a chunk and attends to the whole cache with it; a chunk longer than the free slots goes in pieces, with a
    /// compaction before each that would not fit.
    ///
    /// `q` is `[heads, tokens, head_dim]`, `k` and `v` are `[kv_heads, tokens, head_dim]`, none rotated and all contiguous.
    /// Returns `[tokens, heads * head_dim]`.
    pub fn attend(
        &mut self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        tokens: &[Token],
    ) -> Result<Tensor> {
        let chunk = Chunk {
            queries: q.clone(),
            keys: k.clone(),
            values: v.clone(),
        };
        self.layer.hear(&chunk, tokens)?;
        let noted = self.layer.notes(tokens);
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < tokens.len() {
            if self.layer.len() == self.shared.plan.budget {
                if self.shared.policy.scope() == Scope::Model {
                    bail!(
                        "a chunk of {} tokens is longer than the free slots, which all layers have to make together",
                        tokens.len()
                    )
                }
                let relevant = self.shared.plan.relevant;
                compact(&mut [self.layer], relevant, self.shared, self.workspace)?;
            }
            let left = tokens.len() - start;
            let count = left.min(self.shared.plan.budget - self.layer.len());
            // A sum that fades with each query cannot be taken over several at once.
            let count = match self.shared.policy.evidence() {
                Evidence::History { decay } if decay < 1.0 => 1,
                _ => count,
            };
            let taken = &tokens[start..start + count];
            let piece = match count == tokens.len() {
                true => chunk.clone(),
                false => chunk.narrow(start, count)?,
            };
            let axes = &mut self.workspace.axes;
            let noted = noted && start + count == tokens.len();
            let out = (self.layer).attend(&piece, (taken, noted), self.shared, axes)?;
            pieces.push(out);
            start += count;
        }
        Tensor::cat(&pieces, 1)?.transpose(0, 1)?.flatten_from(1)
    }
}
