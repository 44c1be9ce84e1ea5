//! Arguments that several commands share.

use clap::Args;
use inf_mllm::cache::policy::BiasForm;
use inf_mllm::cache::{CacheConfig, PolicyKind, Scope};
use inf_mllm::model::DeviceKind;

/// Parameters of the bounded cache.
#[derive(Args)]
pub struct CacheArgs {
    /// Eviction policy: full, window, streaming_llm or inf_mllm.
    #[arg(long)]
    pub policy: Option<PolicyKind>,
    /// Slots per layer, tokens.
    #[arg(long)]
    pub budget: Option<usize>,
    /// Slots that a compaction leaves free, tokens; 0: an eighth of the budget.
    #[arg(long)]
    pub slack: Option<usize>,
    /// First tokens that are never evicted.
    #[arg(long)]
    pub sinks: Option<usize>,
    /// Newest tokens that a compaction keeps; 0: half of what is kept.
    #[arg(long)]
    pub n_recent: Option<usize>,
    /// Newest queries that score the cached keys.
    #[arg(long)]
    pub query_window: Option<usize>,
    /// Weight of the age bias.
    #[arg(long)]
    pub bias: Option<f64>,
    /// Form of the age bias: slope or range.
    #[arg(long)]
    pub bias_form: Option<BiasForm>,
    /// Kept sets: one per layer or one per kv_head.
    #[arg(long)]
    pub scope: Option<Scope>,
}

impl CacheArgs {
    /// The given values over those of `base`.
    pub fn over(&self, base: CacheConfig) -> CacheConfig {
        CacheConfig {
            policy: self.policy.unwrap_or(base.policy),
            budget: self.budget.unwrap_or(base.budget),
            slack: self.slack.unwrap_or(base.slack),
            sinks: self.sinks.unwrap_or(base.sinks),
            n_recent: self.n_recent.unwrap_or(base.n_recent),
            query_window: self.query_window.unwrap_or(base.query_window),
            bias: self.bias.unwrap_or(base.bias),
            bias_form: self.bias_form.unwrap_or(base.bias_form),
            scope: self.scope.unwrap_or(base.scope),
        }
    }
}

/// Where the model runs.
#[derive(Args)]
pub struct DeviceArgs {
    /// auto, cpu or cuda.
    #[arg(long, default_value = "auto")]
    pub device: DeviceKind,
}
