//! A vision transformer of our own, which serves CLIP's towers and SigLIP's.
//!
//! candle-transformers' siglip hides the features in front of `post_layernorm`, and its clip fixes the epsilon and computes the
//! last layer where the one before is wanted. This one stops at the layer that a family takes: later layers are neither loaded nor
//! computed.
//!
//! - this file: the tower
//! - `config`: its configuration, and what of it can be computed
//! - `parts`: what other towers of tiles are made of, too

mod config;
pub mod parts;

use std::collections::HashMap;

use candle_core::{DType, Result, Tensor};
use candle_nn::Module;

use crate::model::vision::layers::Linear;
use crate::model::vision::norm::{layer_norm, LayerNorm};
use crate::model::vision::working::Widths;
use crate::model::weights::Weights;
use parts::{attended, behind, in_batches, Mlp, PatchEmbedding, BATCH};

pub use config::{activation_of, Config, Kind, Shape, Sizes, CHANNELS};

/// From pixels to the input of the first layer.
#[derive(Debug, Clone)]
struct Embeddings {
    patch_embedding: PatchEmbedding,
    /// `[1, 1, hidden]`
    class_embedding: Option<Tensor>,
    /// `[1, rows, hidden]`
    position_embedding: Tensor,
}

impl Embeddings {
    fn new(shape: &Shape, w: &Weights) -> Result<Self> {
        let is_clip = shape.kind == Kind::Clip;
        let hidden = shape.sizes.hidden;
        let class_embedding = match is_clip {
            true => Some(w.get(hidden, "class_embedding")?.reshape((1, 1, hidden))?),
            false => None,
        };
        let position_embedding = w
            .pp("position_embedding")
            .get((shape.rows(), hidden), "weight")?;
        let w_patch = w.pp("patch_embedding");
        Ok(Self {
            patch_embedding: PatchEmbedding::new(&shape.sizes, !is_clip, &w_patch)?,
            class_embedding,
            position_embedding: position_embedding.unsqueeze(0)?,
        })
    }
}

impl Module for Embeddings {
    /// `[tiles, 3, height, width]` -> `[tiles, rows, hidden]`
    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let patches = self.patch_embedding.forward(pixels)?;
        let rows = match &self.class_embedding {
            Some(class) => behind(class, &patches)?,
            None => patches,
        };
        rows.broadcast_add(&self.position_embedding)
    }
}

#[derive(Debug, Clone)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

impl Attention {
    fn new(sizes: &Sizes, w: &Weights) -> Result<Self> {
        let load = |name| Linear::load(sizes.hidden, sizes.hidden, true, &w.pp(name));
        Ok(Self {
            q_proj: load("q_proj")?,
            k_proj: load("k_proj")?,
            v_proj: load("v_proj")?,
            out_proj: load("out_proj")?,
            heads: sizes.heads,
        })
    }

    /// What comes of `x`, added to `past`.
    fn onto(&self, x: &Tensor, past: &Tensor) -> Result<Tensor> {
        let [q, k, v] =
            [&self.q_proj, &self.k_proj, &self.v_proj].map(|projection| projection.forward(x));
        let attended = attended(&q?, &k?, &v?, self.heads)?;
        self.out_proj.onto(&attended, past)
    }
}

/// A layer, as SigLIP 2 has it too.
#[derive(Debug, Clone)]
pub struct Layer {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl Layer {
    pub fn new(sizes: &Sizes, w: &Weights) -> Result<Self> {
        Ok(Self {
            layer_norm1: norm(sizes, &w.pp("layer_norm1"))?,
            self_attn: Attention::new(sizes, &w.pp("self_attn"))?,
            layer_norm2: norm(sizes, &w.pp("layer_norm2"))?,
            mlp: Mlp::new(sizes, &w.pp("mlp"))?,
        })
    }
}

impl Module for Layer {
    /// `[tiles, rows, hidden]` -> `[tiles, rows, hidden]`
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.self_attn.onto(&self.layer_norm1.forward(x)?, x)?;
        self.mlp.onto(&self.layer_norm2.forward(&x)?, &x)
    }
}

fn norm(sizes: &Sizes, w: &Weights) -> Result<LayerNorm> {
    layer_norm(sizes.hidden, sizes.epsilon, w)
}

/// The tower up to the last layer that is wanted of it.
#[derive(Debug, Clone)]
pub struct Vit {
    embeddings: Embeddings,
    pre_layrnorm: Option<LayerNorm>,
    layers: Vec<Layer>,
    /// After how many layers the features are taken, in the order in which they are joined.
    taken: Vec<usize>,
    /// Rows in front of those that are features: the class token.
    dropped: usize,
    shape: Shape,
}

impl Vit {
    /// `w` stands at the tower (`embeddings`, `pre_layrnorm`, `encoder.layers`). The features are taken after each of `taken` layers;
    /// the class token's are among them if `class_token`, in front.
    pub fn new(shape: &Shape, taken: &[usize], class_token: bool, w: &Weights) -> Result<Self> {
        let is_clip = shape.kind == Kind::Clip;
        let depth = taken.iter().copied().max().unwrap_or(0);
        let w_layers = w.pp("encoder").pp("layers");
        Ok(Self {
            embeddings: Embeddings::new(shape, &w.pp("embeddings"))?,
            pre_layrnorm: match is_clip {
                true => Some(norm(&shape.sizes, &w.pp("pre_layrnorm"))?),
                false => None,
            },
            layers: (0..depth)
                .map(|i| Layer::new(&shape.sizes, &w_layers.pp(i)))
                .collect::<Result<_>>()?,
            taken: taken.to_vec(),
            dropped: usize::from(is_clip && !class_token),
            shape: *shape,
        })
    }

    /// What so many tiles are worked with, their values among it, bytes; `dtype` is the type of the arithmetic.
    pub fn working_bytes(&self, tiles: usize, dtype: DType) -> u64 {
        // What goes into the first layer, and what is taken of others before the last.
        let widths = Widths::of(&self.shape.sizes, 0, self.taken.len().max(1));
        let rows = tiles.min(BATCH) * self.shape.rows();
        self.shape.sizes.tile_bytes(tiles) + widths.bytes(rows, dtype)
    }

    fn batch(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut x = self.embeddings.forward(pixels)?;
        if let Some(norm) = &self.pre_layrnorm {
            x = norm.forward(&x)?;
        }
        let mut states = HashMap::from([(0, x.clone())]);
        for (layer, depth) in self.layers.iter().zip(1..) {
            x = layer.forward(&x)?;
            if self.taken.contains(&depth) {
                states.insert(depth, x.clone());
            }
        }
        let rows = x.dim(1)? - self.dropped;
        let taken = self.taken.iter().filter_map(|depth| states.get(depth));
        let taken = taken
            .map(|x| x.narrow(1, self.dropped, rows))
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&taken, 2)?.contiguous()
    }
}

impl Module for Vit {
    /// `[tiles, 3, height, width]` -> `[tiles, rows, width]`, the width that of the hidden states times the layers taken.
    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        in_batches(pixels, |batch| self.batch(batch))
    }
}
