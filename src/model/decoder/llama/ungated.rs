//! An MLP without a gate, whose activation is a squared ReLU (arXiv 2109.08668): Cosmos 3 Edge's.
//!
//! There are no kernels for it: on a GPU it is decoded in candle's operations.

use candle_core::{Result, Tensor};
use candle_nn::Module;

use super::{Config, FeedForward};
use crate::model::decoder::LayOut;
use crate::model::linear::Linear;
use crate::model::weights::Weights;

/// `fc2(max(fc1(x), 0)^2)`
#[derive(Debug)]
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl FeedForward for Mlp {
    fn new(cfg: &Config, w: &Weights) -> Result<Self> {
        let (hidden, inner) = (cfg.hidden_size, cfg.intermediate_size);
        let load = |from, to, name| Linear::load_with(from, to, cfg.mlp_bias, &w.pp(name));
        Ok(Self {
            fc1: load(hidden, inner, "fc1")?,
            fc2: load(inner, hidden, "fc2")?,
        })
    }

    fn laid_out(&self, change: &LayOut) -> Result<Self> {
        Ok(Self {
            fc1: change(&self.fc1)?,
            fc2: change(&self.fc2)?,
        })
    }
}

impl Module for Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2.forward(&self.fc1.forward(x)?.relu()?.sqr()?)
    }
}
