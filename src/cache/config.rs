//! The cache's parameters, and the slot arithmetic that follows from them.

use std::str::FromStr;

use candle_core::DType;

use super::attention::Kernel;
use super::policy::{BiasForm, Evidence, PlusConfig, Policy, PolicyKind};
use super::queries::QuerySource;
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
    #[error("{name} is unknown as {what}, expected one of {expected}")]
    Unknown {
        what: &'static str,
        name: String,
        expected: String,
    },
    #[error("tensor operation in the cache: {0}")]
    Tensor(TensorError),
}

impl From<candle_core::Error> for CacheError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error.into())
    }
}

/// What shares one kept set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// As the policy has it.
    Auto,
    /// One kept set per KV head; scores are the mean over the head's group.
    KvHead,
    /// One kept set per layer; scores are the mean over all its heads.
    Layer,
    /// One kept set for all layers (those that visual tokens are withdrawn from have their own); scores are the mean over all heads
    /// of all layers. A chunk goes through the model in pieces, if a compaction is due within it.
    Model,
}

impl Scope {
    pub const ALL: [Self; 4] = [Self::Auto, Self::KvHead, Self::Layer, Self::Model];

    /// As parameters name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::KvHead => "kv_head",
            Self::Layer => "layer",
            Self::Model => "model",
        }
    }

    /// `own` for [`Scope::Auto`].
    pub fn or(self, own: Self) -> Self {
        match self {
            Self::Auto => own,
            given => given,
        }
    }
}

impl FromStr for Scope {
    type Err = CacheError;

    fn from_str(s: &str) -> Result<Self, CacheError> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.name() == s)
            .ok_or_else(|| CacheError::Unknown {
                what: "scope",
                name: s.to_string(),
                expected: Self::ALL.map(Self::name).join(", "),
            })
    }
}

/// What keys and values are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvStorage {
    /// As the model computes.
    Auto,
    F32,
    /// Half the memory; sums stay in f32.
    F16,
}

impl KvStorage {
    /// As parameters name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }

    /// The stored type where the model computes in `dtype`.
    pub fn dtype(self, dtype: DType) -> DType {
        match self {
            Self::Auto => dtype,
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
        }
    }
}

impl FromStr for KvStorage {
    type Err = CacheError;

    fn from_str(s: &str) -> Result<Self, CacheError> {
        match s {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            _ => Err(CacheError::Unknown {
                what: "kv_storage",
                name: s.to_string(),
                expected: "auto, f32, f16".to_string(),
            }),
        }
    }
}

/// Parameters of a bounded cache; all counts are in tokens (slots).
#[derive(Debug, Clone)]
pub struct CacheConfig {
    pub policy: PolicyKind,
    /// Slots allocated per layer, a hard bound.
    pub budget: usize,
    /// Slots that a compaction leaves free; 0: as the policy has it, an eighth of the budget for most.
    pub slack: usize,
    /// First tokens of the stream that streaming_llm and inf_mllm never evict, even without a system prompt.
    pub sinks: usize,
    /// Newest tokens that a compaction of inf_mllm always keeps; 0: half of what is kept, five eighths for inf_mllm_plus.
    pub n_recent: usize,
    /// Newest queries that score the cached keys; at most `n_recent` of them are used.
    pub query_window: usize,
    /// Weight of the age bias: for `range` the bias of the oldest candidate, for `slope` the bias per token of age,
    /// both in units of the mean candidate score.
    pub bias: f64,
    pub bias_form: BiasForm,
    /// What shares a kept set of inf_mllm (auto: layer) or inf_mllm_plus (auto: model). The other policies have that of their paper.
    pub scope: Scope,
    /// Which queries fill the query window of inf_mllm.
    pub query_source: QuerySource,
    /// Factor by which h2o's sums fade with each query; 1: never, as published.
    pub h2o_decay: f64,
    /// What inf_mllm_plus has beyond inf_mllm.
    pub plus: PlusConfig,
    /// Newest borders of turns that no policy evicts, tokens.
    pub protect_boundaries: usize,
    /// Layer from which on visual tokens are left out (visual-token withdrawal, arXiv 2405.05803); 0: none.
    pub withdraw_layer: usize,
    /// Frames that last_frames encodes again for a question.
    pub last_frames: usize,
    pub storage: KvStorage,
    pub kernel: Kernel,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            policy: PolicyKind::InfMllm,
            budget: 512,
            slack: 0,
            sinks: 4,
            n_recent: 0,
            query_window: 32,
            bias: 0.002,
            bias_form: BiasForm::Slope,
            scope: Scope::Auto,
            query_source: QuerySource::Stream,
            h2o_decay: 1.0,
            plus: PlusConfig::default(),
            protect_boundaries: 0,
            withdraw_layer: 0,
            last_frames: 4,
            storage: KvStorage::Auto,
            kernel: Kernel::Fused,
        }
    }
}

