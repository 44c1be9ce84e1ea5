//! A layer with Llama's attention and an MLP without a gate, whose activation is a squared ReLU (arXiv 2109.08668): Cosmos 3 Edge.
//!
//! There are no kernels for it: on a GPU it is decoded in candle's operations.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use candle_nn::{rms_norm, Module, RmsNorm};

use super::{Attention, Config};
use crate::cache::{LayerSlots, Token};
use crate::model::decoder::{Block, LayOut};
use crate::model::linear::Linear;
use crate::model::weights::Weights;

/// `fc2(max(fc1(x), 0)^2)`
#[derive(Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    fn new(cfg: &Config, w: &Weights) -> Result<Self> {
        let (hidden, inner) = (cfg.hidden_size, cfg.intermediate_size);
        let load = |from, to, name| Linear::load_with(from, to, cfg.mlp_bias, &w.pp(name));
        Ok(Self {
            fc1: load(hidden, inner, "fc1")?,
            fc2: load(inner, hidden, "fc2")?,
        })
    }
}

impl Module for Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2.forward(&self.fc1.forward(x)?.relu()?.sqr()?)
    }
}

/// One layer.
#[derive(Debug)]
pub struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Layer {
    pub fn new(cfg: &Config, w: &Weights) -> Result<Self> {
        let norm = |name| rms_norm(cfg.hidden_size, cfg.rms_norm_eps, w.pp(name).var_builder());
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::new(cfg, &w.pp("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::new(cfg, &w.pp("mlp"))?,
        })
    }
}

impl Block for Layer {
    fn laid_out(&self, change: &LayOut) -> Result<Option<Arc<dyn Block>>> {
        Ok(Some(Arc::new(Self {
            input_layernorm: self.input_layernorm.clone(),
            self_attn: self.self_attn.laid_out(change)?,
            post_attention_layernorm: self.post_attention_layernorm.clone(),
            mlp: Mlp {
                fc1: change(&self.mlp.fc1)?,
                fc2: change(&self.mlp.fc2)?,
            },
        })))
    }

    fn forward(
        &self,
        x: &Tensor,
        tokens: &[Vec<Token>],
        caches: Vec<LayerSlots<'_>>,
    ) -> Result<Tensor> {
        let attended = self
            .self_attn
            .forward(&self.input_layernorm.forward(x)?, tokens, caches)?;
        let x = (x + attended)?;
        let expanded = self
            .mlp
            .forward(&self.post_attention_layernorm.forward(&x)?)?;
        x + expanded
    }
}
