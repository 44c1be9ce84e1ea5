//! The next token from logits: greedy, or by temperature with a seeded generator, and never one that is no text.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::constraint::Allowed;

/// Why no token could be chosen.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum ChoiceError {
    #[error("the logit of token {token} is {value}, expected a finite number")]
    NotFinite { token: usize, value: f32 },
    #[error("no token can be chosen: all of the {logits} logits are of tokens that are no text")]
    Nothing { logits: usize },
}

/// Draws tokens; with temperature 0 the first of the highest logits. It holds rules only: what changes is in [`Draws`].
#[derive(Debug, Clone)]
pub struct Chooser {
    pub temperature: f64,
    /// What the logit of a token that is there already is divided by, or multiplied with if it is negative; 1: nothing. (Keskar et al.,
    /// 2019, arXiv 1909.05858, section 4.1, in the form that transformers gave it, where a negative logit falls as well.)
    pub repetition_penalty: f64,
    /// Ids that are never chosen.
    banned: Vec<u32>,
}

/// What a choice goes by beside the logits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits<'a> {
    /// The tokens that may be chosen, if not all may.
    pub allowed: Option<&'a Allowed>,
    /// The tokens that are there already, if repetitions matter.
    pub said: Option<&'a BTreeSet<u32>>,
}

impl<'a> Limits<'a> {
    pub fn new(allowed: Option<&'a Allowed>, said: Option<&'a BTreeSet<u32>>) -> Self {
        Self { allowed, said }
    }

    /// Whether a choice goes by the logits alone.
    pub fn is_none(&self) -> bool {
        self.allowed.is_none() && self.said.is_none()
    }
}

/// The random state: a draw depends on the seed and on how many there were before, on nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draws {
    seed: u64,
    drawn: u64,
}

impl Draws {
    pub fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    /// 0 to 1, the latter excluded.
    fn next(&mut self) -> f64 {
        // Multiples of an odd constant (2^64 over the golden ratio) do not repeat before all 2^64 are through.
        let number = self.drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.drawn += 1;
        StdRng::seed_from_u64(self.seed.wrapping_add(number)).random()
    }
}

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    pub token: u32,
    /// Natural logarithm of its probability at temperature 1, among the tokens that are not banned, whether they were allowed or not.
    pub logprob: f32,
}

/// What logits over the vocabulary stand for, at temperature 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    max: f32,
    /// Of the exponentials of what the logits are below `max`.
    log_total: f64,
}

impl Spread {
    /// Natural logarithm of the probability of a token with this logit.
    pub fn logprob(&self, logit: f32) -> f64 {
        f64::from(logit - self.max) - self.log_total
    }
}

impl Chooser {
    /// `banned`: ids that are never chosen, whatever their logits.
    pub fn new(temperature: f64, banned: Vec<u32>) -> Self {
        Self {
            temperature,
            repetition_penalty: 1.0,
            banned,
        }
    }

    /// Ids that are never chosen.
    pub fn banned(&self) -> &[u32] {
        &self.banned
    }

    /// Chooses from logits over the vocabulary, which are changed: those of banned tokens become minus infinity, so that the
    /// probabilities of the others sum up to 1.
    pub fn choose(&self, logits: &mut [f32], draws: &mut Draws) -> Result<Choice, ChoiceError> {
        self.choose_within(logits, Limits::default(), draws)
    }

    /// The same within limits, which the probability that is reported knows nothing of.
    pub fn choose_within(
        &self,
        logits: &mut [f32],
        limits: Limits<'_>,
        draws: &mut Draws,
    ) -> Result<Choice, ChoiceError> {
        let spread = self.spread(logits)?;
        let unpenalised = limits.said.map(|said| self.penalise(logits, said));
        if let Some(allowed) = limits.allowed {
            allowed.keep(logits);
        }
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !max.is_finite() {
            let logits = logits.len();
            return Err(ChoiceError::Nothing { logits });
        }
        let token = match self.temperature > 0.0 {
            true => self.draw(logits, max, draws),
            false => logits.iter().position(|&l| l == max).unwrap_or(0),
        };
        let before = unpenalised.and_then(|before| before.get(&(token as u32)).copied());
        Ok(Choice {
            token: token as u32,
            logprob: spread.logprob(before.unwrap_or(logits[token])) as f32,
        })
    }

    /// Makes what has been said less likely; returns the logits that it had.
    fn penalise(&self, logits: &mut [f32], said: &BTreeSet<u32>) -> BTreeMap<u32, f32> {
        let penalty = self.repetition_penalty as f32;
        let mut before = BTreeMap::new();
        for &token in said {
            let Some(logit) = logits.get_mut(token as usize) else {
                continue;
            };
            before.insert(token, *logit);
            *logit = match *logit < 0.0 {
                true => *logit * penalty,
                false => *logit / penalty,
            };
        }
        before
    }