impl CacheConfig {
    /// The slot counts of a cache with these parameters, as [`Plan::new`] has it.
    pub fn plan(&self, system_tokens: usize, max_positions: usize) -> Result<Plan, CacheError> {
        let policy = self.policy.build(self)?;
        Plan::new(self, policy.as_ref(), system_tokens, max_positions)
    }
}

/// Room above the prefix without which a budget is refused.
const MIN_ABOVE_PREFIX: usize = 8;

/// A budget that is enough for a stream without a system prompt and with the usual sinks.
pub const MIN_BUDGET: usize = 16;

/// The slot counts of a running cache: `budget = prefix + relevant + recent + slack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Slots allocated per layer.
    pub budget: usize,
    /// Slots that a compaction leaves free.
    pub slack: usize,
    /// First tokens of the stream, never evicted: system prompt and sinks.
    pub prefix: usize,
    /// Newest tokens that a compaction keeps.
    pub recent: usize,
    /// Older tokens that a compaction keeps by their value.
    pub relevant: usize,
    /// Newest queries used for scores; 0 when the policy needs none.
    pub window: usize,
    /// Positions between the relevant and the recent tokens that no token has, once tokens have been evicted.
    pub gap: usize,
}

impl Plan {
    /// Fills in the automatic values and checks every parameter against the others.
    ///
    /// `system_tokens` is the length of the system prompt's turn, `max_positions` the longest input of the model.
    pub fn new(
        config: &CacheConfig,
        policy: &dyn Policy,
        system_tokens: usize,
        max_positions: usize,
    ) -> Result<Self, CacheError> {
        let budget = config.budget;
        if budget > max_positions {
            return Err(parameter(
                "budget",
                budget,
                format!("at most {max_positions}, the model's longest input"),
            ));
        }
        let prefix = system_tokens.max(policy.sinks());
        if budget < prefix + MIN_ABOVE_PREFIX {
            return Err(parameter(
                "budget",
                budget,
                format!(
                    "at least {} (prefix {prefix} + {MIN_ABOVE_PREFIX})",
                    prefix + MIN_ABOVE_PREFIX
                ),
            ));
        }
        let above = budget - prefix;
        let slack = match config.slack {
            0 => policy.slack(budget).min(above / 2),
            given if given < above => given,
            given => {
                return Err(parameter(
                    "slack",
                    given,
                    format!("less than {above} (budget {budget} - prefix {prefix})"),
                ))
            }
        };
        let kept = above - slack;
        let recent = policy.recent(kept);
        if recent == 0 || recent > kept {
            return Err(parameter(
                "n_recent",
                recent,
                format!("1 to {kept} (budget {budget} - slack {slack} - prefix {prefix})"),
            ));
        }
        let relevant = kept - recent;
        if config.protect_boundaries > relevant && policy.evicts() {
            return Err(parameter(
                "protect_boundaries",
                config.protect_boundaries,
                format!("at most {relevant}, the slots for relevant tokens"),
            ));
        }
        Ok(Self {
            budget,
            slack,
            prefix,
            recent,
            relevant,
            window: match policy.evidence() {
                Evidence::Window { queries, .. } => queries.min(recent),
                Evidence::Age | Evidence::History { .. } => 0,
            },
            gap: ((policy.gap() * max_positions as f64) as usize).min(max_positions - budget),
        })
    }

    /// Slots in use right after a compaction.
    pub fn keep(&self) -> usize {
        self.budget - self.slack
    }

    /// The rank from which on tokens stand `gap` farther on once tokens have been evicted, if there are such.
    pub fn border(&self) -> Option<usize> {
        (self.gap > 0 && self.relevant > 0).then_some(self.prefix + self.relevant)
    }
}

fn parameter(name: &'static str, value: impl ToString, expected: String) -> CacheError {
    CacheError::Parameter {
        name,
        value: value.to_string(),
        expected,
    }
}
