//! The connector: pixel shuffle and one projection into the decoder's width.

use candle_core::{Result, Tensor};
use candle_nn::{linear_no_bias, Linear, Module, VarBuilder};

use super::config::Config;

/// Joins squares of `scale_factor` x `scale_factor` patches into one token each.
#[derive(Debug, Clone)]
pub struct Connector {
    proj: Linear,
    scale: usize,
}

impl Connector {
    /// `hidden` is the decoder's width.
    pub fn new(cfg: &Config, hidden: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            proj: linear_no_bias(
                cfg.vision_config.hidden_size * cfg.scale_factor.pow(2),
                hidden,
                vb.pp("modality_projection").pp("proj"),
            )?,
            scale: cfg.scale_factor,
        })
    }

    /// `[images, patches, width]` -> `[images, patches / scale^2, width * scale^2]`, each square row by row.
    fn pixel_shuffle(&self, x: &Tensor) -> Result<Tensor> {
        let (images, patches, width) = x.dims3()?;
        let side = patches.isqrt();
        let (s, out) = (self.scale, side / self.scale);
        x.reshape((images, out, s, out, s * width))?
            .transpose(2, 3)?
            .reshape((images, out * out, s * s * width))
    }
}

impl Module for Connector {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.proj.forward(&self.pixel_shuffle(x)?)
    }
}
