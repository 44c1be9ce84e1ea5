//! A layer of the decoders that are built like Llama: Llama, Mistral, Qwen2 (biases), Qwen3 (normalised queries and keys).
//!
//! - this file: the layer, with Llama's MLP
//! - `config`: the checkpoint's configuration, and what of it can be computed
//! - `ungated`: an MLP without a gate (Cosmos 3 Edge)

mod config;
mod ungated;

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use candle_nn::{rms_norm, Module, RmsNorm};

use super::attention::{Heads, Projected};
use super::working::Moment;
use super::{Block, LayOut};
use crate::cache::{LayerSlots, Token};
use crate::model::activation::Activation;
use crate::model::linear::{forward_all, Linear};
use crate::model::sum::sum;
use crate::model::weights::Weights;

pub use config::{Config, COSMOS3_EDGE, QWEN2_5_VL, QWEN2_VL, QWEN3_VL};

/// What is alive at the fullest moments of a layer; `norms`: of queries and keys.
pub fn moments(hidden: usize, heads: &Heads, norms: bool, inner: usize) -> Vec<Moment> {
    let (queries, keys) = heads.widths();
    let raw = if norms { queries + keys } else { 0 };
    // The chunk, what goes into the layer, and its norm.
    let attending = heads.attending(3 * hidden + raw);
    // The chunk, what goes in, what attention adds, the sum, its norm, and what comes out.
    vec![attending, mlp_moment(6 * hidden, inner)]
}

/// The last product of an MLP, beside `numbers` numbers of each token: gate, the other half and their product, or what stands in their place without a
/// gate.
pub fn mlp_moment(numbers: usize, inner: usize) -> Moment {
    Moment {
        numbers: numbers + 3 * inner,
        rounded: inner,
        attends: false,
    }
}

/// The layer whose weights `w` stands at, of the kind that the configuration says.
pub fn layer(cfg: &Config, w: &Weights) -> Result<Arc<dyn Block>> {
    Ok(match cfg.gated() {
        true => Arc::new(Layer::<Mlp>::new(cfg, w)?),
        false => Arc::new(Layer::<ungated::Mlp>::new(cfg, w)?),
    })
}

#[derive(Debug)]
pub struct Attention {
    pub q_proj: Linear,
    pub k_proj: Linear,
    pub v_proj: Linear,
    pub o_proj: Linear,
    /// Of queries and of keys.
    pub norms: Option<[RmsNorm; 2]>,
    pub heads: Heads,
}

impl Attention {
    fn new(cfg: &Config, w: &Weights) -> Result<Self> {
        let heads = cfg.heads();
        let (hidden, bias) = (cfg.hidden_size, cfg.qkv_bias());
        let (queries, keys) = heads.widths();
        let norm = |name| {
            let w = w.pp(name).var_builder();
            rms_norm(heads.head_dim, cfg.rms_norm_eps, w)
        };
        Ok(Self {
            q_proj: Linear::load_with(hidden, queries, bias, &w.pp("q_proj"))?,
            k_proj: Linear::load_with(hidden, keys, bias, &w.pp("k_proj"))?,
            v_proj: Linear::load_with(hidden, keys, bias, &w.pp("v_proj"))?,
            o_proj: Linear::load_with(queries, hidden, cfg.attention_bias, &w.pp("o_proj"))?,
            norms: match cfg.qk_norm() {
                true => Some([norm("q_norm")?, norm("k_norm")?]),
                false => None,
            },
            heads,
        })
    }

    fn laid_out(&self, change: &LayOut) -> Result<Self> {
        Ok(Self {
            q_proj: change(&self.q_proj)?,
            k_proj: change(&self.k_proj)?,
            v_proj: change(&self.v_proj)?,
            o_proj: change(&self.o_proj)?,
            norms: self.norms.clone(),
            heads: self.heads,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        tokens: &[Vec<Token>],
        caches: Vec<LayerSlots<'_>>,
    ) -> Result<Tensor> {
        let [q, k, v] = forward_all(x, &[&self.q_proj, &self.k_proj, &self.v_proj])?;
        let (q, k) = match &self.norms {
            None => (q, k),
            Some([q_norm, k_norm]) => (
                self.heads.each(&q, |head| q_norm.forward(head))?,
                self.heads.each(&k, |head| k_norm.forward(head))?,
            ),
        };
        let attended = self.heads.attend(&Projected { q, k, v }, tokens, caches)?;
        self.o_proj.forward(&attended)
    }
}

/// What follows the attention of a layer.
pub trait FeedForward: Module + Debug + Send + Sync + Sized + 'static {
    /// `w` stands at it.
    fn new(cfg: &Config, w: &Weights) -> Result<Self>;

    /// As [`Block::laid_out`].
    fn laid_out(&self, change: &LayOut) -> Result<Self>;
}

/// `down(silu(gate(x)) * up(x))`
#[derive(Debug)]
pub struct Mlp {
    pub gate_proj: Linear,
    pub up_proj: Linear,
    pub down_proj: Linear,
}

impl Mlp {
    pub fn laid_out(&self, change: &LayOut) -> Result<Self> {
        Ok(Self {
            gate_proj: change(&self.gate_proj)?,
            up_proj: change(&self.up_proj)?,
            down_proj: change(&self.down_proj)?,
        })
    }
}

impl FeedForward for Mlp {
    fn new(cfg: &Config, w: &Weights) -> Result<Self> {
        let (hidden, inner) = (cfg.hidden_size, cfg.intermediate_size);
        let load = |from, to, name| Linear::load_with(from, to, cfg.mlp_bias, &w.pp(name));
        Ok(Self {
            gate_proj: load(hidden, inner, "gate_proj")?,
            up_proj: load(hidden, inner, "up_proj")?,
            down_proj: load(inner, hidden, "down_proj")?,
        })
    }

    fn laid_out(&self, change: &LayOut) -> Result<Self> {
        self.laid_out(change)
    }
}

impl Module for Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [gate, up] = forward_all(x, &[&self.gate_proj, &self.up_proj])?;
        self.down_proj.forward(&Activation::Silu.gated(&gate, &up)?)
    }
}

/// One layer.
#[derive(Debug)]
pub struct Layer<M = Mlp> {
    pub input_layernorm: RmsNorm,
    pub self_attn: Attention,
    pub post_attention_layernorm: RmsNorm,
    pub mlp: M,
}

impl<M: FeedForward> Layer<M> {
    fn new(cfg: &Config, w: &Weights) -> Result<Self> {
        let norm = |name| rms_norm(cfg.hidden_size, cfg.rms_norm_eps, w.pp(name).var_builder());
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::new(cfg, &w.pp("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: M::new(cfg, &w.pp("mlp"))?,
        })
    }
}

impl<M: FeedForward> Block for Layer<M> {
    /// The kernels have a gated MLP.
    fn as_llama(&self) -> Option<&Layer> {
        (self as &dyn Any).downcast_ref()
    }

    fn laid_out(&self, change: &LayOut) -> Result<Option<Arc<dyn Block>>> {
        Ok(Some(Arc::new(Self {
            input_layernorm: self.input_layernorm.clone(),
            self_attn: self.self_attn.laid_out(change)?,
            post_attention_layernorm: self.post_attention_layernorm.clone(),
            mlp: self.mlp.laid_out(change)?,
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
        let x = sum(x, &attended)?;
        let expanded = self
            .mlp
            .forward(&self.post_attention_layernorm.forward(&x)?)?;
        sum(&x, &expanded)
    }
}
