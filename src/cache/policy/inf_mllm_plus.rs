//! `inf_mllm_plus`: ours; recent tokens, and whole units that are unlike the rest of the stream or like a standing instruction.
//!
//! Attention of the newest queries finds what the text at hand needs; it does not foresee what a question will need, and a
//! scattered half of a fact is no fact. So this policy differs from `inf_mllm`, each ingredient with its own parameter:
//!
//! - novelty: what is unlike the mean of the stream stays (`N`, [`crate::cache`]'s likeness of keys);
//! - standing instruction: units that are like an instruction known beforehand stay (`T`, likewise). Likeness is that of keys before
//!   rotation, token by token: an instruction in the form of what is to be kept, an example of it, works best;
//! - whole units: a frame, a turn or a sentence is kept or evicted as a whole;
//! - one kept set for all layers: a unit that half the layers have forgotten cannot be read back;
//! - a gap: the recent tokens' positions begin farther on, so that what is long past does not stand where a moment ago should;
//! - value norms: a key's score is weighted by the length of its value vector, which is what attention to it would add
//!   (VATP, arXiv 2406.12335);
//! - pooled votes: scores are averaged over neighbours (SnapKV's idea).
//!
//! ```text
//! W[j]     = mean over j's neighbours of S[j] * |v_j|        W, N and T relative to their mean over candidates
//! a[u]     = (1 - w) * (1 - n) * max over u of W              w: standing_weight, 0 without such an instruction
//! c[u]     = (1 - w) * n * mean over u of N                   n: novelty_weight
//! b        = (1 - w) * ((1 - n) * bias + n * novelty_bias) + w * standing_bias
//! value[u] = a[u] + c[u] + w * T[u] - b * (age of the newest candidate of u)
//! ```
//!
//! Attention is sharp, so a unit counts by its best token; novelty is not, so it counts by all of them. The other way round, one
//! rare word would keep a sentence.

use std::ops::Range;

use super::inf_mllm::InfMllm;
use super::{pooled, relative, Candidates, Evidence, Policy};
use crate::cache::config::{CacheConfig, CacheError, PlusConfig, Scope};
use crate::cache::slots::Token;

#[derive(Debug)]
pub struct InfMllmPlus {
    base: InfMllm,
    scope: Scope,
    n_recent: usize,
    bias: f32,
    plus: PlusConfig,
}

impl InfMllmPlus {
    pub fn new(config: &CacheConfig) -> Result<Self, CacheError> {
        let plus = config.plus;
        let check = |fine: bool, name, value: String, expected: &str| match fine {
            true => Ok(()),
            false => Err(CacheError::Parameter {
                name,
                value,
                expected: expected.to_string(),
            }),
        };
        let odd = !plus.pool.is_multiple_of(2);
        check(odd, "pool", plus.pool.to_string(), "an odd number")?;
        for (name, weight) in [
            ("novelty_weight", plus.novelty_weight),
            ("standing_weight", plus.standing_weight),
            ("position_gap", plus.position_gap),
        ] {
            let fine = (0.0..=1.0).contains(&weight);
            check(fine, name, weight.to_string(), "0 to 1")?;
        }
        for (name, bias) in [
            ("novelty_bias", plus.novelty_bias),
            ("standing_bias", plus.standing_bias),
        ] {
            let fine = bias.is_finite() && bias >= 0.0;
            check(fine, name, bias.to_string(), "a finite number, 0 or more")?;
        }
        Ok(Self {
            base: InfMllm::new(config)?,
            scope: config.scope,
            n_recent: config.n_recent,
            bias: config.bias as f32,
            plus,
        })
    }

