//! What the cache must know of the decoder.

use super::rope::{Rope, RopeAxes};
use super::state::StateShape;

/// What the cache must know of the decoder.
#[derive(Debug, Clone, Copy)]
pub struct CacheShape {
    /// Layers that keep keys and values. A decoder may have others; here and in parameters, layers are counted without those.
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rope: Rope,
    /// Longest input the model was made for, tokens.
    pub max_positions: usize,
    /// The layers that keep a state in the place of keys.
    pub states: StateShape,
}

impl CacheShape {
    /// Whether positions have three axes.
    pub(super) fn has_axes(&self) -> bool {
        self.rope.axes != RopeAxes::One
    }
}