    /// Bans from logits over the vocabulary what is banned, and says what probabilities they stand for.
    pub fn spread(&self, logits: &mut [f32]) -> Result<Spread, ChoiceError> {
        if let Some(token) = logits.iter().position(|logit| !logit.is_finite()) {
            let value = logits[token];
            return Err(ChoiceError::NotFinite { token, value });
        }
        for &token in &self.banned {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !max.is_finite() {
            let logits = logits.len();
            return Err(ChoiceError::Nothing { logits });
        }
        let total: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
        Ok(Spread {
            max,
            log_total: total.ln(),
        })
    }

    fn draw(&self, logits: &[f32], max: f32, draws: &mut Draws) -> usize {
        let weight = |l: f32| (f64::from(l - max) / self.temperature).exp();
        let total: f64 = logits.iter().map(|&l| weight(l)).sum();
        let mut left = draws.next() * total;
        let mut last = 0;
        for (token, &l) in logits.iter().enumerate() {
            let weight = weight(l);
            if weight > 0.0 {
                last = token;
            }
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        // What rounding left over.
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greedy(banned: &[u32], logits: &[f32]) -> Result<Choice, ChoiceError> {
        Chooser::new(0.0, banned.to_vec()).choose(&mut logits.to_vec(), &mut Draws::new(0))
    }

    #[test]
    fn greedy_takes_the_first_of_equal_logits_and_reports_its_probability() {
        let choice = greedy(&[], &[0.0, 2.0, 2.0]).unwrap();
        assert_eq!(choice.token, 1);
        let p = 2f32.exp() / (1.0 + 2.0 * 2f32.exp());
        assert!((choice.logprob - p.ln()).abs() < 1e-6);
    }

    #[test]
    fn temperature_draws_by_weight_and_repeats_with_the_seed() {
        let draws = |seed| {
            let chooser = Chooser::new(1.0, Vec::new());
            let mut draws = Draws::new(seed);
            (0..2000)
                .map(|_| chooser.choose(&mut [0.0, 3f32.ln()], &mut draws))
                .map(|choice| choice.unwrap().token)
                .collect::<Vec<_>>()
        };
        let first = draws(7);
        assert_eq!(first, draws(7));
        assert_ne!(first, draws(8));
        let ones = first.iter().filter(|&&t| t == 1).count();
        assert!(
            (1400..1600).contains(&ones),
            "{ones} of 2000, expected 1500"
        );
        // Neighbouring draws know nothing of each other: half of the pairs differ by more than chance allows if they did.
        let turns = first.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!((650..850).contains(&turns), "{turns} of 1999, expected 750");
    }

    #[test]
    fn a_banned_token_is_never_chosen_and_the_others_share_its_probability() {
        let choice = greedy(&[1, 9], &[0.0, 50.0, 2.0]).unwrap();
        assert_eq!(choice.token, 2);
        let p = 2f32.exp() / (1.0 + 2f32.exp());
        assert!((choice.logprob - p.ln()).abs() < 1e-6);
        let chooser = Chooser::new(100.0, vec![0, 2]);
        let mut draws = Draws::new(3);
        for _ in 0..500 {
            let choice = chooser.choose(&mut [9.0, 1.0, 9.0, 0.0], &mut draws);
            assert!([1, 3].contains(&choice.unwrap().token));
        }
    }

    #[test]
    fn what_was_said_is_less_likely_and_its_reported_probability_is_the_models_own() {
        let mut chooser = Chooser::new(0.0, vec![3]);
        chooser.repetition_penalty = 2.0;
        let said = BTreeSet::from([1, 2, 3, 99]);
        let limits = Limits::new(None, Some(&said));
        let chosen = |logits: [f32; 4]| {
            let mut logits = logits.to_vec();
            let choice = chooser.choose_within(&mut logits, limits, &mut Draws::new(0));
            (choice.unwrap(), logits)
        };
        // 3 becomes 1.5, which is less than 2; -1 becomes -2; what is banned stays so.
        let (choice, logits) = chosen([2.0, 3.0, -1.0, 9.0]);
        assert_eq!(choice.token, 0);
        assert_eq!(logits, [2.0, 1.5, -2.0, f32::NEG_INFINITY]);
        let (choice, _) = chosen([2.0, 6.0, -1.0, 9.0]);
        assert_eq!(choice.token, 1);
        let p = 6f32.exp() / (2f32.exp() + 6f32.exp() + (-1f32).exp());
        assert!((choice.logprob - p.ln()).abs() < 1e-6);
    }

    #[test]
    fn logits_that_are_no_numbers_and_nothing_to_choose_from_are_errors() {
        let error =
            |banned: &[u32], logits: &[f32]| greedy(banned, logits).unwrap_err().to_string();
        assert!(error(&[], &[0.0, f32::NAN, 1.0]).contains("token 1 is NaN"));
        assert!(error(&[], &[0.0, 1.0, f32::INFINITY]).contains("token 2 is inf"));
        // Not even of a token that could not be chosen: the model is broken.
        assert!(error(&[0], &[f32::NEG_INFINITY, 1.0]).contains("token 0 is -inf"));
        assert!(error(&[0, 1], &[1.0, 2.0]).contains("all of the 2 logits"));
        assert!(error(&[], &[]).contains("0 logits"));
    }
}
