//! The parameters of `inf_mllm_plus` beyond those of `inf_mllm`.

use super::PolicyKind;
use crate::cache::parameter::{parameters, TOKENS};

parameters! {
    section "Memory of inf_mllm_plus";
    /// What `inf_mllm_plus` has beyond `inf_mllm`.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct PlusConfig {
        /// Frames, turns and sentences are kept or evicted as a whole.
        units: bool = true, read by [InfMllmPlus];
        /// Neighbours that a score is averaged over, an odd number; 1: none.
        pool: usize = 1, range 1..=TOKENS, unit "tokens", read by [InfMllmPlus];
        /// Scores are weighted by the length of the value vectors.
        value_norms: bool = false, read by [InfMllmPlus];
        /// Share of novelty against attention in the scores: what is unlike the rest of the stream stays.
        novelty_weight: f64 = 1.0, range 0.0..=1.0, read by [InfMllmPlus];
        /// Age bias of the share of novelty, per token of age.
        novelty_bias: f64 = 0.0001, range 0.0..=1e6, unit "mean novelty", read by [InfMllmPlus];
        /// Share of the likeness to the standing instruction against both, where there is one.
        standing_weight: f64 = 0.6, range 0.0..=1.0, read by [InfMllmPlus];
        /// Age bias of the standing instruction's share, per token of age.
        standing_bias: f64 = 0.0001, range 0.0..=1e6, unit "mean likeness", read by [InfMllmPlus];
        /// Positions between relevant and recent tokens that are left out, once tokens have been evicted; at most what the budget
        /// leaves of them.
        position_gap: f64 = 0.125, range 0.0..=1.0, unit "longest input of the model", read by [InfMllmPlus];
    }
    parts {}
    others {}
}
