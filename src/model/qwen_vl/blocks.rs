//! The layers of a tower.

use candle_core::{DType, Result, Tensor};
use candle_nn::{rms_norm, Module, RmsNorm, VarBuilder};

use super::{Angles, Measures};
use crate::cache::{shares, weighted_sums};
use crate::model::activation::Activation;
use crate::model::vision::attention::{self, Windows};
use crate::model::vision::layers::Linear;
use crate::model::vision::norm::{layer_norm, LayerNorm};

/// What the published towers add to a variance; their configurations do not say it.
const EPS: f64 = 1e-6;

/// A norm of either kind.
#[derive(Debug, Clone)]
pub enum Norm {
    Rms(RmsNorm),
    Layer(LayerNorm),
}

impl Norm {
    pub fn rms(width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self::Rms(rms_norm(width, EPS, vb)?))
    }

    pub fn layer(width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self::Layer(layer_norm(width, EPS, vb)?))
    }
}

impl Module for Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rms(norm) => norm.forward(x),
            Self::Layer(norm) => norm.forward(x),
        }
    }
}

/// The embedding of patches: a convolution whose kernel is as large as its stride is one product.
#[derive(Debug, Clone)]
pub struct PatchEmbed {
    proj: Linear,
}

impl PatchEmbed {
    /// The tensor `proj.weight` is `[hidden, 3, frames, side, side]`.
    pub fn new(measures: &Measures, bias: bool, vb: VarBuilder) -> Result<Self> {
        let (hidden, side) = (measures.hidden_size, measures.patch_size);
        let vb = vb.pp("proj");
        let shape = (hidden, 3, measures.temporal_patch_size, side, side);
        let weight = vb.get(shape, "weight")?.flatten_from(1)?;
        let bias = match bias {
            true => Some(vb.get(hidden, "bias")?),
            false => None,
        };
        Ok(Self {
            proj: Linear::packed(weight, bias)?,
        })
    }
}

impl Module for PatchEmbed {
    /// `[patches, values]` -> `[patches, hidden]`
    fn forward(&self, patches: &Tensor) -> Result<Tensor> {
        self.proj.forward(patches)
    }
}

#[derive(Debug, Clone)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: usize,
    head_dim: usize,
}

/// Logits that are in memory at a time, at most, unless one row has more.
pub const LOGITS: usize = 1 << 24;

impl Attention {
    fn new(measures: &Measures, vb: VarBuilder) -> Result<Self> {
        let hidden = measures.hidden_size;
        Ok(Self {
            qkv: Linear::load(hidden, 3 * hidden, true, vb.pp("qkv"))?,
            proj: Linear::load(hidden, hidden, true, vb.pp("proj"))?,
            heads: measures.num_heads,
            head_dim: measures.head_dim(),
        })
    }

    /// Attention of `x` (`[patches, hidden]`) within each of the windows that follow one another, of so many patches each, added to `past`.
    fn onto(
        &self,
        x: &Tensor,
        past: &Tensor,
        angles: &Angles,
        windows: &[usize],
    ) -> Result<Tensor> {
        self.proj.onto(&self.attended(x, angles, windows)?, past)
    }

    /// `[patches, hidden]`
    fn attended(&self, x: &Tensor, angles: &Angles, windows: &[usize]) -> Result<Tensor> {
        let (heads, head_dim) = (self.heads, self.head_dim);
        let patches = x.dim(0)?;
        if x.device().is_cpu() {
            let qkv = self.qkv.forward(x)?;
            let hidden = heads * head_dim;
            let part = |i: usize| qkv.narrow(1, i * hidden, hidden);
            let windows = Windows {
                heads,
                lengths: windows,
                turns: Some([&angles.cos, &angles.sin]),
            };
            return attention::attend(&part(0)?, &part(1)?, &part(2)?, windows);
        }
        // [3, heads, patches, head_dim]
        let qkv = self
            .qkv
            .forward(x)?
            .reshape((patches, 3, heads, head_dim))?
            .permute((1, 2, 0, 3))?
            .contiguous()?;
        let q = (angles.rotate(&qkv.get(0)?)? / (head_dim as f64).sqrt())?;
        let k = angles.rotate(&qkv.get(1)?)?;
        let v = qkv.get(2)?;
        let mut attended = Vec::new();
        let mut start = 0;
        // Neighbours of one length are one batch.
        for equal in windows.chunk_by(|a, b| a == b) {
            let count = equal.len() * equal[0];
            let batch = |x: &Tensor| {
                x.narrow(1, start, count)?.contiguous()?.reshape((
                    heads * equal.len(),
                    equal[0],
                    head_dim,
                ))
            };
            let out = attend(&batch(&q)?, &batch(&k)?, &batch(&v)?, LOGITS)?;
            attended.push(out.reshape((heads, count, head_dim))?);
            start += count;
        }
        Tensor::cat(&attended, 1)?.transpose(0, 1)?.flatten_from(1)
    }
}

/// Attention of `q` over `k` and `v`, `[batch, patches, head_dim]` each, with at most so many logits at a time (but whole rows); the
/// softmax is in f32.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, logits: usize) -> Result<Tensor> {
    let (batch, patches, _) = q.dims3()?;
    let rows = (logits / (batch * patches)).clamp(1, patches);
    let k = k.t()?;
    let mut outs = Vec::new();
    for first in (0..patches).step_by(rows) {
        let q = q.narrow(1, first, rows.min(patches - first))?;
        let logits = q.contiguous()?.matmul(&k)?.to_dtype(DType::F32)?;
        outs.push(weighted_sums(&shares(&logits)?, v)?);
    }
    Tensor::cat(&outs, 1)
}

