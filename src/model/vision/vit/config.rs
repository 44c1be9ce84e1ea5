//! `vision_config` of CLIP's and SigLIP's towers.

use serde::Deserialize;
use serde_json::Value;

use crate::model::activation::Activation;
use crate::model::decoder::Unsupported;
use crate::model::fields::{optional_side, side, without_nulls};
use crate::model::json;

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
    #[serde(deserialize_with = "side")]
    pub image_size: usize,
    #[serde(deserialize_with = "optional_side")]
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
            num_channels: CHANNELS,
            image_size: 224,
            patch_size: None,
            hidden_act: None,
            layer_norm_eps: None,
        }
    }
}

/// What is said of every tower of tiles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    /// Side of a tile, pixels.
    pub image: usize,
    pub patch: usize,
    pub activation: Activation,
    pub epsilon: f64,
}

/// A tower's kind and its sizes, checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    pub kind: Kind,
    pub sizes: Sizes,
}

impl Config {
    /// Checks that the tower can be computed; `kind` is its model_type if it does not say so.
    pub fn from_json(json: Value, kind: &str) -> Result<Shape, Unsupported> {
        let config = json::of_value::<Self>(&without_nulls(json, &[]));
        let shape = config.and_then(|config| config.shape(kind));
        shape.map_err(|unsupported| unsupported.within("vision_config"))
    }

    fn shape(&self, kind: &str) -> Result<Shape, Unsupported> {
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
        let sizes = Sizes {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            image: self.image_size,
            patch: self.patch_size.unwrap_or(patch),
            activation: activation_of("hidden_act", named)?,
            epsilon: self.layer_norm_eps.unwrap_or(epsilon),
        };
        sizes.check(self.num_channels)?;
        Ok(Shape { kind, sizes })
    }
}

/// The activation that `field` names.
pub fn activation_of(field: &str, name: &str) -> Result<Activation, Unsupported> {
    let expected = "silu, quick_gelu or a form of gelu";
    Activation::parse(name).ok_or_else(|| Unsupported::new(field, name, expected))
}

/// Of a picture.
pub const CHANNELS: usize = 3;

/// The largest tile that is worked on, pixels per side; published towers take up to 980.
const MAX_IMAGE: usize = 4096;

impl Sizes {
    /// Checks that a tower of these sizes can be computed, and that a picture has the `channels` that it takes.
    pub fn check(&self, channels: usize) -> Result<(), Unsupported> {
        Unsupported::zeros(&[
            ("hidden_size", self.hidden),
            ("intermediate_size", self.intermediate),
            ("num_attention_heads", self.heads),
            ("patch_size", self.patch),
        ])?;
        Unsupported::too_large(&[
            ("hidden_size", self.hidden),
            ("intermediate_size", self.intermediate),
        ])?;
        Unsupported::negative(&[("layer_norm_eps", self.epsilon)])?;
        if channels != CHANNELS {
            return Err(Unsupported::new("num_channels", channels, CHANNELS));
        }
        if !(self.patch..=MAX_IMAGE).contains(&self.image) {
            let expected = format!("patch_size ({}) to {MAX_IMAGE}", self.patch);
            return Err(Unsupported::new("image_size", self.image, expected));
        }
        if !self.hidden.is_multiple_of(self.heads) {
            let expected = format!("a divisor of hidden_size ({})", self.hidden);
            return Err(Unsupported::new(
                "num_attention_heads",
                self.heads,
                expected,
            ));
        }
        Ok(())
    }

    /// The values of so many tiles, bytes.
    pub fn tile_bytes(&self, tiles: usize) -> u64 {
        (tiles * CHANNELS * self.image.pow(2) * size_of::<f32>()) as u64
    }

    /// Patches per side of a tile.
    pub fn side(&self) -> usize {
        self.image / self.patch
    }
}

impl Shape {
    /// Class token, and patches.
    pub fn rows(&self) -> usize {
        usize::from(self.kind == Kind::Clip) + self.sizes.side().pow(2)
    }
}
