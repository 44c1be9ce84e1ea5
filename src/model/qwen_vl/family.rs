//! A family: its configuration, and where its parts stand in the tree of tensors.

use candle_core::Result;
use serde::de::DeserializeOwned;
use serde::Deserialize;
use serde_json::{json, Value};

use super::vision::{QwenVision, Tower};
use super::{Measures, Processing, VideoSizes, AROUND_IMAGE, IMAGE_PAD};
use crate::cache::RopeAxes;
use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::{self, Unsupported};
use crate::model::family::{text_config, FamilyConfig, OtherPart, VideoAxis, CONFIG};
use crate::model::fields::without_nulls;
use crate::model::json;
use crate::model::vision::Vision;
use crate::model::weights::Weights;
use crate::model::ModelError;

/// What all checkpoints of a family have in common.
pub struct Kind {
    /// What the decoder's part of the configuration is where it does not say so.
    pub text_type: &'static str,
    /// Where decoder and tower stand.
    pub text_path: &'static str,
    pub visual_path: &'static str,
    /// The axes of positions take turns frequency by frequency.
    pub interleaved: bool,
    /// What the limits of a video's pixels count.
    pub video_sizes: VideoSizes,
}

/// A family's `vision_config`.
pub trait VisionConfig: DeserializeOwned + Default + Send + Sync + 'static {
    /// The tower's measures; fails for what they do not hold and cannot be computed.
    fn measures(&self) -> std::result::Result<Measures, Unsupported>;

    fn tower(&self, measures: &Measures, w: &Weights) -> Result<Box<dyn Tower>>;

    /// Where the frames of a video stand, if they are one span of the prompt.
    fn video_axis(&self) -> Option<VideoAxis> {
        None
    }
}

/// Mirrors `config.json`.
#[derive(Deserialize)]
struct Config<V> {
    #[serde(default = "published_image_pad")]
    image_token_id: u32,
    tie_word_embeddings: Option<bool>,
    text_config: Value,
    #[serde(bound(deserialize = "V: DeserializeOwned"))]
    vision_config: V,
}

/// The id of `<|image_pad|>` in the published vocabularies.
fn published_image_pad() -> u32 {
    151_655
}

/// A checkpoint's configuration, read and checked.
pub struct QwenVl<V> {
    kind: &'static Kind,
    other_parts: &'static [OtherPart],
    text: decoder::Config,
    image_token_id: u32,
    vision: V,
    measures: Measures,
}

impl<V: VisionConfig> QwenVl<V> {
    /// Reads and checks `config.json`, in the nested form or in the older flat one, which has the decoder's fields at the top level.
    /// `other_parts` are those that the files may have beside the model.
    pub fn open(
        checkpoint: &Checkpoint,
        kind: &'static Kind,
        other_parts: &'static [OtherPart],
    ) -> std::result::Result<Box<dyn FamilyConfig>, ModelError> {
        let file = || checkpoint.path(CONFIG);
        let mut json: Value = checkpoint.json(CONFIG)?;
        if json["text_config"].is_null() {
            let mut text = json.clone();
            if let Some(fields) = text.as_object_mut() {
                fields.remove("model_type");
                fields.remove("vision_config");
            }
            json["text_config"] = text;
        }
        json = without_nulls(json, &[]);
        json["vision_config"] = match json["vision_config"].take() {
            Value::Null => json!({}),
            given => without_nulls(given, &[]),
        };
        let config: Config<V> =
            json::of_value(&json).map_err(|unsupported| unsupported.of(file()))?;
        let tied = config.tie_word_embeddings;
        let text = text_config(checkpoint, config.text_config, kind.text_type, tied)?;
        kind.check_axes(&text).map_err(|error| error.of(file()))?;
        let measures = config.vision_config.measures().and_then(|measures| {
            measures.check(text.hidden_size())?;
            Ok(measures)
        });
        Ok(Box::new(Self {
            measures: measures.map_err(|error| error.within("vision_config").of(file()))?,
            kind,
            other_parts,
            text,
            image_token_id: config.image_token_id,
            vision: config.vision_config,
        }))
    }
}

impl Kind {
    /// Checks that the decoder's positions have the axes of this family.
    fn check_axes(&self, text: &decoder::Config) -> std::result::Result<(), Unsupported> {
        let (found, expected) = match (text.cache_shape()?.rope.axes, self.interleaved) {
            (RopeAxes::Sections(_), false) | (RopeAxes::Interleaved(_), true) => return Ok(()),
            (RopeAxes::One, _) => ("no sections", "mrope_section: three numbers"),
            (RopeAxes::Sections(_), true) => ("not interleaved", "mrope_interleaved: true"),
            (RopeAxes::Interleaved(_), false) => ("interleaved", "mrope_interleaved: false"),
        };
        Err(Unsupported::new("rope_scaling", found, expected))
    }
}

impl<V: VisionConfig> FamilyConfig for QwenVl<V> {
    fn text(&self) -> &decoder::Config {
        &self.text
    }

    fn text_path(&self) -> &str {
        self.kind.text_path
    }

    fn head_path(&self) -> &str {
        "lm_head"
    }

    fn image_token(&self) -> (u32, &str) {
        (self.image_token_id, IMAGE_PAD)
    }

    fn other_parts(&self) -> &'static [OtherPart] {
        self.other_parts
    }

    fn video_axis(&self) -> Option<VideoAxis> {
        self.vision.video_axis()
    }

    fn markup_tokens(&self) -> &[&str] {
        &AROUND_IMAGE
    }

    fn vision(
        &self,
        checkpoint: &Checkpoint,
        weights: &Weights,
    ) -> std::result::Result<Box<dyn Vision>, ModelError> {
        let at = (weights.dtype(), weights.device());
        let vision = QwenVision::new(
            checkpoint,
            (&self.measures, Processing::qwen(self.kind.video_sizes)),
            at,
            || {
                self.vision
                    .tower(&self.measures, &weights.pp(self.kind.visual_path))
            },
        )?;
        Ok(Box::new(vision))
    }
}
