//! The layers of a tower.

use candle_core::{Result, Tensor};
use candle_nn::Module;

use super::{Angles, Measures};
use crate::model::activation::Activation;
use crate::model::vision::attention::{attend, Windows};
use crate::model::vision::layers::Linear;
use crate::model::vision::norm::Norm;
use crate::model::weights::Weights;

/// What the published towers add to a variance; their configurations do not say it.
pub const EPSILON: f64 = 1e-6;

/// The embedding of patches: a convolution whose kernel is as large as its stride is one product.
#[derive(Debug, Clone)]
pub struct PatchEmbed {
    proj: Linear,
}

impl PatchEmbed {
    /// The tensor `proj.weight` is `[hidden, 3, frames, side, side]`.
    pub fn new(measures: &Measures, bias: bool, w: &Weights) -> Result<Self> {
        let (hidden, side) = (measures.hidden_size, measures.patch_size);
        let w = w.pp("proj");
        let shape = (hidden, 3, measures.temporal_patch_size, side, side);
        let weight = w.narrow(shape, "weight")?.flatten_from(1)?;
        let bias = match bias {
            true => Some(w.get(hidden, "bias")?),
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
    fn new(measures: &Measures, w: &Weights) -> Result<Self> {
        let hidden = measures.hidden_size;
        Ok(Self {
            qkv: Linear::load(hidden, 3 * hidden, true, &w.pp("qkv"))?,
            proj: Linear::load(hidden, hidden, true, &w.pp("proj"))?,
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
        w: &Weights,
    ) -> Result<Self> {
        let (hidden, inner) = (measures.hidden_size, measures.intermediate_size);
        Ok(Self::Plain {
            fc1: Linear::load(hidden, inner, true, &w.pp(names[0]))?,
            fc2: Linear::load(inner, hidden, true, &w.pp(names[1]))?,
            act,
        })
    }

    pub fn gated(measures: &Measures, act: Activation, w: &Weights) -> Result<Self> {
        let (hidden, inner) = (measures.hidden_size, measures.intermediate_size);
        Ok(Self::Gated {
            gate_proj: Linear::load(hidden, inner, true, &w.pp("gate_proj"))?,
            up_proj: Linear::load(hidden, inner, true, &w.pp("up_proj"))?,
            down_proj: Linear::load(inner, hidden, true, &w.pp("down_proj"))?,
            act,
        })
    }

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
                let (gate, up) = (gate_proj.forward(x)?, up_proj.forward(x)?);
                down_proj.onto(&act.gated(&gate, &up)?, past)
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
        norm: fn(usize, f64, &Weights) -> Result<Norm>,
        mlp: Feed,
        w: &Weights,
    ) -> Result<Self> {
        Ok(Self {
            norm1: norm(measures.hidden_size, EPSILON, &w.pp("norm1"))?,
            attn: Attention::new(measures, &w.pp("attn"))?,
            norm2: norm(measures.hidden_size, EPSILON, &w.pp("norm2"))?,
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

/// What a merger's norm is over.
#[derive(Debug, Clone)]
pub enum MergerNorm {
    Patches(Norm),
    Squares(Norm),
}

/// Joins the patches of a square into one row of the decoder's input.
#[derive(Debug, Clone)]
pub struct Merger {
    norm: MergerNorm,
    fc1: Linear,
    fc2: Linear,
    /// Of a square.
    width: usize,
}

impl Merger {
    /// The layers have these names below `w`; there are `inner` numbers between them.
    pub fn new(
        measures: &Measures,
        norm: MergerNorm,
        inner: usize,
        names: [&str; 2],
        w: &Weights,
    ) -> Result<Self> {
        let (width, out) = (measures.merged_width(), measures.out_hidden_size);
        Ok(Self {
            norm,
            fc1: Linear::load(width, inner, true, &w.pp(names[0]))?,
            fc2: Linear::load(inner, out, true, &w.pp(names[1]))?,
            width,
        })
    }
}

impl Module for Merger {
    /// `[patches, hidden]` -> `[tokens, out_hidden]`
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let squares = |x: &Tensor| x.reshape(((), self.width));
        let x = match &self.norm {
            MergerNorm::Patches(norm) => squares(&norm.forward(x)?)?,
            MergerNorm::Squares(norm) => norm.forward(&squares(x)?)?,
        };
        let inner = self.fc1.activated(&x, Activation::Gelu)?;
        self.fc2.forward(&inner)
    }
}
