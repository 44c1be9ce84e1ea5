//! The layers of a tower.

use candle_core::{Result, Tensor};
use candle_nn::{rms_norm, Module, RmsNorm, VarBuilder};

use super::{Angles, Measures};
use crate::model::activation::Activation;
use crate::model::vision::attention::{attend, Windows};
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
}

impl Attention {
    fn new(measures: &Measures, vb: VarBuilder) -> Result<Self> {
        let hidden = measures.hidden_size;
        Ok(Self {
            qkv: Linear::load(hidden, 3 * hidden, true, vb.pp("qkv"))?,
            proj: Linear::load(hidden, hidden, true, vb.pp("proj"))?,
            heads: measures.num_heads,
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
        let qkv = self.qkv.forward(x)?;
        let hidden = qkv.dim(1)? / 3;
        let part = |i: usize| qkv.narrow(1, i * hidden, hidden);
        let windows = Windows {
            heads: self.heads,
            lengths: windows,
            turns: Some([&angles.cos, &angles.sin]),
        };
        attend(&part(0)?, &part(1)?, &part(2)?, windows)
    }
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
