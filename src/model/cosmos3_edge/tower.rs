//! The tower: SigLIP 2 for pictures of any size (arXiv 2502.14786), whose learned positions are stretched over the grid, and the merger.

use candle_core::{DType, Result, Tensor};
use candle_nn::{layer_norm, LayerNorm, Module};

use super::config::Shape;
use crate::model::activation::Activation;
use crate::model::qwen_vl::{Grid, Tower};
use crate::model::vision::layers::Linear;
use crate::model::vision::positions::stretched;
use crate::model::vision::vit::{Layer, Sizes, CHANNELS};
use crate::model::vision::TowerOutput;
use crate::model::weights::Weights;

/// What the published merger's norm adds to a variance; the configuration does not say it.
const MERGER_EPS: f64 = 1e-6;

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
        let embedded = (self.patch_embedding.forward(patches)? + positions)?;
        // 2. layers, of which each patch attends to all: [1, patches, hidden]
        let mut x = embedded.unsqueeze(0)?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        Ok(TowerOutput {
            features: self.post_layernorm.forward(&x.squeeze(0)?)?,
            deep: Vec::new(),
        })
    }

    fn merge(&self, output: &TowerOutput, _: Grid) -> Result<(Tensor, Vec<Tensor>)> {
        Ok((self.merger.forward(&output.features)?, Vec::new()))
    }
}
