//! `full`: keeps every token; a full cache is an error. The reference that the other policies are compared with.

use super::{Candidates, Policy};

#[derive(Debug)]
pub struct Full;

impl Policy for Full {
    fn evicts(&self) -> bool {
        false
    }

    fn recent(&self, kept: usize) -> usize {
        kept
    }

    fn values(&self, _candidates: &Candidates<'_>, _values: &mut [f32]) {}
}
