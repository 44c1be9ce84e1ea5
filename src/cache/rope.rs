//! What a decoder's rotary embedding is: frequencies, and which axis of a position each of them turns by.

use std::f64::consts::PI;

/// Rotary embedding (RoFormer, arXiv 2104.09864) of a decoder. Pairs are the halves of a head, as in Llama checkpoints.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// First dimensions of a head that rotate, an even number; 0: all of them. Of pairs `(i, i + head_dim / 2)` those from
    /// `i = rotary_dim / 2` on stay as they are, so a decoder whose rotating dimensions lie side by side is loaded in that order.
    pub rotary_dim: usize,
    pub scaling: RopeScaling,
    pub axes: RopeAxes,
}

/// How frequencies were changed for inputs longer than those of the first training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    None,
    /// Every frequency divided by the factor.
    Linear {
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, a smooth passage between (Llama 3.1).
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        /// Longest input of the first training, tokens.
        original: f64,
    },
    /// Low frequencies divided, high ones kept, a passage between that is linear in the number of the pair; cosines and sines are
    /// stretched (YaRN, arXiv 2309.00071).
    Yarn {
        factor: f64,
        /// Turns within `original` tokens of the pairs from which and up to which the passage reaches.
        beta_fast: f64,
        beta_slow: f64,
        /// Longest input of the first training, tokens.
        original: f64,
        /// The passage begins and ends at whole pairs.
        truncate: bool,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
}

/// What one pair of a head does from one position to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Angle per position.
    pub frequency: f64,
    /// What cosine and sine are multiplied by.
    pub amplitude: f64,
}

/// Axes of a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeAxes {
    /// A position is one number.
    One,
    /// Time, height and width, so many frequencies each, one axis after the other (Qwen2-VL, arXiv 2409.12191).
    Sections([usize; 3]),
    /// The same three, taking turns frequency by frequency; what is left over turns by time (Qwen3-VL).
    Interleaved([usize; 3]),
}

impl Rope {
    /// Unscaled, of the whole head.
    pub const fn new(theta: f64) -> Self {
        Self {
            theta,
            rotary_dim: 0,
            scaling: RopeScaling::None,
            axes: RopeAxes::One,
        }
    }

    /// The pairs of a head, `[head_dim / 2]`; those that do not rotate have the frequency 0 and the amplitude 1.
    pub fn pairs(&self, head_dim: usize) -> Vec<Pair> {
        let rotary_dim = match self.rotary_dim {
            0 => head_dim,
            given => given,
        };
        let amplitude = match self.scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            } => attention_factor,
            _ => 1.0,
        };
        let still = Pair {
            frequency: 0.0,
            amplitude: 1.0,
        };
        (0..head_dim / 2)
            .map(|i| match 2 * i < rotary_dim {
                true => Pair {
                    frequency: self.frequency(i, rotary_dim),
                    amplitude,
                },
                false => still,
            })
            .collect()
    }

    /// Angle per position of the `pair`-th of the `rotary_dim / 2` pairs that rotate.
    fn frequency(&self, pair: usize, rotary_dim: usize) -> f64 {
        let dim = rotary_dim as f64;
        let frequency = 1.0 / self.theta.powf(2.0 * pair as f64 / dim);
        match self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original,
            } => {
                // Turns within the first training's longest input: 0 below the low border, 1 above the high one.
                let turns = original * frequency / (2.0 * PI);
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                divided(frequency, factor, kept)
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original,
                truncate,
                ..
            } => {
                // The pair that makes so many turns within the first training's longest input.
                let pair_of = |turns: f64| {
                    dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                };
                let (mut first, mut last) = (pair_of(beta_fast), pair_of(beta_slow));
                if truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                let (first, mut last) = (first.max(0.0), last.min(dim - 1.0));
                if first == last {
                    last += SHORTEST_PASSAGE;
                }
                let kept = 1.0 - (pair as f64 - first) / (last - first);
                divided(frequency, factor, kept)
            }
        }
    }

    /// The axis (time, height, width) that each pair of a head turns by, `[head_dim / 2]`.
    pub fn axis_of_pairs(&self, head_dim: usize) -> Vec<usize> {
        let axis = |pair: usize| match self.axes {
            RopeAxes::One => 0,
            RopeAxes::Sections([time, height, _]) => {
                usize::from(pair >= time) + usize::from(pair >= time + height)
            }
            RopeAxes::Interleaved(sections) => {
                let turn = pair % 3;
                if pair < 3 * sections[turn] {
                    turn
                } else {
                    0
                }
            }
        };
        (0..head_dim / 2).map(axis).collect()
    }
}

/// Pairs between the ends of YaRN's passage where both are the same, as transformers has it.
const SHORTEST_PASSAGE: f64 = 0.001;

/// `frequency` divided by `factor`, but for the share `kept` of it, which may be beyond 0 and 1.
fn divided(frequency: f64, factor: f64, kept: f64) -> f64 {
    let kept = kept.clamp(0.0, 1.0);
    frequency * ((1.0 - kept) / factor + kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_follow_their_sections() {
        let axes = |axes| {
            Rope {
                axes,
                ..Rope::new(1e4)
            }
            .axis_of_pairs(16)
        };
        assert_eq!(axes(RopeAxes::One), [0; 8]);
        assert_eq!(
            axes(RopeAxes::Sections([2, 3, 3])),
            [0, 0, 1, 1, 1, 2, 2, 2]
        );
        assert_eq!(
            axes(RopeAxes::Interleaved([4, 2, 2])),
            [0, 1, 2, 0, 1, 2, 0, 0]
        );
    }

    fn frequencies(theta: f64, scaling: RopeScaling, head_dim: usize) -> Vec<f64> {
        let rope = Rope {
            scaling,
            ..Rope::new(theta)
        };
        let pairs = rope.pairs(head_dim).into_iter();
        pairs.map(|pair| pair.frequency).collect()
    }

    #[test]
    fn llama3_keeps_fast_frequencies_and_divides_slow_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original: 8192.0,
        };
        // theta such that the second pair makes two turns within the first training's longest input.
        let two_turns = 2.0 * PI * 2.0 / 8192.0;
        let scaled = frequencies(two_turns.powi(-4), scaling, 8);
        assert_eq!(scaled[0], 1.0);
        let share = 1.0 / 8.0 * 2.0 / 3.0 + 1.0 / 3.0;
        assert!((scaled[1] / two_turns - share).abs() < 1e-9);
        assert!((scaled[3] / two_turns.powi(3) - 1.0 / 8.0).abs() < 1e-9);
    }

    #[test]
    fn yarn_stretches_only_what_rotates() {
        let rope = Rope {
            rotary_dim: 4,
            scaling: RopeScaling::Yarn {
                factor: 4.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
                original: 32.0,
                truncate: true,
                attention_factor: 1.25,
            },
            ..Rope::new(1e4)
        };
        let amplitudes = rope.pairs(8).into_iter().map(|pair| pair.amplitude);
        assert_eq!(amplitudes.collect::<Vec<_>>(), [1.25, 1.25, 1.0, 1.0]);
    }
}
