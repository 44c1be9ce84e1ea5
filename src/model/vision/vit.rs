//! A vision transformer of our own, which serves CLIP's towers and SigLIP's.
//!
//! candle-transformers' siglip hides the features in front of `post_layernorm`, and its clip fixes the epsilon and computes the
//! last layer where the one before is wanted. This one stops at the layer that a family takes: later layers are neither loaded nor
//! computed. (SmolVLM takes what candle's siglip gives, and stays on it.)

use std::collections::HashMap;

use candle_core::{Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_nn::{layer_norm, linear, LayerNorm, Linear, Module};
use serde::Deserialize;
use serde_json::Value;

use crate::model::activation::Activation;
use crate::model::decoder::Unsupported;
use crate::model::weights::Weights;

/// Which of the towers it is: they differ in what stands in front of the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A class token in front of the patches, a norm in front of the layers, no bias of the patch embedding.
    Clip,
    Siglip,
}

/// What `model_type` says.
const KINDS: [(&str, Kind); 2] = [
    ("clip_vision_model", Kind::Clip),
    ("siglip_vision_model", Kind::Siglip),
];

/// Mirrors `vision_config`; missing fields have the values that transformers' `CLIPVisionConfig` and `SiglipVisionConfig` share, or
/// are asked of [`Kind`].
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    pub model_type: Option<String>,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_channels: usize,
    pub image_size: usize,
    pub patch_size: Option<usize>,
    pub hidden_act: Option<String>,
    pub layer_norm_eps: Option<f64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model_type: None,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: None,
            hidden_act: None,
            layer_norm_eps: None,
        }
    }
}

/// A tower's sizes, checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    pub kind: Kind,
    pub hidden: usize,
    intermediate: usize,
    pub layers: usize,
    heads: usize,
    /// Side of a tile, pixels.
    pub image: usize,
    patch: usize,
    activation: Activation,
    epsilon: f64,
}

impl Config {
    /// Checks that the tower can be computed; `kind` is its model_type if it does not say so.
    pub fn from_json(json: Value, kind: &str) -> std::result::Result<Shape, Unsupported> {
        let config: Self = serde_json::from_value(json)
            .map_err(|e| Unsupported::new("vision_config", e, "a vision tower's configuration"))?;
        config.shape(kind).map_err(|e| e.within("vision_config"))
    }

    fn shape(&self, kind: &str) -> std::result::Result<Shape, Unsupported> {
        let model_type = self.model_type.as_deref().unwrap_or(kind);
        let known = KINDS.iter().find(|(name, _)| *name == model_type);
        let Some(&(_, kind)) = known else {
            let expected = KINDS.map(|(name, _)| name).join(" or ");
            return Err(Unsupported::new("model_type", model_type, expected));
        };
        let (patch, activation, epsilon) = match kind {
            Kind::Clip => (32, "quick_gelu", 1e-5),
            Kind::Siglip => (16, "gelu_pytorch_tanh", 1e-6),
        };
        let named = self.hidden_act.as_deref().unwrap_or(activation);
        let shape = Shape {
            kind,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            image: self.image_size,
            patch: self.patch_size.unwrap_or(patch),
            activation: Activation::parse(named).ok_or_else(|| {
                Unsupported::new("hidden_act", named, "silu, quick_gelu or a form of gelu")
            })?,
            epsilon: self.layer_norm_eps.unwrap_or(epsilon),
        };
        Unsupported::zeros(&[
            ("hidden_size", shape.hidden),
            ("intermediate_size", shape.intermediate),
            ("num_attention_heads", shape.heads),
            ("patch_size", shape.patch),
        ])?;
        Unsupported::too_large(&[
            ("hidden_size", shape.hidden),
            ("intermediate_size", shape.intermediate),
        ])?;
        if self.num_channels != CHANNELS {
            return Err(Unsupported::new(
                "num_channels",
                self.num_channels,
                CHANNELS,
            ));
        }
        if !(shape.patch..=MAX_IMAGE).contains(&shape.image) {
            let expected = format!("patch_size ({}) to {MAX_IMAGE}", shape.patch);
            return Err(Unsupported::new("image_size", shape.image, expected));
        }
        if !shape.hidden.is_multiple_of(shape.heads) {
            let expected = format!("a divisor of hidden_size ({})", shape.hidden);
            return Err(Unsupported::new(
                "num_attention_heads",
                shape.heads,
                expected,
            ));
        }
        Ok(shape)
    }
}

const CHANNELS: usize = 3;

/// The largest tile that is worked on, pixels per side; published towers take up to 980.
const MAX_IMAGE: usize = 4096;

impl Shape {
    /// Patches per side of a tile.
    pub fn side(&self) -> usize {
        self.image / self.patch
    }

    /// Class token, and patches.
    fn rows(&self) -> usize {
        usize::from(self.kind == Kind::Clip) + self.side().pow(2)
    }
}

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
        let weights = softmax_last_dim(&(q * scale)?.matmul(&k.t()?)?)?;
        let attended = weights.matmul(&v)?.transpose(1, 2)?.flatten_from(2)?;
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
