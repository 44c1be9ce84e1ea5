//! The tower: attention over all patches, learned positions stretched over the grid, mergers for several layers.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::Module;

use super::config::Config;
use crate::model::qwen_vl::{
    Angles, Block, Feed, Grid, Measures, Merger, MergerNorm, PatchEmbed, Tower, EPSILON,
};
use crate::model::vision::norm::Norm;
use crate::model::vision::working::Widths;
use crate::model::vision::TowerOutput;
use crate::model::weights::Weights;

/// The names of a layer's two products, and of a merger's.
const LAYERS: [&str; 2] = ["linear_fc1", "linear_fc2"];

pub struct DeepTower {
    patch_embed: PatchEmbed,
    /// Learned positions, `[side * side, hidden]`.
    pos_embed: Tensor,
    side: usize,
    blocks: Vec<Block>,
    merger: Merger,
    /// Of the layers `deep`.
    deep_mergers: Vec<Merger>,
    deep: Vec<usize>,
    measures: Measures,
}

impl DeepTower {
    pub fn new(cfg: &Config, measures: &Measures, w: &Weights) -> Result<Self> {
        let act = measures.activation().map_err(candle_core::Error::wrap)?;
        let hidden = measures.hidden_size;
        let block = |i: usize| {
            let w = w.pp("blocks").pp(i);
            let mlp = Feed::plain(measures, act, LAYERS, &w.pp("mlp"))?;
            Block::new(measures, Norm::layer, mlp, &w)
        };
        let width = measures.merged_width();
        let norm = |width, w: &Weights| Norm::layer(width, EPSILON, &w.pp("norm"));
        let merger = |norm, w: &Weights| Merger::new(measures, norm, width, LAYERS, w);
        // Of the last layer patches are normalised, of earlier ones whole squares.
        let w_merger = w.pp("merger");
        let last = MergerNorm::Patches(norm(hidden, &w_merger)?);
        let deep_merger = |i: usize| {
            let w = w.pp("deepstack_merger_list").pp(i);
            merger(MergerNorm::Squares(norm(width, &w)?), &w)
        };
        let deep = cfg.deepstack_visual_indexes.clone();
        let deep_mergers = (0..deep.len()).map(deep_merger).collect::<Result<_>>()?;
        Ok(Self {
            patch_embed: PatchEmbed::new(measures, true, &w.pp("patch_embed"))?,
            pos_embed: w
                .pp("pos_embed")
                .get((cfg.num_position_embeddings, hidden), "weight")?,
            side: cfg.table_side(),
            blocks: (0..cfg.depth).map(block).collect::<Result<_>>()?,
            merger: merger(last, &w_merger)?,
            deep_mergers,
            deep,
            measures: measures.clone(),
        })
    }

    /// The learned positions of a grid's patches, `[patches, hidden]`, summed in f32.
    fn positions(&self, grid: Grid) -> Result<Tensor> {
        let table = &self.pos_embed;
        let mut sum = Tensor::zeros((grid.patches(), table.dim(1)?), DType::F32, table.device())?;
        for (index, weights) in Taps::new(grid, self.side).tensors(table.device())? {
            let rows = table.index_select(&index, 0)?.to_dtype(DType::F32)?;
            sum = (sum + rows.broadcast_mul(&weights)?)?;
        }
        sum.to_dtype(table.dtype())
    }
}

impl Tower for DeepTower {
    fn widths(&self) -> Widths {
        let inner = self.measures.intermediate_size;
        self.measures.widths(inner, self.deep.len())
    }

    fn deep(&self) -> usize {
        self.deep.len()
    }

    /// The features are `[patches, hidden]`, and so are those of earlier layers.
    fn forward(&self, patches: &Tensor, grid: Grid) -> Result<TowerOutput> {
        // 1. embed, and say where each patch stands
        let x = self.patch_embed.forward(patches)?;
        let mut x = (x + self.positions(grid)?)?;
        let angles = Angles::new(&self.measures, grid.places(), x.device())?;
        // 2. layers; some are kept
        let mut deep = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, &angles, &[grid.patches()])?;
            if self.deep.contains(&i) {
                deep.push(x.clone());
            }
        }
        Ok(TowerOutput { features: x, deep })
    }

    fn merge(&self, output: &TowerOutput, _: Grid) -> Result<(Tensor, Vec<Tensor>)> {
        let deep = self.deep_mergers.iter().zip(&output.deep);
        Ok((
            self.merger.forward(&output.features)?,
            deep.map(|(merger, x)| merger.forward(x))
                .collect::<Result<_>>()?,
        ))
    }
}

/// Bilinear interpolation in a square table whose corners are the grid's: for each patch the four places around it, and their weights.
struct Taps {
    /// `[4][patches]`
    places: [Vec<u32>; 4],
    /// `[4][patches]`
    weights: [Vec<f32>; 4],
}

impl Taps {
    fn new(grid: Grid, side: usize) -> Self {
        let along = |index: usize, length: usize| {
            let place = (index * (side - 1)) as f64 / (length - 1).max(1) as f64;
            let low = place as usize;
            let high = (low + 1).min(side - 1);
            let share = (place - low as f64) as f32;
            [(low, 1.0 - share), (high, share)]
        };
        let mut taps = Self {
            places: Default::default(),
            weights: Default::default(),
        };
        for (row, column) in grid.places() {
            let (rows, columns) = (along(row, grid.height), along(column, grid.width));
            for tap in 0..4 {
                let ((row, down), (column, across)) = (rows[tap / 2], columns[tap % 2]);
                taps.places[tap].push((row * side + column) as u32);
                taps.weights[tap].push(down * across);
            }
        }
        taps
    }

    /// Places `[patches]` and weights `[patches, 1]` of each tap.
    fn tensors(self, device: &Device) -> Result<Vec<(Tensor, Tensor)>> {
        let taps = self.places.into_iter().zip(self.weights);
        taps.map(|(places, weights)| {
            let count = places.len();
            Ok((
                Tensor::from_vec(places, count, device)?,
                Tensor::from_vec(weights, (count, 1), device)?,
            ))
        })
        .collect()
    }
}
