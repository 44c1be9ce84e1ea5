//! The tower: SigLIP 2 for pictures of any size ("NaFlex", arXiv 2502.14786), whose table of positions is stretched to each grid of patches.

use candle_core::{DType, Result, Tensor};
use candle_nn::Module;

use crate::model::vision::layers::Linear;
use crate::model::vision::norm::{layer_norm, LayerNorm};
use crate::model::vision::positions::stretched;
use crate::model::vision::vit::parts::in_batches;
use crate::model::vision::vit::{Layer, Sizes, CHANNELS};
use crate::model::weights::Weights;

#[derive(Debug, Clone)]
pub struct Siglip2 {
    patch_embedding: Linear,
    /// `[side, side, hidden]`, f32.
    position_embedding: Tensor,
    layers: Vec<Layer>,
    post_layernorm: LayerNorm,
}

impl Siglip2 {
    /// `w` stands at the tower (`embeddings`, `encoder.layers`, `post_layernorm`).
    pub fn new(sizes: &Sizes, w: &Weights) -> Result<Self> {
        let (hidden, side) = (sizes.hidden, sizes.side());
        let (w_embeddings, w_layers) = (w.pp("embeddings"), w.pp("encoder").pp("layers"));
        let values = CHANNELS * sizes.patch * sizes.patch;
        let positions = w_embeddings
            .pp("position_embedding")
            .get((side * side, hidden), "weight")?;
        Ok(Self {
            patch_embedding: Linear::load(
                values,
                hidden,
                true,
                &w_embeddings.pp("patch_embedding"),
            )?,
            position_embedding: positions
                .to_dtype(DType::F32)?
                .reshape((side, side, hidden))?,
            layers: (0..sizes.layers)
                .map(|i| Layer::new(sizes, &w_layers.pp(i)))
                .collect::<Result<_>>()?,
            post_layernorm: layer_norm(hidden, sizes.epsilon, &w.pp("post_layernorm"))?,
        })
    }

    /// `patches` (`[tiles, rows * columns, values]`) -> `[tiles, rows * columns, hidden]`; a tile sees nothing of the others.
    pub fn forward(&self, patches: &Tensor, [rows, columns]: [usize; 2]) -> Result<Tensor> {
        let positions = stretched(&self.position_embedding, [rows, columns])?;
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
