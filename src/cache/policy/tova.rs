//! `tova`: what the last query does not attend to leaves first (Token Omission Via Attention, arXiv 2401.06104, section 4).
//!
//! One set for all heads of a layer, ranked by the mean of their attention; nothing but the last token itself is kept for being
//! recent. As published an eviction follows every token; here it falls where the slack is used up.

use super::{Candidates, Evidence, Policy};
use crate::cache::config::QuerySource;

#[derive(Debug)]
pub struct Tova;

impl Policy for Tova {
    fn evidence(&self) -> Evidence {
        Evidence::Window {
            queries: 1,
            source: QuerySource::Stream,
            standing: false,
            novelty: false,
            value_norms: false,
        }
    }

    fn recent(&self, _kept: usize) -> usize {
        1
    }

    fn values(&self, candidates: &Candidates<'_>, values: &mut [f32]) {
        values.copy_from_slice(candidates.scores);
    }
}
