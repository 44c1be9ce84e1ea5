//! The layers of LFM2: a short convolution between two gates, or attention, and a gated MLP behind either.
//!
//! - `config`: the checkpoint's configuration, and what of it can be computed

mod config;

use std::sync::Arc;

use candle_core::{Result, Tensor};
use candle_nn::{rms_norm, Module, RmsNorm};

use super::attention::Heads;
use super::convolution::CausalConv;
use super::llama::{self, Attention, Mlp};
use super::working::Moment;
use super::{LayOut, Recurrent};
use crate::cache::LayerState;
use crate::model::linear::Linear;
use crate::model::weights::Weights;

pub use config::{Config, LFM2};

/// What is alive at the fullest moments of a layer, of either kind.
pub fn moments(cfg: &Config) -> Vec<Moment> {
    let (hidden, inner) = (cfg.hidden_size, cfg.inner_size());
    let mut moments = llama::moments(hidden, &cfg.heads(), true, inner);
    // The chunk, what goes into the layer, and its norm; three parts with what they are cut out of, and as much behind the first gate: the third
    // part, what is convolved twice, and the sum of products with one more.
    moments.push(Moment {
        numbers: (3 + 6) * hidden,
        rounded: 0,
        attends: false,
    });
    moments
}

fn norm(cfg: &Config, width: usize, w: &Weights) -> Result<RmsNorm> {
    rms_norm(width, cfg.norm_eps, w.var_builder())
}

fn mlp(cfg: &Config, w: &Weights) -> Result<Mlp> {
    let (hidden, inner) = (cfg.hidden_size, cfg.inner_size());
    Ok(Mlp {
        gate_proj: Linear::load(hidden, inner, &w.pp("w1"))?,
        up_proj: Linear::load(hidden, inner, &w.pp("w3"))?,
        down_proj: Linear::load(inner, hidden, &w.pp("w2"))?,
    })
}

/// A layer that attends: Qwen3's under other names, so that queries and keys are normalised head by head.
pub fn attending(cfg: &Config, w: &Weights) -> Result<llama::Layer> {
    let heads @ Heads {
        heads: count,
        kv_heads,
        head_dim,
    } = cfg.heads();
    let (hidden, queries, keys) = (cfg.hidden_size, count * head_dim, kv_heads * head_dim);
    let w_attention = w.pp("self_attn");
    Ok(llama::Layer {
        input_layernorm: norm(cfg, hidden, &w.pp("operator_norm"))?,
        self_attn: Attention {
            q_proj: Linear::load(hidden, queries, &w_attention.pp("q_proj"))?,
            k_proj: Linear::load(hidden, keys, &w_attention.pp("k_proj"))?,
            v_proj: Linear::load(hidden, keys, &w_attention.pp("v_proj"))?,
            o_proj: Linear::load(queries, hidden, &w_attention.pp("out_proj"))?,
            norms: Some([
                norm(cfg, head_dim, &w_attention.pp("q_layernorm"))?,
                norm(cfg, head_dim, &w_attention.pp("k_layernorm"))?,
            ]),
            heads,
        },
        post_attention_layernorm: norm(cfg, hidden, &w.pp("ffn_norm"))?,
        mlp: mlp(cfg, &w.pp("feed_forward"))?,
    })
}

/// `out(C * conv(B * x))`, where `B`, `C` and `x` are thirds of one projection, and the convolution takes each channel for itself over
/// the newest tokens.
#[derive(Debug)]
struct ShortConv {
    in_proj: Linear,
    conv: CausalConv,
    out_proj: Linear,
}

impl ShortConv {
    fn new(cfg: &Config, w: &Weights) -> Result<Self> {
        let (hidden, width, bias) = (cfg.hidden_size, cfg.conv_width, cfg.conv_bias);
        Ok(Self {
            in_proj: Linear::load_with(hidden, 3 * hidden, bias, &w.pp("in_proj"))?,
            conv: CausalConv::new((hidden, width), bias, &w.pp("conv"))?,
            out_proj: Linear::load_with(hidden, hidden, bias, &w.pp("out_proj"))?,
        })
    }

    fn laid_out(&self, change: &LayOut) -> Result<Self> {
        Ok(Self {
            in_proj: change(&self.in_proj)?,
            conv: self.conv.clone(),
            out_proj: change(&self.out_proj)?,
        })
    }

    fn forward(&self, x: &Tensor, states: Vec<&mut LayerState>) -> Result<Tensor> {
        let [b, c, x] = thirds(&self.in_proj.forward(x)?)?;
        let gated = (b * x)?;
        let tokens = gated.dim(0)? / states.len();
        let convolved = states.into_iter().enumerate().map(|(i, state)| {
            let of_stream = gated.narrow(0, i * tokens, tokens)?;
            self.conv.forward(&of_stream, state)
        });
        let convolved = Tensor::cat(&convolved.collect::<Result<Vec<_>>>()?, 0)?;
        self.out_proj.forward(&(c * convolved)?)
    }
}

/// The columns of `x` (`[rows, 3 * width]`) in three parts.
fn thirds(x: &Tensor) -> Result<[Tensor; 3]> {
    let width = x.dim(1)? / 3;
    let part = |i: usize| x.narrow(1, i * width, width)?.contiguous();
    Ok([part(0)?, part(1)?, part(2)?])
}

/// A layer that keeps the newest inputs of its convolution.
#[derive(Debug)]
pub struct ConvLayer {
    operator_norm: RmsNorm,
    conv: ShortConv,
    ffn_norm: RmsNorm,
    feed_forward: Mlp,
}

impl ConvLayer {
    pub fn new(cfg: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            operator_norm: norm(cfg, cfg.hidden_size, &w.pp("operator_norm"))?,
            conv: ShortConv::new(cfg, &w.pp("conv"))?,
            ffn_norm: norm(cfg, cfg.hidden_size, &w.pp("ffn_norm"))?,
            feed_forward: mlp(cfg, &w.pp("feed_forward"))?,
        })
    }
}

impl Recurrent for ConvLayer {
    fn laid_out(&self, change: &LayOut) -> Result<Arc<dyn Recurrent>> {
        Ok(Arc::new(Self {
            operator_norm: self.operator_norm.clone(),
            conv: self.conv.laid_out(change)?,
            ffn_norm: self.ffn_norm.clone(),
            feed_forward: self.feed_forward.laid_out(change)?,
        }))
    }

    fn forward(&self, x: &Tensor, states: Vec<&mut LayerState>) -> Result<Tensor> {
        let mixed = self.conv.forward(&self.operator_norm.forward(x)?, states)?;
        let x = (x + mixed)?;
        let expanded = self.feed_forward.forward(&self.ffn_norm.forward(&x)?)?;
        x + expanded
    }
}
