//! The layers of Qwen3.5: Gated DeltaNet (arXiv 2412.06464), or attention whose output is gated, and a gated MLP behind either.
//!
//! - `config`: the checkpoint's configuration, and what of it can be computed
//! - `delta`: the gated delta rule
//! - `in_place`: the same on the CPU

mod config;
mod delta;
mod in_place;

use std::sync::Arc;

use candle_core::{bail, DType, Result, Tensor};
use candle_nn::ops::{rms_norm, sigmoid};
use candle_nn::Module;

use super::attention::{rotary_order, Heads, Projected};
use super::convolution::CausalConv;
use super::llama::{mlp_moment, Mlp};
use super::working::Moment;
use super::{Block, LayOut, Layer, Recurrent};
use crate::cache::{LayerSlots, LayerState, Token};
use crate::model::linear::{forward_all, Linear};
use crate::model::weights::Weights;
use config::LinearHeads;
use delta::{at_length_one, softplus, Inputs};

pub use config::{Config, QWEN3_5};

/// An RMS norm whose weights are stored less one; computed in f32.
#[derive(Debug, Clone)]
pub struct CentredNorm {
    /// Whole, `[width]`, f32.
    weight: Tensor,
    epsilon: f32,
}

impl CentredNorm {
    /// `order`: which of the stored weights stands where, if they are to stand otherwise.
    fn new(cfg: &Config, width: usize, order: Option<&[u32]>, w: &Weights) -> Result<Self> {
        let mut weight = (w.get(width, "weight")?.to_dtype(DType::F32)? + 1.0)?;
        if let Some(order) = order {
            let index = Tensor::from_slice(order, order.len(), weight.device())?;
            weight = weight.index_select(&index, 0)?;
        }
        Ok(Self {
            weight,
            epsilon: cfg.rms_norm_eps as f32,
        })
    }

    /// In front of the output layer.
    pub fn last(cfg: &Config, w: &Weights) -> Result<Self> {
        Self::new(cfg, cfg.hidden_size, None, w)
    }
}

impl Module for CentredNorm {
    /// `[rows, width]` -> `[rows, width]`
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?.contiguous()?;
        rms_norm(&wide, &self.weight, self.epsilon)?.to_dtype(x.dtype())
    }
}

/// What stands around attention, linear or not: norms and the MLP.
#[derive(Debug)]
struct Around {
    input_layernorm: CentredNorm,
    post_attention_layernorm: CentredNorm,
    mlp: Mlp,
}

impl Around {
    fn new(cfg: &Config, w: &Weights) -> Result<Self> {
        let (hidden, inner) = (cfg.hidden_size, cfg.intermediate_size);
        let norm = |name| CentredNorm::new(cfg, hidden, None, &w.pp(name));
        let w_mlp = w.pp("mlp");
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp {
                gate_proj: Linear::load(hidden, inner, &w_mlp.pp("gate_proj"))?,
                up_proj: Linear::load(hidden, inner, &w_mlp.pp("up_proj"))?,
                down_proj: Linear::load(inner, hidden, &w_mlp.pp("down_proj"))?,
            },
        })
    }

    fn laid_out(&self, change: &LayOut) -> Result<Self> {
        Ok(Self {
            input_layernorm: self.input_layernorm.clone(),
            post_attention_layernorm: self.post_attention_layernorm.clone(),
            mlp: self.mlp.laid_out(change)?,
        })
    }

    fn forward(&self, x: &Tensor, mix: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let x = (x + mix(&self.input_layernorm.forward(x)?)?)?;
        let expanded = self
            .mlp
            .forward(&self.post_attention_layernorm.forward(&x)?)?;
        x + expanded
    }
}

/// What is alive at the fullest moments of a layer, of either kind.
pub fn moments(cfg: &Config) -> Vec<Moment> {
    let (hidden, heads, linear) = (cfg.hidden_size, cfg.heads(), cfg.linear_heads());
    // The chunk, what goes into the layer, and its norm.
    let before = 3 * hidden;
    let (queries, keys) = heads.widths();
    let (channels, values) = (linear.channels(), linear.values());
    let mixing = |numbers| Moment {
        numbers: before + numbers,
        rounded: 0,
        attends: false,
    };
    vec![
        // What the heads are gated by, and queries and keys without their norms.
        heads.attending(before + 2 * queries + keys),
        // What the output is gated by, and the convolution: what goes in twice, and the sum of products with one more.
        mixing(values + 5 * channels),
        // In front of the convolution and behind it, queries and keys for each head of values; values, what is read, and its rows by token.
        mixing(2 * channels + 2 * linear.value_heads * linear.key_dim + 4 * values),
        // The chunk, what goes in, the sum, its norm, and what comes out.
        mlp_moment(5 * hidden, cfg.intermediate_size),
    ]
}

