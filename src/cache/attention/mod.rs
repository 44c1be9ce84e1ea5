//! Attention over the cached keys of one layer, and the probability that each key gets.
//!
//! - this file: what both ways share, and the choice between them
//! - `fused`: the kernel of the CPU as operations of candle
//! - `eager`: candle's own operations, on any device; what the fused kernel is compared with

mod eager;
mod fused;

use candle_core::{DType, Result, Tensor};

use super::rotary::RotaryTable;

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// One pass over the keys as they are stored; where there is no such kernel (on a GPU, or for f16 activations), eager.
    Fused,
    /// One operation of candle after the other.
    Eager,
}

/// The keys and values of one layer, and where they stand.
pub struct Past<'a> {
    /// Not rotated, `[kv_heads, budget, head_dim]`.
    pub keys: &'a Tensor,
    /// `[kv_heads, budget, head_dim]`
    pub values: &'a Tensor,
    /// Rank in time of each slot in use, for each kept set: one, or one per KV head.
    pub positions: Vec<&'a [u32]>,
    /// What ranks turn by: the same for all kept sets, or a table for each.
    pub rotary: Vec<&'a RotaryTable>,
    pub kernel: Kernel,
}

impl Past<'_> {
    /// Slots in use.
    fn len(&self) -> usize {
        self.positions[0].len()
    }

    fn fuses(&self, q: &Tensor) -> bool {
        self.kernel == Kernel::Fused && q.device().is_cpu() && q.dtype() == DType::F32
    }

    /// Causal attention of the queries `q` (`[heads, tokens, head_dim]`, not rotated) at `positions` (`[tokens]`) over every slot.
    ///
    /// A query sees the slots whose position is not above its own. Returns `[heads, tokens, head_dim]`. With `sums`
    /// (`[kv_heads, len]`), the probability that each slot gets is added there: the sum over the queries of the mean over the
    /// heads that share the KV head. Softmax in f32.
    pub fn attend(
        &self,
        q: &Tensor,
        positions: &[u32],
        sums: Option<&mut [f32]>,
    ) -> Result<Tensor> {
        if self.fuses(q) {
            fused::attend(self, q, positions, sums)
        } else {
            eager::attend(self, q, positions, sums)
        }
    }

    /// What [`Self::attend`] adds to `sums`, without the attention: `[kv_heads, len]`.
    pub fn sums(&self, q: &Tensor, positions: &[u32]) -> Result<Vec<f32>> {
        if self.fuses(q) {
            fused::sums(self, q, positions)
        } else {
            eager::sums(self, q, positions)
        }
    }
}
