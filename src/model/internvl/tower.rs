//! The tower: InternViT, a vision transformer whose branches are scaled by learned numbers.

use candle_core::{DType, Result, Tensor};
use candle_nn::{rms_norm, Module, RmsNorm};

use super::config::{NormType, Shape};
use crate::model::vision::layers::Linear;
use crate::model::vision::norm::Norm;
use crate::model::vision::shuffle::pixel_shuffle;
use crate::model::vision::vit::parts::{attended, behind, in_batches, Mlp, PatchEmbedding, BATCH};
use crate::model::vision::vit::Sizes;
use crate::model::vision::working::Widths;
use crate::model::weights::Weights;

/// What the norms of queries and keys add to a variance; configurations do not say it (`InternVLVisionRMSNorm` of transformers 5.23).
const QK_EPSILON: f64 = 1e-6;

/// From pixels to the input of the first layer.
#[derive(Debug, Clone)]
struct Embeddings {
    patch_embeddings: PatchEmbedding,
    /// `[1, 1, hidden]`
    cls_token: Tensor,
    /// Of the class token and of the patches, `[1, 1 + side^2, hidden]`.
    position_embeddings: Tensor,
}

impl Embeddings {
    fn new(sizes: &Sizes, w: &Weights) -> Result<Self> {
        let (hidden, side) = (sizes.hidden, sizes.side());
        let w_patch = w.pp("patch_embeddings").pp("projection");
        Ok(Self {
            patch_embeddings: PatchEmbedding::new(sizes, true, &w_patch)?,
            cls_token: w.get((1, 1, hidden), "cls_token")?,
            position_embeddings: w.get((1, 1 + side * side, hidden), "position_embeddings")?,
        })
    }
}

impl Module for Embeddings {
    /// `[tiles, 3, height, width]` -> `[tiles, 1 + side^2, hidden]`
    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let patches = self.patch_embeddings.forward(pixels)?;
        behind(&self.cls_token, &patches)?.broadcast_add(&self.position_embeddings)
    }
}

fn norm(shape: &Shape, w: &Weights) -> Result<Norm> {
    let Sizes {
        hidden, epsilon, ..
    } = shape.tower;
    match shape.norms {
        NormType::LayerNorm => Norm::layer(hidden, epsilon, w),
        NormType::RmsNorm => Norm::rms(hidden, epsilon, w),
    }
}

/// A projection to queries or keys, and the norm of what comes of it, if there is one.
#[derive(Debug, Clone)]
struct Projection {
    linear: Linear,
    norm: Option<RmsNorm>,
}

impl Projection {
    fn new(shape: &Shape, [name, norm]: [&str; 2], w: &Weights) -> Result<Self> {
        let hidden = shape.tower.hidden;
        Ok(Self {
            linear: Linear::load(hidden, hidden, shape.qkv_bias, &w.pp(name))?,
            norm: match shape.qk_norm {
                true => Some(rms_norm(hidden, QK_EPSILON, w.pp(norm).var_builder())?),
                false => None,
            },
        })
    }
}

impl Module for Projection {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let projected = self.linear.forward(x)?;
        match &self.norm {
            Some(norm) => norm.forward(&projected),
            None => Ok(projected),
        }
    }
}

#[derive(Debug, Clone)]
struct Attention {
    q_proj: Projection,
    k_proj: Projection,
    v_proj: Linear,
    projection_layer: Linear,
    heads: usize,
}

impl Attention {
    fn new(shape: &Shape, w: &Weights) -> Result<Self> {
        let hidden = shape.tower.hidden;
        Ok(Self {
            q_proj: Projection::new(shape, ["q_proj", "q_norm"], w)?,
            k_proj: Projection::new(shape, ["k_proj", "k_norm"], w)?,
            v_proj: Linear::load(hidden, hidden, shape.qkv_bias, &w.pp("v_proj"))?,
            projection_layer: Linear::load(hidden, hidden, true, &w.pp("projection_layer"))?,
            heads: shape.tower.heads,
        })
    }
}

impl Module for Attention {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (q, k) = (self.q_proj.forward(x)?, self.k_proj.forward(x)?);
        let v = self.v_proj.forward(x)?;
        self.projection_layer
            .forward(&attended(&q, &k, &v, self.heads)?)
    }
}

/// A layer; what attention and MLP add is scaled, each number of it by one of its own.
#[derive(Debug, Clone)]
struct Layer {
    layernorm_before: Norm,
    attention: Attention,
    /// `[hidden]`
    lambda_1: Tensor,
    layernorm_after: Norm,
    mlp: Mlp,
    /// `[hidden]`
    lambda_2: Tensor,
}

impl Layer {
    fn new(shape: &Shape, w: &Weights) -> Result<Self> {
        let hidden = shape.tower.hidden;
        Ok(Self {
            layernorm_before: norm(shape, &w.pp("layernorm_before"))?,
            attention: Attention::new(shape, &w.pp("attention"))?,
            lambda_1: w.get(hidden, "lambda_1")?,
            layernorm_after: norm(shape, &w.pp("layernorm_after"))?,
            mlp: Mlp::new(&shape.tower, &w.pp("mlp"))?,
            lambda_2: w.get(hidden, "lambda_2")?,
        })
    }
}

impl Module for Layer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let attended = self.attention.forward(&self.layernorm_before.forward(x)?)?;
        let x = (x + attended.broadcast_mul(&self.lambda_1)?)?;
        let expanded = self.mlp.forward(&self.layernorm_after.forward(&x)?)?;
        x + expanded.broadcast_mul(&self.lambda_2)?
    }
}

/// The tower, with its patches joined into squares.
#[derive(Debug, Clone)]
pub struct InternVit {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    scale: usize,
    sizes: Sizes,
}

impl InternVit {
    /// `w` stands at the tower (`embeddings`, `encoder.layer`).
    pub fn new(shape: &Shape, w: &Weights) -> Result<Self> {
        let w_layers = w.pp("encoder").pp("layer");
        Ok(Self {
            embeddings: Embeddings::new(&shape.tower, &w.pp("embeddings"))?,
            layers: (0..shape.tower.layers)
                .map(|i| Layer::new(shape, &w_layers.pp(i)))
                .collect::<Result<_>>()?,
            scale: shape.scale,
            sizes: shape.tower,
        })
    }

    /// What so many tiles are worked with, their values among it, bytes; `dtype` is the type of the arithmetic.
    pub fn working_bytes(&self, tiles: usize, dtype: DType) -> u64 {
        let widths = Widths {
            unsummed: 1,
            ..Widths::of(&self.sizes, 0, 0)
        };
        let rows = tiles.min(BATCH) * (1 + self.sizes.side().pow(2));
        self.sizes.tile_bytes(tiles) + widths.bytes(rows, dtype)
    }

    fn batch(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut x = self.embeddings.forward(pixels)?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        let patches = x.narrow(1, 1, x.dim(1)? - 1)?.contiguous()?;
        pixel_shuffle(&patches, self.scale)
    }
}

impl Module for InternVit {
    /// `[tiles, 3, height, width]` -> `[tiles, tokens, hidden * scale^2]`
    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        in_batches(pixels, |batch| self.batch(batch))
    }
}
