//! `window`: the newest tokens only (and the system prompt, which every policy keeps). The simplest baseline.

use super::{Candidates, Policy};

#[derive(Debug)]
pub struct Window;

impl Policy for Window {
    fn recent(&self, kept: usize) -> usize {
        kept
    }

    fn values(&self, _candidates: &Candidates<'_>, _values: &mut [f32]) {}
}
