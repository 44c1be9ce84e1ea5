//! What a decoder's rotary embedding is: frequencies, and which axis of a position each of them turns by.

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

    /// Angle per position of each pair of a head, `[head_dim / 2]`.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let rotary_dim = match self.rotary_dim {
            0 => head_dim,
            given => given,
        };
        (0..head_dim / 2)
            .map(|i| match 2 * i < rotary_dim {
                true => {
                    let exponent = 2.0 * i as f64 / rotary_dim as f64;
                    self.scaling.apply(1.0 / self.theta.powf(exponent))
                }
                false => 0.0,
            })
            .collect()
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

impl RopeScaling {
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original,
            } => {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                // Turns within the first training's longest input: 0 below the low border, 1 above the high one.
                let smooth = ((original / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor))
                    .clamp(0.0, 1.0);
                frequency * ((1.0 - smooth) / factor + smooth)
            }
        }
    }
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

    #[test]
    fn llama3_keeps_fast_frequencies_and_divides_slow_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original: 8192.0,
        };
        assert_eq!(scaling.apply(1.0), 1.0);
        assert_eq!(scaling.apply(1e-5), 1e-5 / 8.0);
        let between = scaling.apply(2.0 * std::f64::consts::PI * 2.0 / 8192.0);
        assert!(
            (between / (2.0 * std::f64::consts::PI * 2.0 / 8192.0)
                - (1.0 / 8.0 * 2.0 / 3.0 + 1.0 / 3.0))
                .abs()
                < 1e-12
        );
    }
}
