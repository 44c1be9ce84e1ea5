//! Arguments that several commands share.

use clap::Args;
use inf_mllm::cache::policy::{BiasForm, PlusConfig};
use inf_mllm::cache::{CacheConfig, KvStorage, PolicyKind, QuerySource, Scope};
use inf_mllm::model::DeviceKind;

/// Parameters of the bounded cache.
#[derive(Args)]
pub struct CacheArgs {
    /// Eviction policy: full, window, streaming_llm, h2o, tova, snapkv, inf_mllm, inf_mllm_plus or last_frames.
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
    /// Newest tokens that a compaction keeps; 0: half of what is kept, five eighths for inf_mllm_plus.
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
    /// What shares a kept set of inf_mllm or inf_mllm_plus: auto, kv_head, layer or model.
    #[arg(long)]
    pub scope: Option<Scope>,
    /// Queries that inf_mllm scores with: the newest of the stream or those of the newest instruction.
    #[arg(long)]
    pub query_source: Option<QuerySource>,
    /// Factor by which h2o's sums fade with each query; 1: never.
    #[arg(long)]
    pub h2o_decay: Option<f64>,
    /// inf_mllm_plus keeps or evicts frames, turns and sentences as a whole.
    #[arg(long, action = clap::ArgAction::Set)]
    pub units: Option<bool>,
    /// Neighbours that inf_mllm_plus averages a score over, odd; 1: none.
    #[arg(long)]
    pub pool: Option<usize>,
    /// inf_mllm_plus weights scores by the length of the value vectors.
    #[arg(long, action = clap::ArgAction::Set)]
    pub value_norms: Option<bool>,
    /// Share of novelty against attention in the scores of inf_mllm_plus, 0 to 1.
    #[arg(long)]
    pub novelty_weight: Option<f64>,
    /// Age bias of the share of novelty, per token.
    #[arg(long)]
    pub novelty_bias: Option<f64>,
    /// Share of the standing instruction in the scores of inf_mllm_plus, 0 to 1.
    #[arg(long)]
    pub standing_weight: Option<f64>,
    /// Age bias of the standing instruction's share of the scores, per token.
    #[arg(long)]
    pub standing_bias: Option<f64>,
    /// Positions that inf_mllm_plus leaves out between relevant and recent tokens, share of the model's longest input, 0 to 1.
    #[arg(long)]
    pub position_gap: Option<f64>,
    /// Newest borders of turns that no policy evicts, tokens.
    #[arg(long)]
    pub protect_boundaries: Option<usize>,
    /// Layer from which on visual tokens are left out; 0: none.
    #[arg(long)]
    pub withdraw_layer: Option<usize>,
    /// Frames that last_frames feeds again for a question.
    #[arg(long)]
    pub last_frames: Option<usize>,
    /// What keys and values are stored as: auto (as the model computes), f32 or f16.
    #[arg(long)]
    pub kv_storage: Option<KvStorage>,
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
            query_source: self.query_source.unwrap_or(base.query_source),
            h2o_decay: self.h2o_decay.unwrap_or(base.h2o_decay),
            plus: PlusConfig {
                units: self.units.unwrap_or(base.plus.units),
                pool: self.pool.unwrap_or(base.plus.pool),
                value_norms: self.value_norms.unwrap_or(base.plus.value_norms),
                novelty_weight: self.novelty_weight.unwrap_or(base.plus.novelty_weight),
                novelty_bias: self.novelty_bias.unwrap_or(base.plus.novelty_bias),
                standing_weight: self.standing_weight.unwrap_or(base.plus.standing_weight),
                standing_bias: self.standing_bias.unwrap_or(base.plus.standing_bias),
                position_gap: self.position_gap.unwrap_or(base.plus.position_gap),
            },
            protect_boundaries: self.protect_boundaries.unwrap_or(base.protect_boundaries),
            withdraw_layer: self.withdraw_layer.unwrap_or(base.withdraw_layer),
            last_frames: self.last_frames.unwrap_or(base.last_frames),
            storage: self.kv_storage.unwrap_or(base.storage),
            kernel: base.kernel,
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
