//! What the towers of tiles have in common.

use candle_core::{Result, Tensor};
use candle_nn::Module;

use super::config::{Sizes, CHANNELS};
use crate::model::activation::Activation;
use crate::model::vision::attention::{attend, Windows};
use crate::model::vision::layers::Linear;
use crate::model::weights::Weights;

/// Patches of a tile as rows: a convolution whose windows do not overlap, which is a product.
#[derive(Debug, Clone)]
pub struct PatchEmbedding {
    projection: Linear,
    side: usize,
    patch: usize,
}

impl PatchEmbedding {
    /// `w` holds `weight` (`[hidden, 3, patch, patch]`), and `bias` if there is one.
    pub fn new(sizes: &Sizes, has_bias: bool, w: &Weights) -> Result<Self> {
        let (hidden, patch) = (sizes.hidden, sizes.patch);
        let weight = w.narrow((hidden, CHANNELS, patch, patch), "weight")?;
        let bias = match has_bias {
            true => Some(w.get(hidden, "bias")?),
            false => None,
        };
        Ok(Self {
            projection: Linear::packed(weight.flatten_from(1)?, bias)?,
            side: sizes.side(),
            patch,
        })
    }
}

impl Module for PatchEmbedding {
    /// `[tiles, 3, height, width]` -> `[tiles, side^2, hidden]`; what no patch covers at the right and at the bottom is left out.
    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let tiles = pixels.dim(0)?;
        let (side, patch) = (self.side, self.patch);
        let patches = pixels
            .narrow(2, 0, side * patch)?
            .narrow(3, 0, side * patch)?
            .contiguous()?
            .reshape(&[tiles, CHANNELS, side, patch, side, patch])?
            .permute([0, 2, 4, 1, 3, 5])?
            .reshape((tiles, side * side, CHANNELS * patch * patch))?;
        self.projection.forward(&patches)
    }
}

/// `rows` (`[tiles, rows, hidden]`) behind one row more of each tile, `first` (`[1, 1, hidden]`).
pub fn behind(first: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let (tiles, _, hidden) = rows.dims3()?;
    Tensor::cat(&[&first.broadcast_as((tiles, 1, hidden))?, rows], 1)
}

/// Attention of all rows of a tile to all, by head; queries, keys and values are `[tiles, rows, hidden]`, and so is what comes of them.
pub fn attended(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let (tiles, rows, hidden) = q.dims3()?;
    let flat = |x: &Tensor| x.flatten_to(1);
    let windows = Windows {
        heads,
        lengths: &vec![rows; tiles],
        turns: None,
    };
    attend(&flat(q)?, &flat(k)?, &flat(v)?, windows)?.reshape((tiles, rows, hidden))
}

/// `fc2(activation(fc1(x)))`
#[derive(Debug, Clone)]
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Mlp {
    pub fn new(sizes: &Sizes, w: &Weights) -> Result<Self> {
        let (hidden, inner) = (sizes.hidden, sizes.intermediate);
        Ok(Self {
            fc1: Linear::load(hidden, inner, true, &w.pp("fc1"))?,
            fc2: Linear::load(inner, hidden, true, &w.pp("fc2"))?,
            activation: sizes.activation,
        })
    }

    /// What comes of `x`, added to `past`.
    pub fn onto(&self, x: &Tensor, past: &Tensor) -> Result<Tensor> {
        self.fc2.onto(&self.inner(x)?, past)
    }

    fn inner(&self, x: &Tensor) -> Result<Tensor> {
        self.fc1.activated(x, self.activation)
    }
}

impl Module for Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2.forward(&self.inner(x)?)
    }
}

/// Tiles that go through the layers together: what a GPU needs to be busy; memory grows with each of them.
pub const BATCH: usize = 8;

/// What `tower` makes of `pixels` (`[tiles, 3, height, width]`), a few tiles at a time.
pub fn in_batches(pixels: &Tensor, tower: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let tiles = pixels.dim(0)?;
    let batches = (0..tiles)
        .step_by(BATCH)
        .map(|at| tower(&pixels.narrow(0, at, BATCH.min(tiles - at))?))
        .collect::<Result<Vec<_>>>()?;
    Tensor::cat(&batches, 0)
}
