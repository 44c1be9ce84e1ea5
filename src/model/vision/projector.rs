//! The projector of LLaVA's kind, which other families took over.

use candle_core::{Result, Tensor};
use candle_nn::Module;

use super::layers::Linear;
use crate::model::activation::Activation;
use crate::model::weights::Weights;

/// Two linear layers with an activation between them.
#[derive(Debug, Clone)]
pub struct Projector {
    linear_1: Linear,
    activation: Activation,
    linear_2: Linear,
}

impl Projector {
    /// From features of `width` numbers over `inner` to rows of `hidden`; `w` holds `linear_1` and `linear_2`.
    pub fn new(
        [width, inner, hidden]: [usize; 3],
        activation: Activation,
        bias: bool,
        w: &Weights,
    ) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::load(width, inner, bias, &w.pp("linear_1"))?,
            activation,
            linear_2: Linear::load(inner, hidden, bias, &w.pp("linear_2"))?,
        })
    }
}

impl Module for Projector {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = self.linear_1.activated(x, self.activation)?;
        self.linear_2.forward(&inner)
    }
}