/// What follows the attention of a layer.
#[derive(Debug, Clone)]
pub enum Feed {
    /// `fc2(act(fc1(x)))`
    Plain {
        fc1: Linear,
        fc2: Linear,
        act: Activation,
    },
    /// `down_proj(act(gate_proj(x)) * up_proj(x))`
    Gated {
        gate_proj: Linear,
        up_proj: Linear,
        down_proj: Linear,
        act: Activation,
    },
}

impl Feed {
    /// Two layers of these names.
    pub fn plain(
        measures: &Measures,
        act: Activation,
        names: [&str; 2],
        vb: VarBuilder,
    ) -> Result<Self> {
        let (hidden, inner) = (measures.hidden_size, measures.intermediate_size);
        Ok(Self::Plain {
            fc1: Linear::load(hidden, inner, true, vb.pp(names[0]))?,
            fc2: Linear::load(inner, hidden, true, vb.pp(names[1]))?,
            act,
        })
    }

    pub fn gated(measures: &Measures, act: Activation, vb: VarBuilder) -> Result<Self> {
        let (hidden, inner) = (measures.hidden_size, measures.intermediate_size);
        Ok(Self::Gated {
            gate_proj: Linear::load(hidden, inner, true, vb.pp("gate_proj"))?,
            up_proj: Linear::load(hidden, inner, true, vb.pp("up_proj"))?,
            down_proj: Linear::load(inner, hidden, true, vb.pp("down_proj"))?,
            act,
        })
    }
}

impl Feed {
    /// What comes of `x`, added to `past`.
    fn onto(&self, x: &Tensor, past: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain { fc1, fc2, act } => fc2.onto(&fc1.activated(x, *act)?, past),
            Self::Gated {
                gate_proj,
                up_proj,
                down_proj,
                act,
            } => {
                let gate = gate_proj.activated(x, *act)?;
                down_proj.onto(&(gate * up_proj.forward(x)?)?, past)
            }
        }
    }
}

/// A layer: attention and what follows it, each behind a norm and added to what went in.
#[derive(Debug, Clone)]
pub struct Block {
    norm1: Norm,
    attn: Attention,
    norm2: Norm,
    mlp: Feed,
}

impl Block {
    /// `norm` makes the norms `norm1` and `norm2`; `mlp` is what follows the attention.
    pub fn new(
        measures: &Measures,
        norm: fn(usize, VarBuilder) -> Result<Norm>,
        mlp: Feed,
        vb: VarBuilder,
    ) -> Result<Self> {
        Ok(Self {
            norm1: norm(measures.hidden_size, vb.pp("norm1"))?,
            attn: Attention::new(measures, vb.pp("attn"))?,
            norm2: norm(measures.hidden_size, vb.pp("norm2"))?,
            mlp,
        })
    }

    /// `x` is `[patches, hidden]`; `windows` are the patches of each window, or all of them as one.
    pub fn forward(&self, x: &Tensor, angles: &Angles, windows: &[usize]) -> Result<Tensor> {
        let x = self
            .attn
            .onto(&self.norm1.forward(x)?, x, angles, windows)?;
        self.mlp.onto(&self.norm2.forward(&x)?, &x)
    }
}

/// Joins the patches of a square into one row of the decoder's input.
#[derive(Debug, Clone)]
pub struct Merger {
    norm: Norm,
    /// The norm is over whole squares, not over patches.
    norms_squares: bool,
    fc1: Linear,
    fc2: Linear,
    width: usize,
}

impl Merger {
    /// The layers have these names below `vb`.
    pub fn new(
        measures: &Measures,
        norm: Norm,
        norms_squares: bool,
        names: [&str; 2],
        vb: VarBuilder,
    ) -> Result<Self> {
        let width = measures.merged_width();
        Ok(Self {
            norm,
            norms_squares,
            fc1: Linear::load(width, width, true, vb.pp(names[0]))?,
            fc2: Linear::load(width, measures.out_hidden_size, true, vb.pp(names[1]))?,
            width,
        })
    }
}

impl Module for Merger {
    /// `[patches, hidden]` -> `[tokens, out_hidden]`
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let squares = |x: &Tensor| x.reshape(((), self.width));
        let x = match self.norms_squares {
            true => self.norm.forward(&squares(x)?)?,
            false => squares(&self.norm.forward(x)?)?,
        };
        let inner = self.fc1.activated(&x, Activation::Gelu)?;
        self.fc2.forward(&inner)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn attention_in_strips_of_rows_is_the_same() {
        let random = || Tensor::randn(0f32, 1., (2, 7, 4), &Device::Cpu).unwrap();
        let (q, k, v) = (random(), random(), random());
        let whole = attend(&q, &k, &v, LOGITS).unwrap();
        for logits in [1, 2 * 7 * 3] {
            let strips = attend(&q, &k, &v, logits).unwrap();
            let off = (&strips - &whole).unwrap().abs().unwrap();
            let off = off.max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(off < 1e-6, "{off}");
        }
    }
}
