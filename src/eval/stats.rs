//! Intervals of shares, and of the difference of paired shares.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The 97.5 % point of the normal distribution: two-sided 95 % intervals.
const Z: f64 = 1.959_963_984_540_054;

/// A share with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    pub right: usize,
    pub of: usize,
    pub share: f64,
    pub low: f64,
    pub high: f64,
}

impl Share {
    /// Wilson's score interval (Wilson 1927), which is right for small counts and shares near 0 and 1 too.
    pub fn wilson(right: usize, of: usize) -> Self {
        if of == 0 {
            return Self {
                right,
                of,
                share: 0.0,
                low: 0.0,
                high: 1.0,
            };
        }
        let n = of as f64;
        let share = right as f64 / n;
        let denominator = 1.0 + Z * Z / n;
        let centre = (share + Z * Z / (2.0 * n)) / denominator;
        let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt() / denominator;
        Self {
            right,
            of,
            share,
            low: (centre - half).max(0.0),
            high: (centre + half).min(1.0),
        }
    }
}

/// Per cent, with the interval in brackets; a hyphen where there is nothing that it is a share of.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [share, low, high] = [self.share, self.low, self.high].map(|x| 100.0 * x);
        match self.of {
            0 => f.pad("-"),
            _ => f.pad(&format!("{share:.1} [{low:.1}, {high:.1}]")),
        }
    }
}

/// The difference of two shares over the same questions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// Questions that only the first one, and only the second one answered.
    pub only_first: usize,
    pub only_second: usize,
    /// Share of the first minus share of the second, with its 95 % interval.
    pub difference: f64,
    pub low: f64,
    pub high: f64,
    /// Two-sided exact sign test on the questions that they answered differently.
    pub p: f64,
}

impl Paired {
    /// The adjusted Wald interval of Bonett and Price (2012): one question added to each kind of disagreement.
    pub fn new(first: &[bool], second: &[bool]) -> Self {
        let only = |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|(&a, &b)| a && !b).count();
        let (only_first, only_second) = (only(first, second), only(second, first));
        let n = first.len().min(second.len()).max(1) as f64;
        let (a, b) = (
            (only_first as f64 + 1.0) / (n + 2.0),
            (only_second as f64 + 1.0) / (n + 2.0),
        );
        let half = Z * ((a + b - (a - b) * (a - b)) / (n + 2.0)).sqrt();
        Self {
            only_first,
            only_second,
            difference: (only_first as f64 - only_second as f64) / n,
            low: (a - b - half).max(-1.0),
            high: (a - b + half).min(1.0),
            p: sign_test(only_first, only_second),
        }
    }
}

/// The chance that a fair coin splits as unevenly as this or more.
fn sign_test(a: usize, b: usize) -> f64 {
    let n = a + b;
    let mut term = 0.5f64.powi(n as i32);
    let mut tail = 0.0;
    for k in 0..=a.min(b) {
        tail += term;
        term *= (n - k) as f64 / (k + 1) as f64;
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: f64, want: f64) {
        assert!((got - want).abs() < 5e-5, "{got} is not {want}");
    }

    #[test]
    fn wilson_gives_published_intervals() {
        // Newcombe (1998), table I, method 3.
        for (right, of, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let share = Share::wilson(right, of);
            near(share.low, low);
            near(share.high, high);
        }
        assert_eq!(Share::wilson(0, 0).high, 1.0);
        assert_eq!(Share::wilson(20, 20).high, 1.0);
    }

    #[test]
    fn a_share_is_told_in_per_cent_and_one_of_nothing_is_none() {
        assert_eq!(Share::wilson(0, 20).to_string(), "0.0 [0.0, 16.1]");
        assert_eq!(format!("{:>5}", Share::wilson(0, 0)), "    -");
    }

    #[test]
    fn the_sign_test_counts_both_tails() {
        near(sign_test(0, 0), 1.0);
        near(sign_test(0, 5), 2.0 / 32.0);
        near(sign_test(2, 8), 2.0 * (1.0 + 10.0 + 45.0) / 1024.0);
        near(sign_test(5, 5), 1.0);
    }

    #[test]
    fn a_paired_difference_counts_disagreements_only() {
        let first = [true, true, true, false, false, true];
        let second = [true, false, false, false, true, true];
        let paired = Paired::new(&first, &second);
        assert_eq!((paired.only_first, paired.only_second), (2, 1));
        near(paired.difference, 1.0 / 6.0);
        assert!(paired.low < paired.difference && paired.difference < paired.high);
        let same = Paired::new(&first, &first);
        near(same.difference, 0.0);
        near(same.p, 1.0);
    }
}