/// All layers of a decoder, which `w` stands at.
pub fn layers(cfg: &Config, w: &Weights) -> Result<Vec<Layer>> {
    let attends = cfg.attends().map_err(candle_core::Error::wrap)?;
    let shape = cfg.cache_shape().map_err(candle_core::Error::wrap)?;
    let rotary_dim = shape.rope.rotary_dim;
    let layer = |(i, attends)| -> Result<Layer> {
        let w = w.pp(i);
        Ok(match attends {
            true => Layer::Attention(Arc::new(AttentionLayer::new(cfg, rotary_dim, &w)?)),
            false => Layer::Recurrent(Arc::new(DeltaLayer::new(cfg, &w)?)),
        })
    };
    attends.into_iter().enumerate().map(layer).collect()
}

/// A layer that attends.
#[derive(Debug)]
struct AttentionLayer {
    around: Around,
    q_proj: Linear,
    /// What the heads' output is gated by.
    gate_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: CentredNorm,
    k_norm: CentredNorm,
    heads: Heads,
}

impl AttentionLayer {
    /// `rotary_dim` is that of the configuration's [`crate::cache::Rope`].
    fn new(cfg: &Config, rotary_dim: usize, w: &Weights) -> Result<Self> {
        let heads @ Heads {
            heads: count,
            kv_heads,
            head_dim,
        } = cfg.heads();
        let hidden = cfg.hidden_size;
        let w_attention = w.pp("self_attn");
        let rotary = rotary_order(head_dim, rotary_dim);
        let rotary = rotary.into_iter().map(|d| d as u32).collect::<Vec<_>>();
        let plain = (0..head_dim as u32).collect::<Vec<_>>();
        // Heads of so many parts of `head_dim` rows, of which one is taken, its rows in an order.
        let part = |name, heads: usize, (parts, part): (usize, usize), order: &[u32]| {
            let start = |head| ((head * parts + part) * head_dim) as u32;
            let rows = (0..heads).flat_map(|head| order.iter().map(move |d| start(head) + d));
            let rows = rows.collect::<Vec<_>>();
            let all = heads * parts * head_dim;
            let weight = w_attention
                .pp(name)
                .matrix((all, hidden), "weight", Some(&rows))?;
            Ok::<_, candle_core::Error>(Linear::of(weight, None))
        };
        let norm = |name| CentredNorm::new(cfg, head_dim, Some(&rotary), &w_attention.pp(name));
        Ok(Self {
            around: Around::new(cfg, w)?,
            q_proj: part("q_proj", count, (2, 0), &rotary)?,
            gate_proj: part("q_proj", count, (2, 1), &plain)?,
            k_proj: part("k_proj", kv_heads, (1, 0), &rotary)?,
            v_proj: Linear::load(hidden, kv_heads * head_dim, &w_attention.pp("v_proj"))?,
            o_proj: Linear::load(count * head_dim, hidden, &w_attention.pp("o_proj"))?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
            heads,
        })
    }
}

impl Block for AttentionLayer {
    fn laid_out(&self, change: &LayOut) -> Result<Option<Arc<dyn Block>>> {
        Ok(Some(Arc::new(Self {
            around: self.around.laid_out(change)?,
            q_proj: change(&self.q_proj)?,
            gate_proj: change(&self.gate_proj)?,
            k_proj: change(&self.k_proj)?,
            v_proj: change(&self.v_proj)?,
            o_proj: change(&self.o_proj)?,
            q_norm: self.q_norm.clone(),
            k_norm: self.k_norm.clone(),
            heads: self.heads,
        })))
    }

    fn forward(
        &self,
        x: &Tensor,
        tokens: &[Vec<Token>],
        caches: Vec<LayerSlots<'_>>,
    ) -> Result<Tensor> {
        self.around.forward(x, |x| {
            let projections = [&self.q_proj, &self.gate_proj, &self.k_proj, &self.v_proj];
            let [q, gate, k, v] = forward_all(x, &projections)?;
            let projected = Projected {
                q: self.heads.each(&q, |head| self.q_norm.forward(head))?,
                k: self.heads.each(&k, |head| self.k_norm.forward(head))?,
                v,
            };
            let attended = self.heads.attend(&projected, tokens, caches)?;
            self.o_proj.forward(&(attended * sigmoid(&gate)?)?)
        })
    }
}

/// A layer of linear attention, which keeps the newest inputs of its convolution and a matrix for each head.
#[derive(Debug)]
struct DeltaLayer {
    around: Around,
    /// To queries, keys and values.
    in_proj_qkv: Linear,
    /// To what the heads' output is gated by.
    in_proj_z: Linear,
    /// To how much of a value is written.
    in_proj_b: Linear,
    /// To how much of the matrix is forgotten.
    in_proj_a: Linear,
    conv: CausalConv,
    /// `[heads]`, f32.
    dt_bias: Tensor,
    /// How fast each head forgets at least, `[heads]`, f32, below 0.
    rate: Tensor,
    /// Of each head's output, `[value_dim]`, f32.
    norm: Tensor,
    epsilon: f32,
    out_proj: Linear,
    heads: LinearHeads,
}