    /// Scores of attention weighted, pooled and relative to their mean; zeros where there are none.
    fn votes(&self, candidates: &Candidates<'_>) -> Vec<f32> {
        let mut votes = candidates.scores.to_vec();
        votes.resize(candidates.tokens.len(), 0.0);
        for (vote, norm) in votes.iter_mut().zip(candidates.value_norms) {
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
        self.scope.or(Scope::Model)
    }

    fn evidence(&self) -> Evidence {
        match self.base.evidence() {
            Evidence::Window {
                queries, source, ..
            } => Evidence::Window {
                // Attention that counts for nothing need not be computed.
                queries: if self.plus.novelty_weight < 1.0 {
                    queries
                } else {
                    0
                },
                source,
                standing: self.plus.standing_weight > 0.0,
                novelty: self.plus.novelty_weight > 0.0,
                value_norms: self.plus.value_norms,
            },
            other => other,
        }
    }

    fn gap(&self) -> f64 {
        self.plus.position_gap
    }

    fn recent(&self, kept: usize) -> usize {
        match self.n_recent {
            0 => (kept * 5 / 8).max(1),
            given => given,
        }
    }

    fn values(&self, candidates: &Candidates<'_>, values: &mut [f32]) {
        let tokens = candidates.tokens;
        let standing_weight = match candidates.standing.is_empty() {
            true => 0.0,
            false => self.plus.standing_weight as f32,
        };
        let rest = 1.0 - standing_weight;
        let novelty_weight = rest * self.plus.novelty_weight as f32;
        let attention_weight = rest - novelty_weight;
        let bias = attention_weight * self.bias
            + novelty_weight * self.plus.novelty_bias as f32
            + standing_weight * self.plus.standing_bias as f32;

        let attention = self.votes(candidates);
        let [standing, novelty] = [candidates.standing, candidates.novelty].map(|found| {
            let mut found = found.to_vec();
            found.resize(tokens.len(), 0.0);
            relative(&mut found);
            found
        });

        let same = |a: &Token, b: &Token| self.plus.units && a.unit == b.unit;
        let mut units = Vec::new();
        let mut start = 0;
        for unit in tokens.chunk_by(same) {
            let range = start..start + unit.len();
            start = range.end;
            let best = attention[range.clone()].iter().copied();
            let best = best.fold(f32::NEG_INFINITY, f32::max);
            let mean = novelty[range.clone()].iter().sum::<f32>() / unit.len() as f32;
            let age = (candidates.newest - tokens[range.end - 1].index) as f32;
            let value = attention_weight * best
                + novelty_weight * mean
                + standing_weight * standing[range.start]
                - bias * age;
            units.push((value, range));
        }
        rank(units, candidates, values);
    }
}

/// Writes values by which whole units are kept, from the best one (its value, its candidates) down, the newer one on a tie. One that
/// does not fit any more makes way for the next that does; what is left goes to the newest tokens of the best that did not fit.
fn rank(mut units: Vec<(f32, Range<usize>)>, candidates: &Candidates<'_>, values: &mut [f32]) {
    units.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.start.cmp(&a.1.start)));
    // Tokens that are protected stay anyway: they take room first, and none with their unit.
    let protected = |range: &Range<usize>| {
        let flags = candidates.protected.get(range.clone()).unwrap_or_default();
        flags.iter().filter(|&&protected| protected).count()
    };
    let mut room = candidates.room - protected(&(0..candidates.tokens.len()));
    let (fitting, others): (Vec<_>, Vec<_>) = units.into_iter().partition(|(_, range)| {
        let length = range.len() - protected(range);
        let fits = length <= room;
        if fits {
            room -= length;
        }
        fits
    });
    let ranked = fitting.into_iter().chain(others);
    for (place, (_, range)) in ranked.enumerate() {
        values[range].fill(-(place as f32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::slots::Mark;

    /// Attention only, so that each test adds what it is about.
    const ATTENTION: PlusConfig = PlusConfig {
        units: true,
        pool: 1,
        value_norms: false,
        novelty_weight: 0.0,
        novelty_bias: 0.0,
        standing_weight: 0.0,
        standing_bias: 0.0,
        position_gap: 0.0,
    };

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

    /// The candidates from the best to the worst, equals together.
    fn order(plus: PlusConfig, bias: f64, candidates: &Candidates<'_>) -> Vec<Vec<usize>> {
        let policy = InfMllmPlus::new(&CacheConfig {
            plus,
            bias,
            ..CacheConfig::default()
        })
        .unwrap();
        let mut values = vec![0.0; candidates.tokens.len()];
        policy.values(candidates, &mut values);
        let mut order = (0..values.len()).collect::<Vec<_>>();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
        let groups = order.chunk_by(|&a, &b| values[a] == values[b]);
        groups.map(<[usize]>::to_vec).collect()
    }

    #[test]
    fn a_unit_counts_by_its_best_token_at_the_age_of_its_newest() {
        let tokens = tokens(&[0, 0, 0, 3, 3]);
        let candidates = Candidates {
            tokens: &tokens,
            scores: &[0.1, 0.5, 0.1, 0.2, 0.1],
            newest: 10,
            room: 5,
            ..Candidates::default()
        };
        // 2.5 - 8 b against 1.0 - 6 b.
        assert_eq!(order(ATTENTION, 0.7, &candidates)[0], [0, 1, 2]);
        assert_eq!(order(ATTENTION, 0.8, &candidates)[0], [3, 4]);
    }

    #[test]
    fn novelty_counts_by_the_whole_unit() {
        let tokens = tokens(&[0, 0, 2, 2]);
        let candidates = Candidates {
            tokens: &tokens,
            novelty: &[0.1, 1.3, 0.8, 0.8],
            newest: 3,
            room: 2,
            ..Candidates::default()
        };
        let plus = PlusConfig {
            novelty_weight: 1.0,
            ..ATTENTION
        };
        assert_eq!(order(plus, 0.0, &candidates)[0], [2, 3]);
        let tokens = PlusConfig {
            units: false,
            ..plus
        };
        assert_eq!(order(tokens, 0.0, &candidates)[0], [1]);
    }

    #[test]
    fn a_unit_that_does_not_fit_makes_way_for_one_that_does() {
        let tokens = tokens(&[0, 0, 2, 2, 2, 5]);
        let candidates = Candidates {
            tokens: &tokens,
            scores: &[0.9, 0.9, 0.5, 0.5, 0.5, 0.1],
            newest: 5,
            room: 4,
            ..Candidates::default()
        };
        let want = vec![vec![0, 1], vec![5], vec![2, 3, 4]];
        assert_eq!(order(ATTENTION, 0.0, &candidates), want);
        let all = Candidates {
            room: 6,
            ..candidates
        };
        assert_eq!(order(ATTENTION, 0.0, &all)[1], [2, 3, 4]);
        // A protected token takes its room before any unit.
        let protected = Candidates {
            room: 6,
            protected: &[false, false, false, false, false, true],
            ..candidates
        };
        assert_eq!(order(ATTENTION, 0.0, &protected)[1], [2, 3, 4]);
    }

    #[test]
    fn a_standing_instruction_has_its_share() {
        let tokens = tokens(&[0, 1]);
        let candidates = Candidates {
            tokens: &tokens,
            scores: &[0.3, 0.1],
            standing: &[0.0, 0.2],
            newest: 1,
            room: 1,
            ..Candidates::default()
        };
        let best = |standing_weight| {
            let plus = PlusConfig {
                standing_weight,
                ..ATTENTION
            };
            order(plus, 0.0, &candidates)[0][0]
        };
        // 1.5 (1 - w) against 0.5 (1 - w) + 2 w: equal at a third.
        assert_eq!((best(0.3), best(0.36)), (0, 1));
    }

    #[test]
    fn values_and_neighbours_count_if_asked() {
        let tokens = tokens(&[0, 1, 2]);
        let candidates = Candidates {
            tokens: &tokens,
            scores: &[0.2, 0.1, 0.1],
            value_norms: &[1.0, 4.0, 1.0],
            newest: 2,
            room: 2,
            ..Candidates::default()
        };
        let unasked = Candidates {
            value_norms: &[],
            ..candidates
        };
        assert_eq!(order(ATTENTION, 0.0, &unasked)[0], [0]);
        let norms = PlusConfig {
            value_norms: true,
            ..ATTENTION
        };
        assert_eq!(order(norms, 0.0, &candidates)[0], [1]);
        // (0.2 + 0.4) / 2, (0.2 + 0.4 + 0.1) / 3, (0.4 + 0.1) / 2.
        let both = PlusConfig { pool: 3, ..norms };
        assert_eq!(order(both, 0.0, &candidates), [[0], [2], [1]]);
    }
}
