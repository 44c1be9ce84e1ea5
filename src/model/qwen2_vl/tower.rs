//! The tower: attention over all patches.

use candle_core::{Result, Tensor};
use candle_nn::{Module, VarBuilder};

use super::config::Config;
use crate::model::qwen_vl::{Angles, Block, Feed, Grid, Measures, Merger, Norm, PatchEmbed, Tower};
use crate::model::vision::TowerOutput;

pub struct WholeTower {
    patch_embed: PatchEmbed,
    blocks: Vec<Block>,
    merger: Merger,
    measures: Measures,
}

impl WholeTower {
    pub fn new(cfg: &Config, measures: &Measures, vb: VarBuilder) -> Result<Self> {
        let act = measures.activation().map_err(candle_core::Error::wrap)?;
        let block = |i: usize| {
            let vb = vb.pp("blocks").pp(i);
            let mlp = Feed::plain(measures, act, ["fc1", "fc2"], vb.pp("mlp"))?;
            Block::new(measures, Norm::layer, mlp, vb)
        };
        let merger = vb.pp("merger");
        let norm = Norm::layer(measures.hidden_size, merger.pp("ln_q"))?;
        Ok(Self {
            patch_embed: PatchEmbed::new(measures, false, vb.pp("patch_embed"))?,
            blocks: (0..cfg.depth).map(block).collect::<Result<_>>()?,
            merger: Merger::new(measures, norm, false, ["mlp.0", "mlp.2"], merger)?,
            measures: measures.clone(),
        })
    }
}

impl Tower for WholeTower {
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
