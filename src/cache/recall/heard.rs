//! Keys and queries before rotation as they come by, for what is to be known of tokens beyond what the cache keeps of them.
//!
//! Nothing is noted unless somebody listens. What is noted are the tensors that attention was given; of tokens that a step's kernels have
//! appended, which leave no tensors behind, the keys as they were stored.

use candle_core::{Result, Tensor};

/// What one layer was given while somebody listened, before rotation.
#[derive(Debug, Clone)]
pub struct Heard {
    pub layer: usize,
    /// `[heads, tokens, head_dim]`; those of steps are missing.
    pub queries: Tensor,
    /// `[kv_heads, tokens, head_dim]`
    pub keys: Tensor,
}

/// What comes by at one layer.
#[derive(Debug, Default)]
pub struct Listening {
    /// Queries of each chunk.
    queries: Vec<Tensor>,
    /// Keys of each chunk, and of the steps between them.
    keys: Vec<Tensor>,
    /// Tokens of steps in the newest slots, whose keys are not among these yet.
    pub unheard: usize,
}

impl Listening {
    /// A chunk's queries and keys.
    pub fn push(&mut self, queries: &Tensor, keys: &Tensor) {
        self.queries.push(queries.clone());
        self.keys.push(keys.clone());
    }

    /// The keys of the tokens that were unheard.
    pub fn push_keys(&mut self, keys: Tensor) {
        self.keys.push(keys);
        self.unheard = 0;
    }

    /// All of it; `none` are no queries, `[heads, 0, head_dim]`. Nothing where nothing has come by.
    pub fn whole(self, layer: usize, none: Tensor) -> Result<Option<Heard>> {
        if self.keys.is_empty() {
            return Ok(None);
        }
        let queries = match self.queries.is_empty() {
            true => none,
            false => Tensor::cat(&self.queries, 1)?,
        };
        let keys = Tensor::cat(&self.keys, 1)?;
        Ok(Some(Heard {
            layer,
            queries,
            keys,
        }))
    }
}
