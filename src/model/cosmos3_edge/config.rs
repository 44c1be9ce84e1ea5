//! `config.json` of Cosmos 3 Edge.

use serde::Deserialize;
use serde_json::Value;

use crate::model::decoder::Unsupported;
use crate::model::fields::{side, without_nulls};
use crate::model::json;
use crate::model::qwen_vl::{AxialRope, Measures};
use crate::model::vision::vit::{activation_of, Sizes};

/// Mirrors `config.json`; missing fields have the values of transformers' `Cosmos3EdgeConfig`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    #[serde(default = "published_image_pad")]
    pub image_token_id: u32,
    pub tie_word_embeddings: Option<bool>,
    pub text_config: Value,
    #[serde(default)]
    vision_config: VisionConfig,
    #[serde(default = "published_inner_width")]
    projector_hidden_size: usize,
    #[serde(default)]
    projector_config: ProjectorConfig,
}

/// The id of `<|image_pad|>` in the published vocabulary.
fn published_image_pad() -> u32 {
    19
}

fn published_inner_width() -> usize {
    11520
}

/// Mirrors `vision_config`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct VisionConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    #[serde(deserialize_with = "side")]
    patch_size: usize,
    /// Places of the table of learned positions, which is a square.
    num_patches: usize,
    spatial_merge_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1152,
            intermediate_size: 4304,
            num_hidden_layers: 27,
            num_attention_heads: 16,
            num_channels: 3,
            patch_size: 16,
            num_patches: 256,
            spatial_merge_size: 2,
            hidden_act: "gelu_pytorch_tanh".to_string(),
            layer_norm_eps: 1e-6,
        }
    }
}

/// Mirrors `projector_config`, which published files have beside `projector_hidden_size`; transformers reads that alone.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ProjectorConfig {
    input_hidden_size: Option<usize>,
    merger_intermediate_size: Option<usize>,
    out_hidden_size: Option<usize>,
    spatial_merge_size: Option<usize>,
    use_postshuffle_norm: Option<bool>,
}

/// What tower and merger are made of, checked.
#[derive(Debug, Clone)]
pub struct Shape {
    pub measures: Measures,
    /// Of the tower; the side of a tile is that of the table of positions.
    pub sizes: Sizes,
    /// Width between the merger's two products.
    pub inner: usize,
}

impl Config {
    pub fn from_json(json: Value) -> Result<Self, Unsupported> {
        let mut json = without_nulls(json, &[]);
        for part in ["vision_config", "projector_config"] {
            if json[part].is_object() {
                json[part] = without_nulls(json[part].take(), &[]);
            }
        }
        json::of_value(&json)
    }

    /// Checks that tower and merger can be computed; `width` is that of the decoder.
    pub fn shape(&self, width: usize) -> Result<Shape, Unsupported> {
        let parts = self.vision_config.parts(width);
        let (sizes, measures) = parts.map_err(|unsupported| unsupported.within("vision_config"))?;
        let inner = self.inner(width)?;
        Ok(Shape {
            measures,
            sizes,
            inner,
        })
    }

    /// Checks what is said of the merger twice.
    fn inner(&self, width: usize) -> Result<usize, Unsupported> {
        let Self {
            vision_config: tower,
            projector_config: merger,
            projector_hidden_size: inner,
            ..
        } = self;
        let sizes = [("projector_hidden_size", *inner)];
        Unsupported::zeros(&sizes)?;
        Unsupported::too_large(&sizes)?;
        for (field, given, expected, why) in [
            (
                "input_hidden_size",
                merger.input_hidden_size,
                tower.hidden_size,
                "the tower's hidden_size",
            ),
            (
                "merger_intermediate_size",
                merger.merger_intermediate_size,
                *inner,
                "projector_hidden_size",
            ),
            (
                "out_hidden_size",
                merger.out_hidden_size,
                width,
                "the decoder's hidden_size",
            ),
            (
                "spatial_merge_size",
                merger.spatial_merge_size,
                tower.spatial_merge_size,
                "as in vision_config",
            ),
        ] {
            if let Some(other) = given.filter(|&given| given != expected) {
                let expected = format!("{expected}, {why}");
                return Err(Unsupported::new(field, other, expected).within("projector_config"));
            }
        }
        match merger.use_postshuffle_norm {
            Some(true) => {
                Err(Unsupported::new("use_postshuffle_norm", true, false)
                    .within("projector_config"))
            }
            _ => Ok(*inner),
        }
    }
}

impl VisionConfig {
    fn parts(&self, width: usize) -> Result<(Sizes, Measures), Unsupported> {
        let places = self.num_patches;
        Unsupported::too_large(&[("num_patches", places)])?;
        let side = places.isqrt();
        if places == 0 || side * side != places {
            let expected = "the square of a number from 1 on";
            return Err(Unsupported::new("num_patches", places, expected));
        }
        let measures = Measures {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_heads: self.num_attention_heads,
            hidden_act: self.hidden_act.clone(),
            channels: [Some(self.num_channels), None],
            out_hidden_size: width,
            patch_size: self.patch_size,
            temporal_patch_size: 1,
            spatial_merge_size: self.spatial_merge_size,
            theta: AxialRope::default().theta()?,
        };
        measures.check(width)?;
        let sizes = Sizes {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            image: side * self.patch_size,
            patch: self.patch_size,
            activation: activation_of("hidden_act", &self.hidden_act)?,
            epsilon: self.layer_norm_eps,
        };
        sizes.check(self.num_channels)?;
        Ok((sizes, measures))
    }
}