impl DeltaLayer {
    fn new(cfg: &Config, w: &Weights) -> Result<Self> {
        let heads = cfg.linear_heads();
        let (hidden, values) = (cfg.hidden_size, heads.values());
        let w_linear = w.pp("linear_attn");
        let load = |outputs, name| Linear::load(hidden, outputs, &w_linear.pp(name));
        let of_heads = |name| w_linear.get(heads.value_heads, name)?.to_dtype(DType::F32);
        let w_norm = w_linear.pp("norm");
        Ok(Self {
            around: Around::new(cfg, w)?,
            in_proj_qkv: load(heads.channels(), "in_proj_qkv")?,
            in_proj_z: load(values, "in_proj_z")?,
            in_proj_b: load(heads.value_heads, "in_proj_b")?,
            in_proj_a: load(heads.value_heads, "in_proj_a")?,
            conv: CausalConv::new(
                (heads.channels(), heads.width),
                false,
                &w_linear.pp("conv1d"),
            )?,
            dt_bias: of_heads("dt_bias")?,
            rate: of_heads("A_log")?.exp()?.neg()?,
            norm: w_norm
                .get(heads.value_dim, "weight")?
                .to_dtype(DType::F32)?,
            epsilon: cfg.rms_norm_eps as f32,
            out_proj: Linear::load(values, hidden, &w_linear.pp("out_proj"))?,
            heads,
        })
    }

    /// What the rule takes of the tokens of one stream: `qkv` (`[tokens, channels]`) behind the convolution, `b` and `a` (`[tokens, heads]`).
    fn inputs(&self, qkv: &Tensor, b: &Tensor, a: &Tensor) -> Result<Inputs> {
        let heads = &self.heads;
        let (tokens, keys) = (qkv.dim(0)?, heads.keys());
        let times = heads.value_heads / heads.key_heads;
        let part = |at, count: usize, width| {
            let part = qkv.narrow(1, at, count * width)?;
            part.reshape((tokens, count, width))
        };
        let by_head = |x: &Tensor| x.t()?.unsqueeze(2)?.contiguous();
        let queries = at_length_one(&part(0, heads.key_heads, heads.key_dim)?, times)?;
        let values = part(2 * keys, heads.value_heads, heads.value_dim)?;
        let forgotten = softplus(&a.to_dtype(DType::F32)?.broadcast_add(&self.dt_bias)?)?;
        Ok(Inputs {
            queries: (queries / (heads.key_dim as f64).sqrt())?,
            keys: at_length_one(&part(keys, heads.key_heads, heads.key_dim)?, times)?,
            values: values.to_dtype(DType::F32)?.transpose(0, 1)?.contiguous()?,
            rates: by_head(&sigmoid(b)?.to_dtype(DType::F32)?)?,
            decays: by_head(&forgotten.broadcast_mul(&self.rate)?)?,
        })
    }

    fn mix(&self, x: &Tensor, states: Vec<&mut LayerState>) -> Result<Tensor> {
        let projections = [
            &self.in_proj_qkv,
            &self.in_proj_z,
            &self.in_proj_b,
            &self.in_proj_a,
        ];
        let [qkv, z, b, a] = forward_all(x, &projections)?;
        let tokens = x.dim(0)? / states.len();
        let mut read = Vec::with_capacity(states.len());
        for (i, state) in states.into_iter().enumerate() {
            let own = |x: &Tensor| x.narrow(0, i * tokens, tokens);
            let convolved = self.conv.forward(&own(&qkv)?, state)?.silu()?;
            let inputs = self.inputs(&convolved, &own(&b)?, &own(&a)?)?;
            let Some(matrices) = state.matrices() else {
                bail!("a layer of linear attention without its matrices")
            };
            let (out, matrices) = inputs.read(matrices)?;
            state.replace_matrices(matrices)?;
            read.push(out.transpose(0, 1)?.contiguous()?);
        }
        let heads = &self.heads;
        let read = Tensor::cat(&read, 0)?.reshape(((), heads.value_dim))?;
        let normed = rms_norm(&read, &self.norm, self.epsilon)?;
        let gate = z.to_dtype(DType::F32)?.reshape(((), heads.value_dim))?;
        let gated = (normed * gate.silu()?)?.reshape(z.shape())?;
        self.out_proj.forward(&gated.to_dtype(x.dtype())?)
    }
}

impl Recurrent for DeltaLayer {
    fn laid_out(&self, change: &LayOut) -> Result<Arc<dyn Recurrent>> {
        Ok(Arc::new(Self {
            around: self.around.laid_out(change)?,
            in_proj_qkv: change(&self.in_proj_qkv)?,
            in_proj_z: change(&self.in_proj_z)?,
            in_proj_b: change(&self.in_proj_b)?,
            in_proj_a: change(&self.in_proj_a)?,
            conv: self.conv.clone(),
            dt_bias: self.dt_bias.clone(),
            rate: self.rate.clone(),
            norm: self.norm.clone(),
            epsilon: self.epsilon,
            out_proj: change(&self.out_proj)?,
            heads: self.heads,
        }))
    }

    fn forward(&self, x: &Tensor, states: Vec<&mut LayerState>) -> Result<Tensor> {
        self.around.forward(x, |x| self.mix(x, states))
    }
}
