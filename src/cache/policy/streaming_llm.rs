//! `streaming_llm`: attention sinks and the newest tokens (StreamingLLM, arXiv 2309.17453, section 3.2; four sinks there).

use super::{Candidates, Policy};

#[derive(Debug)]
pub struct StreamingLlm {
    /// First tokens of the stream that stay.
    pub sinks: usize,
}

impl Policy for StreamingLlm {
    fn sinks(&self) -> usize {
        self.sinks
    }

    fn recent(&self, kept: usize) -> usize {
        kept
    }

    fn values(&self, _candidates: &Candidates<'_>, _values: &mut [f32]) {}
}
