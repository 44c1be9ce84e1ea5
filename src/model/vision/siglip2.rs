//! The tower SigLIP 2 for pictures of any size ("NaFlex", arXiv 2502.14786), whose table of positions is stretched to each grid of patches.

use candle_core::{DType, Result, Tensor};
use candle_nn::Module;

use super::layers::Linear;
use super::norm::{layer_norm, LayerNorm};
use super::positions::stretched;
use super::vit::parts::in_batches;
use super::vit::{Layer, Sizes, CHANNELS};
use super::working::Widths;
use crate::model::weights::Weights;

#[derive(Debug, Clone)]
pub struct Siglip2 {
    patch_embedding: Linear,
    /// `[side, side, hidden]`, f32.
    position_embedding: Tensor,
    layers: Vec<Layer>,
    post_layernorm: LayerNorm,
    sizes: Sizes,
}

impl Siglip2 {
    /// `w` stands at the tower (`embeddings`, `encoder.layers`, `post_layernorm`).
    pub fn new(sizes: &Sizes, w: &Weights) -> Result<Self> {
        let values = CHANNELS * sizes.patch * sizes.patch;
        let w_patch = w.pp("embeddings").pp("patch_embedding");
        let embedding = Linear::load(values, sizes.hidden, true, &w_patch)?;
        Self::with_embedding(embedding, sizes, w)
    }

    /// With an embedding of patches that is not as the weights have it.
    pub fn with_embedding(patch_embedding: Linear, sizes: &Sizes, w: &Weights) -> Result<Self> {
        let (hidden, side) = (sizes.hidden, sizes.side());
        let w_layers = w.pp("encoder").pp("layers");
        let positions = w
            .pp("embeddings")
            .pp("position_embedding")
            .get((side * side, hidden), "weight")?;
        Ok(Self {
            patch_embedding,
            position_embedding: positions
                .to_dtype(DType::F32)?
                .reshape((side, side, hidden))?,
            layers: (0..sizes.layers)
                .map(|i| Layer::new(sizes, &w_layers.pp(i)))
                .collect::<Result<_>>()?,
            post_layernorm: layer_norm(hidden, sizes.epsilon, &w.pp("post_layernorm"))?,
            sizes: *sizes,
        })
    }

    /// What goes through the layers; `values`: how often the values of a picture are there.
    pub fn widths(&self, values: usize) -> Widths {
        let patch = CHANNELS * self.sizes.patch.pow(2);
        // Positions, and patches in front of them.
        Widths::of(&self.sizes, values * patch, 2)
    }

    /// The learned positions of the patches of `[rows, columns]`, row by row, `[rows * columns, hidden]`, f32.
    pub fn positions(&self, grid: [usize; 2]) -> Result<Tensor> {
        stretched(&self.position_embedding, grid)
    }

    /// `patches` (`[tiles, patches, values]`) at `positions` (`[patches, hidden]`) -> `[tiles, patches, hidden]`; a tile sees nothing of the
    /// others.
    pub fn forward(&self, patches: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let positions = positions.to_dtype(patches.dtype())?.unsqueeze(0)?;
        in_batches(patches, |batch| {
            let embedded = self.patch_embedding.forward(batch)?;
            let mut x = embedded.broadcast_add(&positions)?;
            for layer in &self.layers {
                x = layer.forward(&x)?;
            }
            self.post_layernorm.forward(&x)
        })
    }
}
