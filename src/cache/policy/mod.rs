//! The eviction policies, one file each: which keys to keep, from scores and ages.
//!
//! A policy only gives numbers: how many of the newest tokens always stay, what it wants to know of the others, and a value for
//! each of them. Storage, scoring, the top-k, moving rows, positions and statistics are shared code in the folder above.
//!
//! To add a policy:
//! 1. write `policy/<name>.rs` with a type that implements [`Policy`], its source and its formula in the comments, and its
//!    parameters' defaults as published;
//! 2. add a variant to [`PolicyKind`] (`config/choices.rs`) with its name, and build it in [`PolicyKind::build`];
//! 3. add it to [`PolicyKind::ALL`]: the property tests, the goldens' coverage test and the command line run over every entry;
//! 4. if it has parameters of its own, add them to the list of `CacheConfig`, and print `config/inf_mllm.yaml` and
//!    `docs/parameters.md` anew (`inf_mllm parameters`);
//! 5. write it down in the reference (`tests/golden/reference.py`) and add a golden case.

mod full;
mod h2o;
mod inf_mllm;
mod inf_mllm_plus;
mod last_frames;
mod snapkv;
mod streaming_llm;
mod tova;
mod window;

pub use super::config::{BiasForm, PlusConfig, PolicyKind};
use super::config::{CacheConfig, CacheError, QuerySource, Scope};
use super::slots::Token;

/// The candidates of one compaction in one kept set: neither prefix nor recent, oldest first.
///
/// What the policy did not ask for is empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Candidates<'a> {
    /// `[candidates]`
    pub tokens: &'a [Token],
    /// Attention that each candidate got, `[candidates]`: from the query window per query that sees it, or from all queries so
    /// far in sum.
    pub scores: &'a [f32],
    /// How much each candidate's unit is like the standing instruction, 0 to 1, `[candidates]`; empty when there is none.
    pub standing: &'a [f32],
    /// How unlike the mean of the stream each candidate's key is, 0 to 2, `[candidates]`.
    pub novelty: &'a [f32],
    /// L2 norm of each candidate's value vector, mean over the set's KV heads, `[candidates]`.
    pub value_norms: &'a [f32],
    /// Index of the newest token in the stream.
    pub newest: u64,
    /// How many of the candidates stay.
    pub room: usize,
    /// Those among them that stay whatever their value, `[candidates]`.
    pub protected: &'a [bool],
}

/// What a policy's values rest on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Evidence {
    /// The order of time alone.
    Age,
    /// Attention of the newest queries, computed at a compaction.
    Window {
        queries: usize,
        source: QuerySource,
        standing: bool,
        novelty: bool,
        value_norms: bool,
    },
    /// Attention of all queries since the key came, summed up step by step. The sum shrinks by `decay` with each query; 1: never.
    History { decay: f32 },
}

/// What a policy decides. Implementations hold parameters only; they carry nothing from one compaction to the next.
pub trait Policy: Send + Sync + std::fmt::Debug {
    /// False: nothing is ever evicted, and a full cache is an error.
    fn evicts(&self) -> bool {
        true
    }

    /// First tokens of the stream that are never evicted.
    fn sinks(&self) -> usize {
        0
    }

    /// Slots that a compaction leaves free when the user does not say, at least 1.
    fn slack(&self, budget: usize) -> usize {
        (budget / 8).max(1)
    }

    /// What shares one kept set; not [`Scope::Auto`].
    fn scope(&self) -> Scope {
        Scope::Layer
    }

    fn evidence(&self) -> Evidence {
        Evidence::Age
    }

    /// Positions between the relevant and the recent tokens that are left out, as a share of the model's longest input; what the
    /// budget leaves of that at most.
    fn gap(&self) -> f64 {
        0.0
    }

    /// How many of `kept` slots above the prefix belong to the newest tokens.
    fn recent(&self, kept: usize) -> usize;

    /// Writes the value of each candidate into `values` (`[candidates]`); the highest are kept, the newer one on a tie.
    ///
    /// Not called when the policy keeps nothing but prefix and recent tokens.
    fn values(&self, candidates: &Candidates<'_>, values: &mut [f32]);
}

impl PolicyKind {
    /// The policy with the parameters that `config` gives it.
    pub fn build(self, config: &CacheConfig) -> Result<Box<dyn Policy>, CacheError> {
        Ok(match self {
            Self::Full => Box::new(full::Full),
            Self::Window => Box::new(window::Window),
            Self::StreamingLlm => Box::new(streaming_llm::StreamingLlm {
                sinks: config.sinks,
            }),
            Self::H2o => Box::new(h2o::H2o::new(config)?),
            Self::Tova => Box::new(tova::Tova),
            Self::SnapKv => Box::new(snapkv::SnapKv),
            Self::InfMllm => Box::new(inf_mllm::InfMllm::new(config)?),
            Self::InfMllmPlus => Box::new(inf_mllm_plus::InfMllmPlus::new(config)?),
            Self::LastFrames => Box::new(last_frames::LastFrames),
        })
    }
}

/// For each candidate, `pick` over the `width` candidates around it (odd; cut off at the ends).
fn pooled(scores: &[f32], width: usize, pick: impl Fn(&[f32]) -> f32) -> Vec<f32> {
    let reach = width / 2;
    (0..scores.len())
        .map(|j| pick(&scores[j.saturating_sub(reach)..(j + reach + 1).min(scores.len())]))
        .collect()
}

/// Divides `scores` by their mean, so that 1.0 means "average" whatever the budget; all zeros stay zeros.
fn relative(scores: &mut [f32]) {
    let mean = scores.iter().sum::<f32>() / scores.len().max(1) as f32;
    let scale = if mean > 0.0 { 1.0 / mean } else { 0.0 };
    scores.iter_mut().for_each(|score| *score *= scale);
}
