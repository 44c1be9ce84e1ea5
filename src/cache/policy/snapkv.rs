//! `snapkv`: the last queries vote for keys and their neighbours, per KV head (SnapKV, arXiv 2404.14469, section 4).
//!
//! The observation window of 32 queries is kept itself; votes are max-pooled over 5 neighbours. The paper compresses a prompt
//! once; here every compaction does it again.

use super::{pooled, Candidates, Evidence, Policy};
use crate::cache::config::{QuerySource, Scope};

/// Queries that vote.
const WINDOW: usize = 32;
/// Candidates that a vote is spread over.
const POOL: usize = 5;

#[derive(Debug)]
pub struct SnapKv;

impl Policy for SnapKv {
    fn scope(&self) -> Scope {
        Scope::KvHead
    }

    fn evidence(&self) -> Evidence {
        Evidence::Window {
            queries: WINDOW,
            source: QuerySource::Stream,
            standing: false,
            novelty: false,
            value_norms: false,
        }
    }

    fn recent(&self, kept: usize) -> usize {
        WINDOW.min(kept / 2).max(1)
    }

    fn values(&self, candidates: &Candidates<'_>, values: &mut [f32]) {
        let votes = pooled(candidates.scores, POOL, |votes| {
            votes.iter().copied().fold(0.0, f32::max)
        });
        values.copy_from_slice(&votes);
    }
}
