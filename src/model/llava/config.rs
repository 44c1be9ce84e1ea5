//! `config.json` of the LLaVA families, with what they leave out.

use serde::Deserialize;
use serde_json::{json, Value};

use crate::model::activation::Activation;
use crate::model::decoder::Unsupported;
use crate::model::vision::vit::{self, Kind};

/// Mirrors `config.json`; what is not given stands in the [`Defaults`] of the family's class.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    image_token_index: Option<u32>,
    /// The same in another spelling of transformers.
    image_token_id: Option<u32>,
    video_token_index: Option<u32>,
    video_token_id: Option<u32>,
    projector_hidden_act: Option<String>,
    multimodal_projector_bias: Option<bool>,
    vision_feature_layer: Option<FeatureLayers>,
    vision_feature_select_strategy: Option<String>,
    /// Height and width of the pictures that are cut into tiles, pixels.
    pub image_grid_pinpoints: Option<Vec<[usize; 2]>>,
    pub vision_aspect_ratio: Option<String>,
    tie_word_embeddings: Option<bool>,
    text_config: Option<Value>,
    vision_config: Option<Value>,
}

/// The layers whose outputs are the features, counted from the end where they are negative; the input of the first is 0.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum FeatureLayers {
    One(i64),
    Several(Vec<i64>),
}

/// What the class of a family says where a file does not.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    pub image_token: u32,
    /// Of families that know videos.
    pub video_token: Option<u32>,
    /// `model_type` of the text part.
    pub text_type: &'static str,
    /// `model_type` of the tower.
    pub vision_type: &'static str,
    /// The tower of a file that says nothing of it.
    pub vision: fn() -> Value,
    pub feature_layer: i64,
    pub select_strategy: &'static str,
}

/// The tower of LLaVA-1.5 and LLaVA-NeXT: CLIP ViT-L/14 at 336 pixels.
pub fn clip_large() -> Value {
    json!({
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 336, "patch_size": 14,
    })
}

/// What tower and connector need to know, checked.
#[derive(Debug, Clone)]
pub struct VisionConfig {
    pub tower: vit::Shape,
    /// After how many layers of the tower the features are taken.
    pub layers: Vec<usize>,
    /// The class token's features are among them.
    pub class_token: bool,
    pub activation: Activation,
    pub projector_bias: bool,
}

impl VisionConfig {
    /// Rows of features per tile.
    pub fn rows(&self) -> usize {
        usize::from(self.class_token) + self.tower.sizes.side().pow(2)
    }
}

impl Config {
    pub fn image_token(&self, defaults: &Defaults) -> u32 {
        self.image_token_index
            .or(self.image_token_id)
            .unwrap_or(defaults.image_token)
    }

    pub fn video_token(&self, defaults: &Defaults) -> Option<u32> {
        let given = self.video_token_index.or(self.video_token_id);
        defaults.video_token.map(|token| given.unwrap_or(token))
    }

    /// The text part, all of whose values may be those of its class.
    pub fn text(&self) -> Value {
        self.text_config.clone().unwrap_or_else(|| json!({}))
    }

    /// Whether the output layer is the input embedding, as the top level has it.
    pub fn tied(&self) -> Option<bool> {
        self.tie_word_embeddings
    }

    /// Checks what is said of tower and connector.
    pub fn vision(&self, defaults: &Defaults) -> Result<VisionConfig, Unsupported> {
        let tower = self.vision_config.clone().unwrap_or_else(defaults.vision);
        let tower = vit::Config::from_json(tower, defaults.vision_type)?;
        let activation = self.projector_hidden_act.as_deref().unwrap_or("gelu");
        Ok(VisionConfig {
            layers: self.feature_layers(&tower, defaults)?,
            class_token: self.class_token(&tower, defaults)?,
            activation: vit::activation_of("projector_hidden_act", activation)?,
            projector_bias: self.multimodal_projector_bias.unwrap_or(true),
            tower,
        })
    }

    fn feature_layers(
        &self,
        tower: &vit::Shape,
        defaults: &Defaults,
    ) -> Result<Vec<usize>, Unsupported> {
        let listed = match &self.vision_feature_layer {
            None => vec![defaults.feature_layer],
            Some(FeatureLayers::One(layer)) => vec![*layer],
            Some(FeatureLayers::Several(layers)) => layers.clone(),
        };
        let outputs = tower.sizes.layers.saturating_add(1);
        let from_start = |&layer: &i64| {
            let distance = usize::try_from(layer.unsigned_abs()).ok()?;
            match layer < 0 {
                true => outputs.checked_sub(distance),
                false => Some(distance).filter(|&layer| layer < outputs),
            }
        };
        let layers = listed.iter().map(from_start).collect::<Option<Vec<_>>>();
        layers
            .filter(|layers| (1..=MAX_JOINED).contains(&layers.len()))
            .ok_or_else(|| {
                let expected = format!(
                    "-{outputs} to {}, or a list of at most {MAX_JOINED} such numbers",
                    tower.sizes.layers
                );
                Unsupported::new("vision_feature_layer", format!("{listed:?}"), expected)
            })
    }

    /// Whether the class token's features are taken with those of the patches.
    fn class_token(&self, tower: &vit::Shape, defaults: &Defaults) -> Result<bool, Unsupported> {
        let strategy = self.vision_feature_select_strategy.as_deref();
        let strategy = strategy.unwrap_or(defaults.select_strategy);
        match (strategy, tower.kind) {
            ("default", Kind::Clip) => Ok(false),
            ("full", kind) => Ok(kind == Kind::Clip),
            (_, kind) => {
                let expected = match kind {
                    Kind::Clip => "default or full",
                    Kind::Siglip => "full, as the tower has no class token to leave out",
                };
                let field = "vision_feature_select_strategy";
                Err(Unsupported::new(field, strategy, expected))
            }
        }
    }
}

/// The most layers whose features are joined; published checkpoints join up to five.
const MAX_JOINED: usize = 16;
