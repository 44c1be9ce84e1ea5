//! The tower: SigLIP 2 for pictures of any size (arXiv 2502.14786), whose learned positions are stretched over the grid, and the merger.

use candle_core::{DType, Result, Tensor};
use candle_nn::Module;

use super::config::Shape;
use crate::model::qwen_vl::{Grid, Merger, MergerNorm, Tower, EPSILON};
use crate::model::vision::layers::Linear;
use crate::model::vision::norm::{layer_norm, LayerNorm, Norm};
use crate::model::vision::positions::stretched;
use crate::model::vision::vit::{Layer, Sizes, CHANNELS};
use crate::model::vision::TowerOutput;
use crate::model::weights::Weights;

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
        let norm = Norm::layer(hidden, EPSILON, &w_merger.pp("norm"))?;
        Ok(Self {
            patch_embedding: patch_embedding(sizes, &w_embeddings.pp("patch_embedding"))?,
            position_embedding: positions
                .to_dtype(DType::F32)?
                .reshape((side, side, hidden))?,
            layers: (0..sizes.layers)
                .map(|i| Layer::new(sizes, &w_layers.pp(i)))
                .collect::<Result<_>>()?,
            post_layernorm: layer_norm(hidden, sizes.epsilon, &w.pp("post_layernorm"))?,
            merger: Merger::new(
                &shape.measures,
                MergerNorm::Patches(norm),
                shape.inner,
                ["linear_fc1", "linear_fc2"],
                w_merger,
            )?,
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
        .narrow((hidden, area * CHANNELS), "weight")?
        .reshape((hidden, area, CHANNELS))?
        .transpose(1, 2)?
        .flatten_from(1)?;
    Linear::packed(weight, Some(w.get(hidden, "bias")?))
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
