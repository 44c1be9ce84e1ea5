//! `h2o`: heavy hitters by the attention of all queries so far, and recent tokens (H2O, arXiv 2306.14048, algorithm 1).
//!
//! ```text
//! value[j] = sum over every query i since key j came of mean over the group's heads of A[h, i, j]
//! ```
//!
//! As published: half of the kept slots for heavy hitters and half for recent tokens, one set per KV head, and an eviction with
//! every token (slack 1: the new token takes the evicted one's slot). The sums only grow, which freezes the kept set on long
//! streams; that is the published method. `h2o_decay` below 1 lets them fade and is ours.

use super::{Candidates, Evidence, Policy};
use crate::cache::config::{CacheConfig, CacheError, Scope};

#[derive(Debug)]
pub struct H2o {
    decay: f32,
}

impl H2o {
    pub fn new(config: &CacheConfig) -> Result<Self, CacheError> {
        if !(config.h2o_decay > 0.0 && config.h2o_decay <= 1.0) {
            return Err(CacheError::Parameter {
                name: "h2o_decay",
                value: config.h2o_decay.to_string(),
                expected: "above 0, at most 1".to_string(),
            });
        }
        Ok(Self {
            decay: config.h2o_decay as f32,
        })
    }
}

impl Policy for H2o {
    fn slack(&self, _budget: usize) -> usize {
        1
    }

    fn scope(&self) -> Scope {
        Scope::KvHead
    }

    fn evidence(&self) -> Evidence {
        Evidence::History { decay: self.decay }
    }

    fn recent(&self, kept: usize) -> usize {
        (kept / 2).max(1)
    }

    fn values(&self, candidates: &Candidates<'_>, values: &mut [f32]) {
        values.copy_from_slice(candidates.scores);
    }
}
