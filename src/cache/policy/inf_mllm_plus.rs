//! `inf_mllm_plus`: ours; `inf_mllm` with the age slope, and more to keep what a question will need.
//!
//! Each ingredient can be switched off, which leaves `inf_mllm` in the end:
//!
//! - value norms: a key's score is weighted by the length of its value vector, which is what attention to it would add
//!   (VATP, arXiv 2406.12335);
//! - pooled votes: scores are averaged over neighbours, so that a token is not kept without its context (SnapKV's idea);
//! - standing instruction: what is like an instruction known beforehand stays. Likeness is that of keys before rotation, token by
//!   token: an instruction in the form of what is to be kept, an example of it, works best;
//! - whole units: a frame, a turn or a sentence is kept or evicted as a whole, because half a fact is no fact.
//!
//! ```text
//! W[j]     = mean over j's neighbours of S[j] * |v_j|        relative to the mean over candidates
//! T[j]     = the same of the likeness to the standing instruction
//! R[j]     = (1 - w) * W[j] + w * T[j]                        w: standing_weight, 0 without such an instruction
//! b        = (1 - w) * bias + w * standing_bias
//! value[j] = max over j's unit of R - b * (age of the unit's newest candidate)
//! ```
//!
//! All tokens of a unit have one value, and the newer token wins a tie: so units are kept whole from the best one down, and the
//! one that no longer fits leaves its newest tokens.

use super::{pooled, relative, Candidates, Evidence, Policy};
use crate::cache::config::{CacheConfig, CacheError, Scope};

use super::inf_mllm::InfMllm;

/// What [`InfMllmPlus`] has beyond `inf_mllm`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlusConfig {
    /// Frames, turns and sentences are kept or evicted as a whole.
    pub units: bool,
    /// Candidates that a score is averaged over, odd; 1: none.
    pub pool: usize,
    /// Scores are weighted by the length of the value vectors.
    pub value_norms: bool,
    /// Share of the standing instruction's score, 0 to 1, where there is one.
    pub standing_weight: f64,
    /// Age bias of the standing instruction's share, per token of age, in units of the mean candidate score.
    pub standing_bias: f64,
}

impl Default for PlusConfig {
    fn default() -> Self {
        Self {
            units: true,
            pool: 1,
            value_norms: false,
            standing_weight: 1.0,
            standing_bias: 0.0002,
        }
    }
}

#[derive(Debug)]
pub struct InfMllmPlus {
    base: InfMllm,
    bias: f32,
    plus: PlusConfig,
}

impl InfMllmPlus {
    pub fn new(config: &CacheConfig) -> Result<Self, CacheError> {
        let plus = config.plus;
        if plus.pool.is_multiple_of(2) {
            return Err(CacheError::Parameter {
                name: "pool",
                value: plus.pool.to_string(),
                expected: "an odd number".to_string(),
            });
        }
        if !(0.0..=1.0).contains(&plus.standing_weight) {
            return Err(CacheError::Parameter {
                name: "standing_weight",
                value: plus.standing_weight.to_string(),
                expected: "0 to 1".to_string(),
            });
        }
        if !(plus.standing_bias.is_finite() && plus.standing_bias >= 0.0) {
            return Err(CacheError::Parameter {
                name: "standing_bias",
                value: plus.standing_bias.to_string(),
                expected: "a finite number, 0 or more".to_string(),
            });
        }
        Ok(Self {
            base: InfMllm::new(config)?,
            bias: config.bias as f32,
            plus,
        })
    }

    /// Scores weighted, pooled and relative to their mean.
    fn votes(&self, scores: &[f32], value_norms: &[f32]) -> Vec<f32> {
        let mut votes = scores.to_vec();
        for (vote, norm) in votes.iter_mut().zip(value_norms) {
            *vote *= norm;
        }
        if self.plus.pool > 1 {
            votes = pooled(&votes, self.plus.pool, |votes| {
                votes.iter().sum::<f32>() / votes.len() as f32
            });
        }
        relative(&mut votes);
        votes
    }
}

impl Policy for InfMllmPlus {
    fn sinks(&self) -> usize {
        self.base.sinks()
    }

    fn scope(&self) -> Scope {
        self.base.scope()
    }

    fn evidence(&self) -> Evidence {
        match self.base.evidence() {
            Evidence::Window {
                queries, source, ..
            } => Evidence::Window {
                queries,
                source,
                value_norms: self.plus.value_norms,
            },
            other => other,
        }
    }

