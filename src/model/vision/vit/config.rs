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
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    /// Side of a tile, pixels.
    pub image: usize,
    pub patch: usize,
    pub activation: Activation,
    pub epsilon: f64,
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
        Unsupported::negative(&[("layer_norm_eps", shape.epsilon)])?;
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

/// Of a picture.
pub const CHANNELS: usize = 3;

/// The largest tile that is worked on, pixels per side; published towers take up to 980.
pub const MAX_IMAGE: usize = 4096;

impl Shape {
    /// Patches per side of a tile.
    pub fn side(&self) -> usize {
        self.image / self.patch
    }

    /// Class token, and patches.
    pub fn rows(&self) -> usize {
        usize::from(self.kind == Kind::Clip) + self.side().pow(2)
    }
}
