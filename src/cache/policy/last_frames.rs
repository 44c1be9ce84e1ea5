//! `last_frames`: no memory at all; the last frames are encoded again for every question (SimpleStream, arXiv 2604.02317).
//!
//! Encoding again is the session's work. The cache itself keeps the newest tokens, should the last frames be too many for it.

use super::{Candidates, Policy};

#[derive(Debug)]
pub struct LastFrames;

impl Policy for LastFrames {
    fn recent(&self, kept: usize) -> usize {
        kept
    }

    fn values(&self, _candidates: &Candidates<'_>, _values: &mut [f32]) {}
}
