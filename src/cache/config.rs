//! The cache's parameters, and the slot arithmetic that follows from them.

use candle_core::DType;

use super::attention::Kernel;
use super::parameter::{choice, parameters, TOKENS};
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
    #[error("a budget of {budget} slots takes {asked} of the GPU's memory, of which {found}, expected {expected}")]
    Memory {
        budget: usize,
        asked: String,
        found: String,
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

choice!(Scope);

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
    pub const ALL: [Self; 3] = [Self::Auto, Self::F32, Self::F16];

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

choice!(KvStorage);

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
        /// Decoder layer from which on image tokens are left out (visual-token withdrawal, arXiv 2405.05803); 0: none. Saves memory and
        /// time.
        withdraw_layer: usize = 0, range 0..=TOKENS;
        /// Frames that last_frames feeds again for a question.
        last_frames: usize = 4, range 1..=TOKENS, unit "frames", read by [LastFrames];
        /// What keys and values are stored as; auto: as the model computes; f16: half the memory of f32, sums stay in f32.
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

    /// The longest turn that can be attended to as a whole before any of it may be evicted, tokens.
    pub fn longest_turn(&self) -> usize {
        self.recent.max(self.slack)
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
