//! The cache's parameters.
//!
//! - this file: all of them, and what is said of a wrong one
//! - `choices`: what some of them choose among
//! - `plus`: those that only `inf_mllm_plus` has

mod choices;
mod plus;

pub use choices::{BiasForm, KvStorage, PolicyKind, QuerySource, Scope};
pub use plus::PlusConfig;

use super::attention::Kernel;
use super::parameter::{parameters, TOKENS};
use super::tensor_error::TensorError;

/// What can be wrong with the cache's parameters or with a request to it.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("cache parameter {name} is {value}, expected {expected}")]
    Parameter {
        name: &'static str,
        value: String,
        expected: String,
    },
    #[error(
        "the cache is full: {used} of {budget} slots are in use, {needed} more are needed, and policy full never evicts"
    )]
    Full {
        used: usize,
        budget: usize,
        needed: usize,
    },
    /// What a GPU has no room for, what is free and what would fit.
    #[error("{0}")]
    Memory(Box<str>),
    #[error("tensor operation in the cache: {0}")]
    Tensor(TensorError),
}

impl From<candle_core::Error> for CacheError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error.into())
    }
}

parameters! {
    section "Memory";
    /// Parameters of a bounded cache; all counts are in tokens (slots).
    #[derive(Debug, Clone)]
    pub struct CacheConfig {
        /// What stays in the cache: everything until the budget is used up and no frame is taken any more (full), the newest tokens
        /// (window), first and newest tokens (streaming_llm), what got attention, as the papers have it (h2o, tova, snapkv),
        /// attention with an age bias (inf_mllm), the same with the further rules below (inf_mllm_plus), or nothing but the last
        /// frames, fed again for every question (last_frames).
        policy: PolicyKind = PolicyKind::InfMllm;
        /// Slots per layer, a hard bound: at most the model's longest input, and at least what the system prompt, one frame and a
        /// short question need. Memory for all of them is allocated at the start.
        budget: usize = 512, range 1..=TOKENS, unit "tokens";
        /// Slots that a compaction leaves free; 0: 1 for h2o, an eighth of the budget for the others. More: fewer compactions, shorter
        /// memory.
        slack: usize = 0, range 0..=TOKENS, unit "tokens",
            read by [Window, StreamingLlm, H2o, Tova, SnapKv, InfMllm, InfMllmPlus, LastFrames];
        /// First tokens of the stream that are never evicted, even without a system prompt; a longer system turn covers them.
        sinks: usize = 4, range 0..=TOKENS, unit "tokens", read by [StreamingLlm, InfMllm, InfMllmPlus];
        /// Newest tokens that a compaction always keeps; 0: half of what is kept, five eighths for inf_mllm_plus.
        n_recent: usize = 0, range 0..=TOKENS, unit "tokens", read by [InfMllm, InfMllmPlus];
        /// Newest queries whose attention scores the cached keys; at most `n_recent` of them are used.
        query_window: usize = 32, range 1..=TOKENS, unit "tokens", read by [InfMllm, InfMllmPlus];
        /// Which queries these are: the newest, whatever they are (stream), or those of the newest instruction, asked again at the end
        /// of the stream (instruction).
        query_source: QuerySource = QuerySource::Stream, read by [InfMllm, InfMllmPlus];
        /// Weight of the age bias: older tokens are worth that much less. For slope the bias per token of age, for range that of the
        /// oldest candidate.
        bias: f64 = 0.002, range 0.0..=1e6, unit "mean candidate scores", read by [InfMllm, InfMllmPlus];
        /// What the bias multiplies: a token's age in tokens (slope), or its place between the newest and the oldest candidate (range).
        bias_form: BiasForm = BiasForm::Slope, read by [InfMllm];
        /// What shares one set of kept tokens: a KV head, the KV heads of a layer, or all layers (model); auto: layer for inf_mllm,
        /// model for inf_mllm_plus. The other policies have that of their paper.
        scope: Scope = Scope::Auto, read by [InfMllm, InfMllmPlus];
        /// Factor by which the sums of h2o fade with each query; 1: never, as published.
        h2o_decay: f64 = 1.0, range 0.001..=1.0, read by [H2o];
        /// Newest borders of turns that no policy evicts.
        protect_boundaries: usize = 0, range 0..=TOKENS, unit "tokens",
            read by [H2o, Tova, SnapKv, InfMllm, InfMllmPlus];
        /// What the frames of each camera are sure of, of the slots that hold frames, as weights in the order of `cameras` (2 and 1: two
        /// thirds and a third): as long as it sends, a compaction takes no more from it, beyond the newest `n_recent` tokens. Empty:
        /// nothing.
        camera_shares: Vec<f64> = Vec::new(), range 0.0..=1e6,
            read by [H2o, Tova, SnapKv, InfMllm, InfMllmPlus];
        /// Decoder layer from which on image tokens are left out (visual-token withdrawal, arXiv 2405.05803), counted among those that keep
        /// keys; 0: none. Saves memory and time.
        withdraw_layer: usize = 0, range 0..=TOKENS;
        /// Frames that last_frames feeds again for a question.
        last_frames: usize = 4, range 1..=TOKENS, unit "frames", read by [LastFrames];
        /// What keys and values are stored as; auto: as the model computes; f16: half the memory of f32; q8: 8-bit numbers, a scale for
        /// every 32 of a row, little more than half the memory of f16. Sums stay in f32.
        storage: KvStorage = KvStorage::Auto, name "kv_storage";
    }
    parts {
        /// What inf_mllm_plus has beyond inf_mllm.
        plus: PlusConfig;
    }
    others {
        /// Fused, or eager as a reference.
        kernel: Kernel = Kernel::Fused;
    }
}
