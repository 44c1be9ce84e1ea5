//! Keys and queries before rotation as they come by, for what is to be known of tokens beyond what the cache keeps of them.
//!
//! Nothing is noted unless somebody listens, and what is noted are the tensors that attention was given: no copies.

use candle_core::Tensor;

/// What one layer was given while somebody listened, before rotation.
#[derive(Debug, Clone)]
pub struct Heard {
    pub layer: usize,
    /// `[heads, tokens, head_dim]`
    pub queries: Tensor,
    /// `[kv_heads, tokens, head_dim]`
    pub keys: Tensor,
}

/// The chunks that came by, queries and keys of each.
pub type Chunks = Vec<[Tensor; 2]>;
