//! The next token from logits: greedy, or by temperature with a seeded generator.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Draws tokens; with temperature 0 the first of the highest logits.
#[derive(Debug)]
pub struct Sampler {
    temperature: f64,
    rng: StdRng,
}

impl Sampler {
    pub fn new(temperature: f64, seed: u64) -> Self {
        Self {
            temperature,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Draws at another temperature from the next token on.
    pub fn set_temperature(&mut self, temperature: f64) {
        self.temperature = temperature;
    }

    /// The chosen token and the natural logarithm of its probability (at temperature 1), from logits over the vocabulary.
    pub fn next(&mut self, logits: &[f32]) -> (u32, f32) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
        let token = if self.temperature > 0.0 {
            self.draw(logits, max)
        } else {
            logits.iter().position(|&l| l == max).unwrap_or(0)
        };
        let logprob = f64::from(logits[token] - max) - total.ln();
        (token as u32, logprob as f32)
    }

    fn draw(&mut self, logits: &[f32], max: f32) -> usize {
        let weight = |l: f32| (f64::from(l - max) / self.temperature).exp();
        let total: f64 = logits.iter().map(|&l| weight(l)).sum();
        let mut left = self.rng.random::<f64>() * total;
        for (token, &l) in logits.iter().enumerate() {
            left -= weight(l);
            if left < 0.0 {
                return token;
            }
        }
        logits.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_equal_logits_and_reports_its_probability() {
        let (token, logprob) = Sampler::new(0.0, 0).next(&[0.0, 2.0, 2.0]);
        assert_eq!(token, 1);
        let p = 2f32.exp() / (1.0 + 2.0 * 2f32.exp());
        assert!((logprob - p.ln()).abs() < 1e-6);
    }

    #[test]
    fn temperature_draws_by_weight_and_repeats_with_the_seed() {
        let draws = |seed| {
            let mut sampler = Sampler::new(1.0, seed);
            (0..2000)
                .map(|_| sampler.next(&[0.0, 3f32.ln()]).0)
                .collect::<Vec<_>>()
        };
        let first = draws(7);
        assert_eq!(first, draws(7));
        let ones = first.iter().filter(|&&t| t == 1).count();
        assert!(
            (1400..1600).contains(&ones),
            "{ones} of 2000, expected 1500"
        );
    }
}
