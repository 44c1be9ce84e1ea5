//! The slot arithmetic that follows from the parameters and the policy.

use super::config::{CacheConfig, CacheError};
use super::policy::{Evidence, Policy};

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
