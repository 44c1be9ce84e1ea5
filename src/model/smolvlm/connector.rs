//! The connector: pixel shuffle and one projection into the decoder's width.

use candle_core::{Result, Tensor};
use candle_nn::Module;

use super::config::Config;
use crate::model::vision::layers::Linear;
use crate::model::vision::shuffle::pixel_shuffle;
use crate::model::weights::Weights;

/// Joins squares of `scale_factor` x `scale_factor` patches into one token each.
#[derive(Debug, Clone)]
pub struct Connector {
    proj: Linear,
    scale: usize,
}

impl Connector {
    /// `hidden` is the decoder's width.
    pub fn new(cfg: &Config, hidden: usize, w: &Weights) -> Result<Self> {
        Ok(Self {
            proj: Linear::load(
                cfg.vision_config.hidden_size * cfg.scale_factor.pow(2),
                hidden,
                false,
                &w.pp("modality_projection").pp("proj"),
            )?,
            scale: cfg.scale_factor,
        })
    }
}

impl Module for Connector {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.proj.forward(&pixel_shuffle(x, self.scale)?)
    }
}
