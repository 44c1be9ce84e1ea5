//! `inf_mllm`: recent tokens and attention saddles, with an age bias on the score (Inf-MLLM, arXiv 2409.09086).
//!
//! With S the mean attention that a candidate gets from the query window, the value of candidate j is
//!
//! ```text
//! R[j] = S[j] / mean over candidates of S             1.0 is "average", whatever the budget
//! value[j] = R[j] - bias * rank_j                     form range: rank 0 for the newest candidate ... 1 for the oldest
//!          | R[j] - bias * (newest - index_j)         form slope: true age in tokens
//! ```
//!
//! `range` is the paper's bias, linear along the past tokens. It is bounded, so that a key whose score leads by more than
//! the bias stays for ever; `slope`, on the true age, is ours and the default, because it lets every key go in the end.

use super::{relative, Candidates, Evidence, Policy};
use crate::cache::config::{BiasForm, CacheConfig, CacheError, QuerySource, Scope};

#[derive(Debug)]
pub struct InfMllm {
    sinks: usize,
    n_recent: usize,
    query_window: usize,
    source: QuerySource,
    scope: Scope,
    bias: f32,
    form: BiasForm,
}

impl InfMllm {
    pub fn new(config: &CacheConfig) -> Result<Self, CacheError> {
        if !(config.bias.is_finite() && config.bias >= 0.0) {
            return Err(CacheError::Parameter {
                name: "bias",
                value: config.bias.to_string(),
                expected: "a finite number, 0 or more".to_string(),
            });
        }
        if config.query_window == 0 {
            return Err(CacheError::Parameter {
                name: "query_window",
                value: "0".to_string(),
                expected: "at least 1 query".to_string(),
            });
        }
        Ok(Self {
            sinks: config.sinks,
            n_recent: config.n_recent,
            query_window: config.query_window,
            source: config.query_source,
            scope: config.scope,
            bias: config.bias as f32,
            form: config.bias_form,
        })
    }
}

impl Policy for InfMllm {
    fn sinks(&self) -> usize {
        self.sinks
    }

    fn scope(&self) -> Scope {
        self.scope.or(Scope::Layer)
    }

    fn evidence(&self) -> Evidence {
        Evidence::Window {
            queries: self.query_window,
            source: self.source,
            standing: false,
            novelty: false,
            value_norms: false,
        }
    }

    fn recent(&self, kept: usize) -> usize {
        match self.n_recent {
            0 => (kept / 2).max(1),
            given => given,
        }
    }

    fn values(&self, candidates: &Candidates<'_>, values: &mut [f32]) {
        let last = values.len().saturating_sub(1).max(1) as f32;
        let count = values.len();
        values.copy_from_slice(candidates.scores);
        relative(values);
        for (j, value) in values.iter_mut().enumerate() {
            let age = match self.form {
                BiasForm::Range => (count - 1 - j) as f32 / last,
                BiasForm::Slope => (candidates.newest - candidates.tokens[j].index) as f32,
            };
            *value -= self.bias * age;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::slots::{Mark, Token};

    fn values(form: BiasForm, bias: f64, scores: &[f32], indices: &[u64]) -> Vec<f32> {
        let policy = InfMllm::new(&CacheConfig {
            bias,
            bias_form: form,
            ..CacheConfig::default()
        })
        .unwrap();
        let tokens = indices
            .iter()
            .map(|&index| Token {
                index,
                unit: index,
                mark: Mark::default(),
            })
            .collect::<Vec<_>>();
        let candidates = Candidates {
            tokens: &tokens,
            scores,
            newest: 100,
            ..Candidates::default()
        };
        let mut values = vec![0.0; scores.len()];
        policy.values(&candidates, &mut values);
        values
    }

    #[test]
    fn range_falls_linearly_from_the_newest_candidate_to_the_oldest() {
        let got = values(BiasForm::Range, 0.5, &[0.1, 0.1, 0.1], &[10, 40, 90]);
        assert_eq!(got, [0.5, 0.75, 1.0]);
    }

    #[test]
    fn slope_falls_with_the_true_age_without_bound() {
        let got = values(BiasForm::Slope, 0.01, &[0.3, 0.1], &[0, 90]);
        for (got, want) in got.iter().zip([1.5 - 1.0, 0.5 - 0.1]) {
            assert!((got - want).abs() < 1e-6, "{got} is not {want}");
        }
    }

    #[test]
    fn candidates_without_any_attention_leave_by_age() {
        let got = values(BiasForm::Slope, 0.01, &[0.0, 0.0], &[10, 20]);
        assert!(got.iter().all(|v| v.is_finite()) && got[0] < got[1]);
    }
}
