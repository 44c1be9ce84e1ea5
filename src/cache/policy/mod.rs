//! The eviction policies, one file each: which keys to keep, from scores and ages.
//!
//! A policy only gives numbers: how many of the newest tokens always stay, and a value for each candidate in between.
//! Storage, scoring, the top-k, the gather, positions and statistics are shared code in the folder above.
//!
//! To add a policy:
//! 1. write `policy/<name>.rs` with a type that implements [`Policy`], its source and its formula in the comments;
//! 2. add a variant to [`PolicyKind`] with its name, and build it in [`PolicyKind::build`];
//! 3. add it to [`PolicyKind::ALL`]: the property tests run over every entry;
//! 4. give its parameters a field in `CacheConfig`, in `config/inf_mllm.yaml` and in the node's parameters;
//! 5. extend the reference and the golden files, if it uses scores.

mod full;
mod inf_mllm;
mod streaming_llm;
mod window;

use std::fmt;
use std::str::FromStr;

pub use full::Full;
pub use inf_mllm::{BiasForm, InfMllm};
pub use streaming_llm::StreamingLlm;
pub use window::Window;

use super::config::{CacheConfig, CacheError};

/// The candidates of one compaction in one kept set: neither prefix nor recent, oldest first.
pub struct Candidates<'a> {
    /// Mean attention that each candidate gets from the query window, `[candidates]`; empty without a query window.
    pub scores: &'a [f32],
    /// Index of each candidate in the stream, `[candidates]`.
    pub indices: &'a [u64],
    /// Index of the newest token in the stream.
    pub newest: u64,
}

/// What a policy decides. Implementations hold parameters only; they carry nothing from one compaction to the next.
pub trait Policy: Send + Sync + fmt::Debug {
    /// False: nothing is ever evicted, and a full cache is an error.
    fn evicts(&self) -> bool {
        true
    }

    /// First tokens of the stream that are never evicted.
    fn sinks(&self) -> usize {
        0
    }

    /// How many of the newest queries score the cached keys; 0 when no score is needed.
    fn query_window(&self) -> usize {
        0
    }

    /// How many of `kept` slots above the prefix belong to the newest tokens.
    fn recent(&self, kept: usize) -> usize;

    /// Writes the value of each candidate into `values` (`[candidates]`); the highest are kept, the newer one on a tie.
    ///
    /// Not called when the policy keeps nothing but prefix and recent tokens.
    fn values(&self, candidates: &Candidates<'_>, values: &mut [f32]);
}

/// The policies by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyKind {
    Full,
    Window,
    StreamingLlm,
    InfMllm,
}

impl PolicyKind {
    pub const ALL: [Self; 4] = [Self::Full, Self::Window, Self::StreamingLlm, Self::InfMllm];

    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Window => "window",
            Self::StreamingLlm => "streaming_llm",
            Self::InfMllm => "inf_mllm",
        }
    }

    /// The policy with the parameters that `config` gives it.
    pub fn build(self, config: &CacheConfig) -> Result<Box<dyn Policy>, CacheError> {
        Ok(match self {
            Self::Full => Box::new(Full),
            Self::Window => Box::new(Window),
            Self::StreamingLlm => Box::new(StreamingLlm {
                sinks: config.sinks,
            }),
            Self::InfMllm => Box::new(InfMllm::new(config)?),
        })
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PolicyKind {
    type Err = CacheError;

    fn from_str(s: &str) -> Result<Self, CacheError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == s)
            .ok_or_else(|| CacheError::Unknown {
                what: "policy",
                name: s.to_string(),
                expected: "full, window, streaming_llm, inf_mllm",
            })
    }
}
