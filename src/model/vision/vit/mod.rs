//! A vision transformer of our own, which serves CLIP's towers and SigLIP's.
//!
//! candle-transformers' siglip hides the features in front of `post_layernorm`, and its clip fixes the epsilon and computes the
//! last layer where the one before is wanted. This one stops at the layer that a family takes: later layers are neither loaded nor
//! computed. (SmolVLM takes what candle's siglip gives, and stays on it.)
//!
//! - this file: the tower
//! - `config`: its configuration, and what of it can be computed

mod config;

use std::collections::HashMap;

use candle_core::{Result, Tensor};
use candle_nn::{layer_norm, linear, LayerNorm, Linear, Module};

use crate::cache::{shares, weighted_sums};
use crate::model::activation::Activation;
use crate::model::weights::Weights;
use config::CHANNELS;

pub use config::{Config, Kind, Shape};

/// From pixels to the input of the first layer.
#[derive(Debug, Clone)]
struct Embeddings {
    patch_embedding: Linear,
    /// `[1, 1, hidden]`
    class_embedding: Option<Tensor>,
    /// `[1, rows, hidden]`
    position_embedding: Tensor,
    side: usize,
    patch: usize,
}

impl Embeddings {
    fn new(shape: &Shape, w: &Weights) -> Result<Self> {
        let (hidden, patch) = (shape.hidden, shape.patch);
        let is_clip = shape.kind == Kind::Clip;
        let w_patch = w.pp("patch_embedding");
        let weight = w_patch.get((hidden, CHANNELS, patch, patch), "weight")?;
        let bias = match is_clip {
            true => None,
            false => Some(w_patch.get(hidden, "bias")?),
        };
        let class_embedding = match is_clip {
            true => Some(w.get(hidden, "class_embedding")?.reshape((1, 1, hidden))?),
            false => None,
        };
        let position_embedding = w
            .pp("position_embedding")
            .get((shape.rows(), hidden), "weight")?;
        Ok(Self {
            patch_embedding: Linear::new(weight.flatten_from(1)?, bias),
            class_embedding,
            position_embedding: position_embedding.unsqueeze(0)?,
            side: shape.side(),
            patch,
        })
    }
}

impl Module for Embeddings {
    /// `[tiles, 3, height, width]` -> `[tiles, rows, hidden]`
    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let tiles = pixels.dim(0)?;
        let (side, patch) = (self.side, self.patch);
        // 1. a patch's values as one row; what no patch covers at the right and at the bottom is left out
        let patches = pixels
            .narrow(2, 0, side * patch)?
            .narrow(3, 0, side * patch)?
            .contiguous()?
            .reshape(&[tiles, CHANNELS, side, patch, side, patch])?
            .permute([0, 2, 4, 1, 3, 5])?
            .reshape((tiles, side * side, CHANNELS * patch * patch))?;
        // 2. a convolution whose windows do not overlap is a product
        let patches = self.patch_embedding.forward(&patches)?;
        let rows = match &self.class_embedding {
            Some(class) => {
                let hidden = class.dim(2)?;
                Tensor::cat(&[&class.broadcast_as((tiles, 1, hidden))?, &patches], 1)?
            }
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
    fn new(shape: &Shape, w: &Weights) -> Result<Self> {
        let load = |name| linear(shape.hidden, shape.hidden, w.pp(name).var_builder());
        Ok(Self {
            q_proj: load("q_proj")?,
            k_proj: load("k_proj")?,
            v_proj: load("v_proj")?,
            out_proj: load("out_proj")?,
            heads: shape.heads,
        })
    }

    /// `[tiles, rows, hidden]` -> `[tiles, heads, rows, head_dim]`
    fn by_head(&self, x: &Tensor) -> Result<Tensor> {
        let (tiles, rows, hidden) = x.dims3()?;
        x.reshape((tiles, rows, self.heads, hidden / self.heads))?
            .transpose(1, 2)?
            .contiguous()
    }
}

impl Module for Attention {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let q = self.by_head(&self.q_proj.forward(x)?)?;
        let k = self.by_head(&self.k_proj.forward(x)?)?;
        let v = self.by_head(&self.v_proj.forward(x)?)?;
        let scale = 1.0 / (q.dim(3)? as f64).sqrt();
        let weights = shares(&(q * scale)?.matmul(&k.t()?)?)?;
        let attended = weighted_sums(&weights, &v)?;
        let attended = attended.transpose(1, 2)?.flatten_from(2)?;
        self.out_proj.forward(&attended)
    }
}

#[derive(Debug, Clone)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Mlp {
    fn new(shape: &Shape, w: &Weights) -> Result<Self> {
        let (hidden, inner) = (shape.hidden, shape.intermediate);
        Ok(Self {
            fc1: linear(hidden, inner, w.pp("fc1").var_builder())?,
            fc2: linear(inner, hidden, w.pp("fc2").var_builder())?,
            activation: shape.activation,
        })
    }
}

impl Module for Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2
            .forward(&self.activation.forward(&self.fc1.forward(x)?)?)
    }
}

#[derive(Debug, Clone)]
struct Layer {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl Layer {
    fn new(shape: &Shape, w: &Weights) -> Result<Self> {
        Ok(Self {
            layer_norm1: norm(shape, &w.pp("layer_norm1"))?,
            self_attn: Attention::new(shape, &w.pp("self_attn"))?,
            layer_norm2: norm(shape, &w.pp("layer_norm2"))?,
            mlp: Mlp::new(shape, &w.pp("mlp"))?,
        })
    }
}

impl Module for Layer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = (x + self.self_attn.forward(&self.layer_norm1.forward(x)?)?)?;
        let expanded = self.mlp.forward(&self.layer_norm2.forward(&x)?)?;
        x + expanded
    }
}

fn norm(shape: &Shape, w: &Weights) -> Result<LayerNorm> {
    layer_norm(shape.hidden, shape.epsilon, w.var_builder())
}

/// Tiles that go through the layers together: what a GPU needs to be busy, while the attention weights of many tiles would take
/// gigabytes.
const BATCH: usize = 8;

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
                true => Some(norm(shape, &w.pp("pre_layrnorm"))?),
                false => None,
            },
            layers: (0..depth)
                .map(|i| Layer::new(shape, &w_layers.pp(i)))
                .collect::<Result<_>>()?,
            taken: taken.to_vec(),
            dropped: usize::from(is_clip && !class_token),
        })
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
        let tiles = pixels.dim(0)?;
        let batches = (0..tiles)
            .step_by(BATCH)
            .map(|at| self.batch(&pixels.narrow(0, at, BATCH.min(tiles - at))?))
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&batches, 0)
    }
}
