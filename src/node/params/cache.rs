//! The parameters of the bounded cache.

use super::slot::{Field, Slot};
use super::{count, field, unknown_choice, NodeError, TOKENS};
use crate::cache::policy::PlusConfig;
use crate::cache::{CacheConfig, PolicyKind};

/// As [`CacheConfig`], in the types of ROS parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheParameters {
    /// Eviction policy: full, window, streaming_llm, h2o, tova, snapkv, inf_mllm, inf_mllm_plus, last_frames.
    pub policy: String,
    /// Slots per layer, tokens: a hard bound.
    pub budget: i64,
    /// Slots that a compaction leaves free, tokens; 0: 1 for h2o, an eighth of the budget for the others.
    pub slack: i64,
    /// First tokens of the stream that streaming_llm and inf_mllm never evict.
    pub sinks: i64,
    /// Newest tokens that a compaction of inf_mllm always keeps; 0: half of what is kept, five eighths for inf_mllm_plus.
    pub n_recent: i64,
    /// Newest queries that score the cached keys.
    pub query_window: i64,
    /// Which queries these are: the stream's, or those of the newest instruction.
    pub query_source: String,
    /// Weight of the age bias, in units of the mean candidate score; see `bias_form`.
    pub bias: f64,
    /// slope: `bias` per token of age; range: `bias` for the oldest candidate.
    pub bias_form: String,
    /// layer: one kept set per layer; kv_head: one per KV head.
    pub scope: String,
    /// Factor by which the sums of h2o fade with each query; 1: never, as published.
    pub h2o_decay: f64,
    /// inf_mllm_plus keeps or evicts a frame or a turn as a whole.
    pub units: bool,
    /// Neighbours that inf_mllm_plus averages a score over, odd; 1: none.
    pub pool: i64,
    /// inf_mllm_plus weights scores by the length of the value vectors.
    pub value_norms: bool,
    /// Share of novelty against attention in the scores of inf_mllm_plus.
    pub novelty_weight: f64,
    /// Age bias of that share, per token.
    pub novelty_bias: f64,
    /// Share of the standing instruction against both.
    pub standing_weight: f64,
    /// Age bias of that share, per token.
    pub standing_bias: f64,
    /// Positions between relevant and recent tokens that are left out, as a share of the model's longest input.
    pub position_gap: f64,
    /// Newest borders of turns that no policy evicts, tokens.
    pub protect_boundaries: i64,
    /// Layer from which on visual tokens are left out; 0: none.
    pub withdraw_layer: i64,
    /// Frames that last_frames feeds again for a question.
    pub last_frames: i64,
    /// What keys and values are stored as: auto (as the model computes), f32, f16.
    pub kv_storage: String,
}

impl Default for CacheParameters {
    fn default() -> Self {
        let cache = CacheConfig::default();
        Self {
            policy: cache.policy.name().into(),
            budget: cache.budget as i64,
            slack: cache.slack as i64,
            sinks: cache.sinks as i64,
            n_recent: cache.n_recent as i64,
            query_window: cache.query_window as i64,
            query_source: cache.query_source.name().into(),
            bias: cache.bias,
            bias_form: cache.bias_form.name().into(),
            scope: cache.scope.name().into(),
            h2o_decay: cache.h2o_decay,
            units: cache.plus.units,
            pool: cache.plus.pool as i64,
            value_norms: cache.plus.value_norms,
            novelty_weight: cache.plus.novelty_weight,
            novelty_bias: cache.plus.novelty_bias,
            standing_weight: cache.plus.standing_weight,
            standing_bias: cache.plus.standing_bias,
            position_gap: cache.plus.position_gap,
            protect_boundaries: cache.protect_boundaries as i64,
            withdraw_layer: cache.withdraw_layer as i64,
            last_frames: cache.last_frames as i64,
            kv_storage: cache.storage.name().into(),
        }
    }
}

static POLICIES: [&str; PolicyKind::ALL.len()] = {
    let mut names = [""; PolicyKind::ALL.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = PolicyKind::ALL[i].name();
        i += 1;
    }
    names
};

