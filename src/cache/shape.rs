//! What the cache must know of the decoder.

use super::rope::{Rope, RopeAxes};

/// What the cache must know of the decoder.
#[derive(Debug, Clone, Copy)]
pub struct CacheShape {
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rope: Rope,
    /// Longest input the model was made for, tokens.
    pub max_positions: usize,
}

impl CacheShape {
    /// Whether positions have three axes.
    pub(super) fn has_axes(&self) -> bool {
        self.rope.axes != RopeAxes::One
    }
}
