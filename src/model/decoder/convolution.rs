//! Short causal convolutions, each channel for itself, as layers without keys have them.

use candle_core::{Result, Tensor};

use crate::cache::LayerState;
use crate::model::weights::Weights;

/// A convolution over the newest tokens.
#[derive(Debug, Clone)]
pub struct CausalConv {
    /// What the inputs are multiplied with, the oldest of them first, `[channels]` each.
    taps: Vec<Tensor>,
    /// `[channels]`
    bias: Option<Tensor>,
}

impl CausalConv {
    /// `w` holds `weight` (`[channels, 1, width]`), and `bias` if there is one.
    pub fn new((channels, width): (usize, usize), bias: bool, w: &Weights) -> Result<Self> {
        let taps = w.get((channels, 1, width), "weight")?;
        let tap = |i| taps.narrow(2, i, 1)?.flatten_all()?.contiguous();
        Ok(Self {
            taps: (0..width).map(tap).collect::<Result<_>>()?,
            bias: match bias {
                true => Some(w.get(channels, "bias")?),
                false => None,
            },
        })
    }

    /// The next inputs of one stream (`[tokens, channels]`) behind those in its state -> `[tokens, channels]`.
    pub fn forward(&self, x: &Tensor, state: &mut LayerState) -> Result<Tensor> {
        let (inputs, tokens) = (state.push(x)?, x.dim(0)?);
        let mut sum: Option<Tensor> = None;
        for (i, tap) in self.taps.iter().enumerate() {
            let product = inputs.narrow(0, i, tokens)?.broadcast_mul(tap)?;
            sum = Some(match sum {
                Some(sum) => (sum + product)?,
                None => product,
            });
        }
        match (sum, &self.bias) {
            (Some(sum), Some(bias)) => sum.broadcast_add(bias),
            (Some(sum), None) => Ok(sum),
            (None, _) => x.zeros_like(),
        }
    }
}
