//! The tower: attention over all patches.

use candle_core::{Result, Tensor};
use candle_nn::Module;

use super::config::Config;
use crate::model::qwen_vl::{
    Angles, Block, Feed, Grid, Measures, Merger, MergerNorm, PatchEmbed, Tower, EPSILON,
};
use crate::model::vision::norm::Norm;
use crate::model::vision::working::Widths;
use crate::model::vision::TowerOutput;
use crate::model::weights::Weights;

pub struct WholeTower {
    patch_embed: PatchEmbed,
    blocks: Vec<Block>,
    merger: Merger,
    measures: Measures,
}

impl WholeTower {
    pub fn new(cfg: &Config, measures: &Measures, w: &Weights) -> Result<Self> {
        let act = measures.activation().map_err(candle_core::Error::wrap)?;
        let block = |i: usize| {
            let w = w.pp("blocks").pp(i);
            let mlp = Feed::plain(measures, act, ["fc1", "fc2"], &w.pp("mlp"))?;
            Block::new(measures, Norm::layer, mlp, &w)
        };
        let w_merger = w.pp("merger");
        let norm = Norm::layer(measures.hidden_size, EPSILON, &w_merger.pp("ln_q"))?;
        Ok(Self {
            patch_embed: PatchEmbed::new(measures, false, &w.pp("patch_embed"))?,
            blocks: (0..cfg.depth).map(block).collect::<Result<_>>()?,
            merger: Merger::new(
                measures,
                MergerNorm::Patches(norm),
                measures.merged_width(),
                ["mlp.0", "mlp.2"],
                &w_merger,
            )?,
            measures: measures.clone(),
        })
    }
}

impl Tower for WholeTower {
    fn widths(&self) -> Widths {
        self.measures.widths(self.measures.intermediate_size, 0)
    }

    /// The features are `[patches, hidden]`.
    fn forward(&self, patches: &Tensor, grid: Grid) -> Result<TowerOutput> {
        let mut x = self.patch_embed.forward(patches)?;
        let angles = Angles::new(&self.measures, grid.places(), x.device())?;
        for block in &self.blocks {
            x = block.forward(&x, &angles, &[grid.patches()])?;
        }
        Ok(TowerOutput {
            features: x,
            deep: Vec::new(),
        })
    }

    fn merge(&self, output: &TowerOutput, _: Grid) -> Result<(Tensor, Vec<Tensor>)> {
        Ok((self.merger.forward(&output.features)?, Vec::new()))
    }
}
