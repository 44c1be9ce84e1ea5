//! The tower: SigLIP 2 for pictures of any size (arXiv 2502.14786), whose learned positions are stretched over the grid, and the merger.

use candle_core::{DType, Result, Tensor};
use candle_nn::{layer_norm, LayerNorm, Module};

use super::config::Shape;
use crate::model::activation::Activation;
use crate::model::qwen_vl::{attend, Grid, Tower, LOGITS};
use crate::model::vision::attention::{self, Windows};
use crate::model::vision::layers::Linear;
use crate::model::vision::positions::stretched;
use crate::model::vision::vit::parts::Mlp;
use crate::model::vision::vit::{Sizes, CHANNELS};
use crate::model::vision::TowerOutput;
use crate::model::weights::Weights;

/// What the published merger's norm adds to a variance; the configuration does not say it.
const MERGER_EPS: f64 = 1e-6;

#[derive(Debug, Clone)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

impl Attention {
    fn new(sizes: &Sizes, w: &Weights) -> Result<Self> {
        let load = |name| Linear::load(sizes.hidden, sizes.hidden, true, w.pp(name).var_builder());
        Ok(Self {
            q_proj: load("q_proj")?,
            k_proj: load("k_proj")?,
            v_proj: load("v_proj")?,
            out_proj: load("out_proj")?,
            heads: sizes.heads,
        })
    }
}

impl Attention {
    /// What comes of `x` (`[patches, hidden]`), of which each patch attends to all, added to `past`.
    fn onto(&self, x: &Tensor, past: &Tensor) -> Result<Tensor> {
        let [q, k, v] =
            [&self.q_proj, &self.k_proj, &self.v_proj].map(|projection| projection.forward(x));
        self.out_proj.onto(&self.attended(&q?, &k?, &v?)?, past)
    }

    /// `[patches, hidden]`
    fn attended(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (patches, hidden) = q.dims2()?;
        if q.device().is_cpu() {
            let windows = Windows {
                heads: self.heads,
                lengths: &[patches],
                turns: None,
            };
            return attention::attend(q, k, v, windows);
        }
        let head_dim = hidden / self.heads;
        let by_head = |x: &Tensor| {
            x.reshape((patches, self.heads, head_dim))?
                .transpose(0, 1)?
                .contiguous()
        };
        let q = by_head(&(q / (head_dim as f64).sqrt())?)?;
        let attended = attend(&q, &by_head(k)?, &by_head(v)?, LOGITS)?;
        attended.transpose(0, 1)?.flatten_from(1)
    }
}

#[derive(Debug, Clone)]
struct Layer {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl Layer {
    fn new(sizes: &Sizes, w: &Weights) -> Result<Self> {
        let norm = |name| layer_norm(sizes.hidden, sizes.epsilon, w.pp(name).var_builder());
        Ok(Self {
            layer_norm1: norm("layer_norm1")?,
            self_attn: Attention::new(sizes, &w.pp("self_attn"))?,
            layer_norm2: norm("layer_norm2")?,
            mlp: Mlp::new(sizes, &w.pp("mlp"))?,
        })
    }
}

impl Module for Layer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.self_attn.onto(&self.layer_norm1.forward(x)?, x)?;
        self.mlp.onto(&self.layer_norm2.forward(&x)?, &x)
    }
}

/// Joins the patches of a square into one row of the decoder's input.
#[derive(Debug, Clone)]
struct Merger {
    norm: LayerNorm,
    linear_fc1: Linear,
    linear_fc2: Linear,
    /// Of a square.
    width: usize,
}

impl Merger {
    fn new(shape: &Shape, w: &Weights) -> Result<Self> {
        let (inner, width) = (shape.inner, shape.measures.merged_width());
        let load = |from, to, name| Linear::load(from, to, true, w.pp(name).var_builder());
        let norm = w.pp("norm").var_builder();
        Ok(Self {
            norm: layer_norm(shape.sizes.hidden, MERGER_EPS, norm)?,
            linear_fc1: load(width, inner, "linear_fc1")?,
            linear_fc2: load(inner, shape.measures.out_hidden_size, "linear_fc2")?,
            width,
        })
    }
}

impl Module for Merger {
    /// `[patches, hidden]` -> `[tokens, out_hidden]`
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let squares = self.norm.forward(x)?.reshape(((), self.width))?;
        let inner = Activation::Gelu.forward(&self.linear_fc1.forward(&squares)?)?;
        self.linear_fc2.forward(&inner)
    }
}

/// Tower and merger.
#[derive(Debug, Clone)]
pub struct EdgeTower {
    patch_embedding: Linear,
    /// Learned positions, `[side, side, hidden]`, f32.
    position_embedding: Tensor,
    layers: Vec<Layer>,
    post_layernorm: LayerNorm,
    merger: Merger,
}

impl EdgeTower {
    /// The weights stand at the tower and at the merger.
    pub fn new(shape: &Shape, [w, w_merger]: &[Weights; 2]) -> Result<Self> {
        let (sizes, hidden) = (&shape.sizes, shape.sizes.hidden);
        let w_embeddings = w.pp("embeddings");
        let side = sizes.side();
        let positions = w_embeddings.pp("position_embedding");
        let positions = positions.get((side * side, hidden), "weight")?;
        let w_layers = w.pp("encoder").pp("layers");
        let norm = w.pp("post_layernorm").var_builder();
        Ok(Self {
            patch_embedding: patch_embedding(sizes, &w_embeddings.pp("patch_embedding"))?,
            position_embedding: positions
                .to_dtype(DType::F32)?
                .reshape((side, side, hidden))?,
            layers: (0..sizes.layers)
                .map(|i| Layer::new(sizes, &w_layers.pp(i)))
                .collect::<Result<_>>()?,
            post_layernorm: layer_norm(hidden, sizes.epsilon, norm)?,
            merger: Merger::new(shape, w_merger)?,
        })
    }

    /// The learned positions of a grid's patches, `[patches, hidden]`, f32, in the processor's order.
    fn positions(&self, grid: Grid) -> Result<Tensor> {
        let table = &self.position_embedding;
        let places = grid
            .places()
            .map(|(row, column)| (row * grid.width + column) as u32);
        let places = Tensor::from_vec(places.collect(), grid.patches(), table.device())?;
        stretched(table, [grid.height, grid.width])?.index_select(&places, 0)
    }
}

/// The embedding of patches whose values come colour by colour; those of the published tensor come pixel by pixel.
fn patch_embedding(sizes: &Sizes, w: &Weights) -> Result<Linear> {
    let (hidden, area) = (sizes.hidden, sizes.patch * sizes.patch);
    let weight = w
        .get((hidden, area * CHANNELS), "weight")?
        .reshape((hidden, area, CHANNELS))?
        .transpose(1, 2)?
        .flatten_from(1)?;
    Ok(Linear::new(weight, Some(w.get(hidden, "bias")?)))
}

impl Tower for EdgeTower {
    /// The features are `[patches, hidden]`.
    fn forward(&self, patches: &Tensor, grid: Grid) -> Result<TowerOutput> {
        // 1. embed, and say where each patch stands
        let positions = self.positions(grid)?.to_dtype(patches.dtype())?;
        let mut x = (self.patch_embedding.forward(patches)? + positions)?;
        // 2. layers
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        Ok(TowerOutput {
            features: self.post_layernorm.forward(&x)?,
            deep: Vec::new(),
        })
    }

    fn merge(&self, output: &TowerOutput, _: Grid) -> Result<(Tensor, Vec<Tensor>)> {
        Ok((self.merger.forward(&output.features)?, Vec::new()))
    }
}