impl CacheParameters {
    pub fn fields(&mut self) -> Vec<Field<'_>> {
        use Slot::{Choice, Flag, Integer, Real};
        vec![
            field(
                "policy",
                "eviction policy",
                Choice(&mut self.policy, &POLICIES),
            ),
            field(
                "budget",
                "slots per layer, tokens",
                Integer(&mut self.budget, 1..=TOKENS),
            ),
            field(
                "slack",
                "slots that a compaction leaves free, tokens; 0: automatic",
                Integer(&mut self.slack, 0..=TOKENS),
            ),
            field(
                "sinks",
                "first tokens that are never evicted",
                Integer(&mut self.sinks, 0..=TOKENS),
            ),
            field(
                "n_recent",
                "newest tokens that a compaction keeps; 0: automatic",
                Integer(&mut self.n_recent, 0..=TOKENS),
            ),
            field(
                "query_window",
                "newest queries that score the cached keys",
                Integer(&mut self.query_window, 1..=TOKENS),
            ),
            field(
                "query_source",
                "which queries score the cached keys",
                Choice(&mut self.query_source, &["stream", "instruction"]),
            ),
            field(
                "bias",
                "weight of the age bias",
                Real(&mut self.bias, 0.0..=1e6),
            ),
            field(
                "bias_form",
                "what the bias multiplies",
                Choice(&mut self.bias_form, &["slope", "range"]),
            ),
            field(
                "scope",
                "what shares one kept set",
                Choice(&mut self.scope, &["auto", "kv_head", "layer", "model"]),
            ),
            field(
                "h2o_decay",
                "factor by which the sums of h2o fade; 1: never",
                Real(&mut self.h2o_decay, 0.001..=1.0),
            ),
            field(
                "units",
                "inf_mllm_plus keeps frames and turns as a whole",
                Flag(&mut self.units),
            ),
            field(
                "pool",
                "neighbours that inf_mllm_plus averages a score over, odd",
                Integer(&mut self.pool, 1..=TOKENS),
            ),
            field(
                "value_norms",
                "inf_mllm_plus weights scores by value vectors",
                Flag(&mut self.value_norms),
            ),
            field(
                "novelty_weight",
                "share of novelty in the scores of inf_mllm_plus",
                Real(&mut self.novelty_weight, 0.0..=1.0),
            ),
            field(
                "novelty_bias",
                "age bias of the share of novelty",
                Real(&mut self.novelty_bias, 0.0..=1e6),
            ),
            field(
                "standing_weight",
                "share of the standing instruction in the scores of inf_mllm_plus",
                Real(&mut self.standing_weight, 0.0..=1.0),
            ),
            field(
                "standing_bias",
                "age bias of the standing instruction's share",
                Real(&mut self.standing_bias, 0.0..=1e6),
            ),
            field(
                "position_gap",
                "positions left out before the recent tokens by inf_mllm_plus, share of the model's longest input",
                Real(&mut self.position_gap, 0.0..=1.0),
            ),
            field(
                "protect_boundaries",
                "newest borders of turns that are never evicted, tokens",
                Integer(&mut self.protect_boundaries, 0..=TOKENS),
            ),
            field(
                "withdraw_layer",
                "layer from which on visual tokens are left out; 0: none",
                Integer(&mut self.withdraw_layer, 0..=TOKENS),
            ),
            field(
                "last_frames",
                "frames that last_frames feeds again",
                Integer(&mut self.last_frames, 1..=TOKENS),
            ),
            field(
                "kv_storage",
                "what keys and values are stored as",
                Choice(&mut self.kv_storage, &["auto", "f32", "f16"]),
            ),
        ]
    }

    pub fn config(&self) -> Result<CacheConfig, NodeError> {
        macro_rules! parsed {
            ($name:ident) => {
                self.$name
                    .parse()
                    .map_err(|e| unknown_choice(stringify!($name), &self.$name, e))?
            };
        }
        Ok(CacheConfig {
            policy: parsed!(policy),
            budget: count(self.budget),
            slack: count(self.slack),
            sinks: count(self.sinks),
            n_recent: count(self.n_recent),
            query_window: count(self.query_window),
            query_source: parsed!(query_source),
            bias: self.bias,
            bias_form: parsed!(bias_form),
            scope: parsed!(scope),
            h2o_decay: self.h2o_decay,
            plus: PlusConfig {
                units: self.units,
                pool: count(self.pool),
                value_norms: self.value_norms,
                novelty_weight: self.novelty_weight,
                novelty_bias: self.novelty_bias,
                standing_weight: self.standing_weight,
                standing_bias: self.standing_bias,
                position_gap: self.position_gap,
            },
            protect_boundaries: count(self.protect_boundaries),
            withdraw_layer: count(self.withdraw_layer),
            last_frames: count(self.last_frames),
            storage: parsed!(kv_storage),
            ..CacheConfig::default()
        })
    }
}
