//! Milliseconds per token, beside what merely reading the weights and the cache would take.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::device::used_bytes;
use super::floor::{self, Bandwidth};
use super::spread::Spread;
use super::{About, Bench};
use crate::eval::{parameter, EvalError};

/// Tokens of a window whose mean is compared with that of another.
const WINDOW: usize = 1000;

/// How many tokens.
#[derive(Debug, Clone, Copy)]
pub struct Length {
    /// Put into the cache before, as many as a conversation has had.
    pub fill: usize,
    /// Decoded before the clock starts.
    pub warmup: usize,
    /// Decoded with the clock.
    pub tokens: usize,
    /// Time after which no further token is decoded.
    pub limit: Option<Duration>,
}

/// What decoding took.
#[derive(Debug, Clone, Serialize)]
pub struct Decoded {
    #[serde(flatten)]
    pub about: About,
    pub fill: usize,
    /// That were decoded with the clock; fewer than asked for if the time was up.
    pub tokens: usize,
    pub asked: usize,
    /// Milliseconds per token.
    pub ms: Spread,
    pub tokens_per_s: f64,
    /// The first and the last of so many tokens since the cache has been full, milliseconds per token.
    pub window: usize,
    pub first: Spread,
    pub last: Spread,
    /// Mean of the last over the mean of the first.
    pub flatness: f64,
    pub compactions: Compactions,
    pub read: Bytes,
    pub copy: Bandwidth,
    /// Milliseconds that reading these bytes takes at the bandwidth of the copy.
    pub floor_ms: f64,
    /// The median over the floor.
    pub over_floor: f64,
    pub memory: Memory,
}

/// Tokens that a compaction came with.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Compactions {
    pub count: usize,
    /// Milliseconds of such a token beyond the median of the others, median.
    pub extra_ms: f64,
    /// Of all the time, what these tokens took beyond it.
    pub share: f64,
}

/// Bytes that a token reads.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Bytes {
    pub weights: usize,
    /// Keys and values, mean over the tokens.
    pub cache: usize,
}

/// Memory of the device in use, bytes, where it can be asked.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    /// With the weights and the full cache, after the warm-up.
    pub before: Option<u64>,
    /// After the last token.
    pub after: Option<u64>,
    /// Allocated for keys and values.
    pub cache: usize,
}

/// A token with the clock.
#[derive(Debug, Clone, Copy)]
struct Token {
    ms: f64,
    compacted: bool,
}

impl Bench {
    /// Fills the cache and decodes.
    pub fn decode(&self, length: Length) -> Result<Decoded, EvalError> {
        if length.tokens == 0 {
            return Err(parameter("tokens", 0, "at least 1"));
        }
        self.pool()?.install(|| self.run(length))
    }

    fn run(&self, length: Length) -> Result<Decoded, EvalError> {
        let mut built = self.build()?;
        let mut token = built.fill(length.fill)?;
        for _ in 0..length.warmup {
            token = built.step(token)?;
        }
        self.device.synchronize()?;
        let before = used_bytes(&self.device);
        let mut tokens = Vec::with_capacity(length.tokens);
        let mut slots = 0;
        let mut full = match built.cache.usage().compactions {
            0 => None,
            _ => Some(0),
        };
        let started = Instant::now();
        for i in 0..length.tokens {
            if length.limit.is_some_and(|limit| started.elapsed() > limit) {
                break;
            }
            let clock = Instant::now();
            token = built.step(token)?;
            let ms = clock.elapsed().as_secs_f64() * 1e3;
            // A token makes the cache longer by one, but for compactions.
            let now = built.cache.len();
            let compacted = i > 0 && now != slots + 1;
            slots = now;
            if compacted && full.is_none() {
                full = Some(i);
            }
            tokens.push((Token { ms, compacted }, now));
        }
        let after = used_bytes(&self.device);
        let usage = built.cache.usage();
        let copy = floor::measure(&self.device)?;
        let slots = tokens.iter().map(|(_, slots)| slots).sum::<usize>() / tokens.len().max(1);
        let read = Bytes {
            weights: built.token_bytes,
            cache: (usage.bytes - usage.state_bytes) / usage.budget.max(1) * slots
                + usage.state_bytes,
        };
        let tokens = tokens.iter().map(|(token, _)| *token).collect::<Vec<_>>();
        let ms = Spread::of(tokens.iter().map(|token| token.ms));
        let window = WINDOW.min(tokens.len().div_ceil(2));
        let since = full.unwrap_or(0).min(tokens.len() - window);
        let spread = |tokens: &[Token]| Spread::of(tokens.iter().map(|token| token.ms));
        let first = spread(&tokens[since..since + window]);
        let last = spread(&tokens[tokens.len() - window..]);
        let floor_ms = copy.ms((read.weights + read.cache) as f64);
        Ok(Decoded {
            about: built.about,
            fill: length.fill,
            tokens: tokens.len(),
            asked: length.tokens,
            tokens_per_s: 1e3 / ms.mean,
            window,
            first,
            last,
            flatness: last.mean / first.mean,
            compactions: Compactions::of(&tokens),
            read,
            copy,
            floor_ms,
            over_floor: ms.median / floor_ms,
            memory: Memory {
                before,
                after,
                cache: usage.bytes,
            },
            ms,
        })
    }
}

impl Compactions {
    fn of(tokens: &[Token]) -> Self {
        let ms = |compacted| {
            let chosen = tokens
                .iter()
                .filter(move |token| token.compacted == compacted);
            chosen.map(|token| token.ms)
        };
        let usual = Spread::of(ms(false)).median;
        let extra = ms(true).map(|ms| ms - usual).collect::<Vec<_>>();
        let total = tokens.iter().map(|token| token.ms).sum::<f64>();
        Self {
            count: extra.len(),
            share: match extra.is_empty() {
                true => 0.0,
                false => extra.iter().sum::<f64>() / total,
            },
            extra_ms: Spread::of(extra).median,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compaction_costs_what_its_token_takes_beyond_the_others() {
        let token = |ms, compacted| Token { ms, compacted };
        let mut tokens = vec![token(1.0, false); 8];
        tokens.extend([token(3.0, true), token(5.0, true)]);
        let found = Compactions::of(&tokens);
        assert_eq!((found.count, found.extra_ms), (2, 3.0));
        assert!((found.share - 6.0 / 16.0).abs() < 1e-12);
        assert_eq!(Compactions::of(&tokens[..3]).count, 0);
        // Of none there is no share, not even minus zero.
        assert_eq!(Compactions::of(&tokens[..3]).share.to_bits(), 0);
        assert_eq!(Compactions::of(&[]).share, 0.0);
    }
}
