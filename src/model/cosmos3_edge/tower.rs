//! The tower, SigLIP 2, whose patches come square by square, and the merger of Qwen-VL.

use candle_core::{Result, Tensor};
use candle_nn::Module;

use super::config::Shape;
use crate::model::qwen_vl::{Grid, Merger, MergerNorm, Tower, EPSILON};
use crate::model::vision::layers::Linear;
use crate::model::vision::norm::Norm;
use crate::model::vision::siglip2::Siglip2;
use crate::model::vision::vit::{Sizes, CHANNELS};
use crate::model::vision::working::Widths;
use crate::model::vision::TowerOutput;
use crate::model::weights::Weights;

/// Tower and merger.
#[derive(Debug, Clone)]
pub struct EdgeTower {
    tower: Siglip2,
    merger: Merger,
}

impl EdgeTower {
    /// The weights stand at the tower and at the merger.
    pub fn new(shape: &Shape, [w, w_merger]: &[Weights; 2]) -> Result<Self> {
        let sizes = &shape.sizes;
        let w_patch = w.pp("embeddings").pp("patch_embedding");
        let norm = Norm::layer(sizes.hidden, EPSILON, &w_merger.pp("norm"))?;
        Ok(Self {
            tower: Siglip2::with_embedding(patch_embedding(sizes, &w_patch)?, sizes, w)?,
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
        let positions = self.tower.positions([grid.height, grid.width])?;
        let places = grid
            .places()
            .map(|(row, column)| (row * grid.width + column) as u32);
        let places = Tensor::from_vec(places.collect(), grid.patches(), positions.device())?;
        positions.index_select(&places, 0)
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
    fn widths(&self) -> Widths {
        self.tower.widths(1)
    }

    /// The features are `[patches, hidden]`.
    fn forward(&self, patches: &Tensor, grid: Grid) -> Result<TowerOutput> {
        let positions = self.positions(grid)?;
        let features = self.tower.forward(&patches.unsqueeze(0)?, &positions)?;
        Ok(TowerOutput {
            features: features.squeeze(0)?,
            deep: Vec::new(),
        })
    }

    fn merge(&self, output: &TowerOutput, _: Grid) -> Result<(Tensor, Vec<Tensor>)> {
        Ok((self.merger.forward(&output.features)?, Vec::new()))
    }
}
