//! What a cache takes beside keys, values and states, and what attention works with: bytes, from parameters alone.

use candle_core::DType;

use super::config::{CacheConfig, CacheError, Scope};
use super::kernel::Staged;
use super::policy::Evidence;
use super::shape::CacheShape;
use super::slots::Token;

impl CacheShape {
    /// What a cache with these parameters keeps beside keys, values and states: which token stands where, what keys turn by, and what
    /// policies score by (queries of `dtype`, sums of attention).
    pub fn beside_bytes(&self, config: &CacheConfig, dtype: DType) -> Result<u64, CacheError> {
        let policy = config.policy.build(config)?;
        let sets = match policy.scope() {
            Scope::KvHead => self.kv_heads,
            Scope::Auto | Scope::Layer | Scope::Model => 1,
        };
        let (queries, sums) = match policy.evidence() {
            Evidence::Window { queries, .. } => (queries.min(config.budget), 0),
            Evidence::History { .. } => (0, self.kv_heads),
            Evidence::Age => (0, 0),
        };
        // Where positions have three axes, each kept set has a table of its own.
        let tables = match self.has_axes() {
            true => self.layers * sets,
            false => 1 + usize::from(policy.gap() > 0.0),
        };
        let float = size_of::<f32>();
        let of_slot = self.layers * (sets * (size_of::<Token>() + size_of::<u32>()) + sums * float)
            + tables * self.head_dim * float;
        let of_query = self.layers * self.heads * self.head_dim * dtype.size_in_bytes();
        let [budget, of_slot, queries, of_query] =
            [config.budget, of_slot, queries, of_query].map(|count| count as u64);
        let slots = budget.saturating_mul(of_slot);
        Ok(slots.saturating_add(queries.saturating_mul(of_query)))
    }

    /// What the attention of many tokens makes of so many slots' keys and values on the CPU.
    pub fn staged_bytes(&self, slots: usize) -> u64 {
        Staged::bytes((self.kv_heads, self.head_dim), slots)
    }
}
