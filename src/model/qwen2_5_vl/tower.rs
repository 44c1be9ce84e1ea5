//! The tower: patches in the order of windows, so that those of a window lie side by side.

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

pub struct WindowTower {
    patch_embed: PatchEmbed,
    blocks: Vec<Block>,
    merger: Merger,
    measures: Measures,
    /// Side of a window, squares of patches.
    window: usize,
    /// Layers whose attention is over all patches.
    whole: Vec<usize>,
}

impl WindowTower {
    pub fn new(cfg: &Config, measures: &Measures, w: &Weights) -> Result<Self> {
        let act = measures.activation().map_err(candle_core::Error::wrap)?;
        let block = |i: usize| {
            let w = w.pp("blocks").pp(i);
            let mlp = Feed::gated(measures, act, &w.pp("mlp"))?;
            Block::new(measures, Norm::rms, mlp, &w)
        };
        let w_merger = w.pp("merger");
        let norm = Norm::rms(measures.hidden_size, EPSILON, &w_merger.pp("ln_q"))?;
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
            window: cfg.window_side(),
            whole: cfg.fullatt_block_indexes.clone(),
        })
    }
}

impl Tower for WindowTower {
    fn widths(&self) -> Widths {
        // Gate, the other half and their product; patches before they come into the order of windows.
        self.measures.widths(3 * self.measures.intermediate_size, 1)
    }

    /// The features are `[patches, hidden]`, in the order of windows.
    fn forward(&self, patches: &Tensor, grid: Grid) -> Result<TowerOutput> {
        let windows = grid.windows(self.window);
        let squares = windows.squares.as_slice();
        // 1. embed, square by square: [squares, patches of a square, hidden]
        let x = self.patch_embed.forward(patches)?;
        let (count, hidden) = x.dims2()?;
        let x = x.reshape((squares.len(), self.measures.merged(), hidden))?;
        // 2. into the order of windows: [patches, hidden]
        let order = Tensor::from_slice(squares, squares.len(), x.device())?;
        let mut x = x.index_select(&order, 0)?.flatten_to(1)?;
        let places = grid.places().collect::<Vec<_>>();
        let merged = self.measures.merged();
        let ordered = squares.iter().flat_map(|&square| {
            let first = square as usize * merged;
            places[first..first + merged].iter().copied()
        });
        let angles = Angles::new(&self.measures, ordered, x.device())?;
        // 3. layers, within windows or over all
        for (i, block) in self.blocks.iter().enumerate() {
            x = match self.whole.contains(&i) {
                true => block.forward(&x, &angles, &[count])?,
                false => block.forward(&x, &angles, &windows.lengths)?,
            };
        }
        Ok(TowerOutput {
            features: x,
            deep: Vec::new(),
        })
    }

    fn merge(&self, output: &TowerOutput, grid: Grid) -> Result<(Tensor, Vec<Tensor>)> {
        let rows = self.merger.forward(&output.features)?;
        let order = grid.windows(self.window).inverse();
        let order = Tensor::from_slice(&order, order.len(), rows.device())?;
        Ok((rows.index_select(&order, 0)?, Vec::new()))
    }
}