    fn recent(&self, kept: usize) -> usize {
        self.base.recent(kept)
    }

    fn values(&self, candidates: &Candidates<'_>, values: &mut [f32]) {
        let tokens = candidates.tokens;
        values.copy_from_slice(&self.votes(candidates.scores, candidates.value_norms));
        let mut bias = self.bias;
        if !candidates.standing.is_empty() {
            let weight = self.plus.standing_weight as f32;
            bias = (1.0 - weight) * bias + weight * self.plus.standing_bias as f32;
            let standing = self.votes(candidates.standing, candidates.value_norms);
            for (value, standing) in values.iter_mut().zip(standing) {
                *value = (1.0 - weight) * *value + weight * standing;
            }
        }
        let same = |a: usize, b: usize| match self.plus.units {
            true => tokens[a].unit == tokens[b].unit,
            false => a == b,
        };
        let mut start = 0;
        while start < tokens.len() {
            let mut end = start + 1;
            while end < tokens.len() && same(start, end) {
                end += 1;
            }
            let best = values[start..end]
                .iter()
                .copied()
                .fold(f32::NEG_INFINITY, f32::max);
            let age = (candidates.newest - tokens[end - 1].index) as f32;
            values[start..end].fill(best - bias * age);
            start = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::slots::{Mark, Token};

    fn policy(plus: PlusConfig, bias: f64) -> InfMllmPlus {
        InfMllmPlus::new(&CacheConfig {
            plus,
            bias,
            ..CacheConfig::default()
        })
        .unwrap()
    }

    fn tokens(units: &[u64]) -> Vec<Token> {
        (0u64..)
            .zip(units)
            .map(|(index, &unit)| Token {
                index,
                unit,
                mark: Mark::default(),
            })
            .collect()
    }

    #[test]
    fn a_unit_has_the_value_of_its_best_token_at_the_age_of_its_newest() {
        let tokens = tokens(&[0, 0, 0, 3, 3]);
        let candidates = Candidates {
            tokens: &tokens,
            scores: &[0.1, 0.5, 0.1, 0.2, 0.1],
            newest: 10,
            ..Candidates::default()
        };
        let mut values = [0.0; 5];
        policy(PlusConfig::default(), 0.1).values(&candidates, &mut values);
        for (value, want) in
            values
                .iter()
                .zip([2.5 - 0.8, 2.5 - 0.8, 2.5 - 0.8, 1.0 - 0.6, 1.0 - 0.6])
        {
            assert!((value - want).abs() < 1e-6, "{values:?}");
        }
    }

    #[test]
    fn a_standing_instruction_has_its_share() {
        let tokens = tokens(&[0, 1]);
        let candidates = Candidates {
            tokens: &tokens,
            scores: &[0.3, 0.1],
            standing: &[0.0, 0.2],
            newest: 1,
            ..Candidates::default()
        };
        let plus = PlusConfig {
            standing_weight: 0.25,
            standing_bias: 0.0,
            ..PlusConfig::default()
        };
        let mut values = [0.0; 2];
        policy(plus, 0.0).values(&candidates, &mut values);
        let want = [0.75 * 1.5, 0.75 * 0.5 + 0.25 * 2.0];
        assert!(
            values.iter().zip(want).all(|(v, w)| (v - w).abs() < 1e-6),
            "{values:?}"
        );
    }

    #[test]
    fn values_and_neighbours_count_if_asked() {
        let tokens = tokens(&[0, 1, 2]);
        let candidates = Candidates {
            tokens: &tokens,
            scores: &[0.1, 0.1, 0.1],
            value_norms: &[1.0, 4.0, 1.0],
            newest: 2,
            ..Candidates::default()
        };
        let plus = PlusConfig {
            pool: 3,
            value_norms: true,
            ..PlusConfig::default()
        };
        let mut values = [0.0; 3];
        policy(plus, 0.0).values(&candidates, &mut values);
        // (0.1 + 0.4) / 2, (0.1 + 0.4 + 0.1) / 3, (0.4 + 0.1) / 2 over their mean.
        let mean = 0.7 / 3.0;
        let want = [0.25 / mean, 0.2 / mean, 0.25 / mean];
        assert!(
            values.iter().zip(want).all(|(v, w)| (v - w).abs() < 1e-5),
            "{values:?}"
        );
    }
}
