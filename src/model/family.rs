//! The families of checkpoints: what each says of its decoder and brings for pictures, in one table.
//!
//! A new family is a folder that implements [`FamilyConfig`] and [`Vision`], and a row of [`FAMILIES`]; docs/checkpoints.md goes
//! through it step by step.

use serde::Deserialize;
use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::cosmos3;
use super::cosmos3_edge;
use super::decoder;
use super::internvl;
use super::lfm2_vl;
use super::smolvlm;
use super::vision::Vision;
use super::weights::{Names, Weights};
use super::ModelError;
use super::{llava, llava_next, llava_onevision};
use super::{qwen2_5_vl, qwen2_vl, qwen3_5, qwen3_vl};

pub const CONFIG: &str = "config.json";

/// A multimodal family's `config.json`, read and checked.
pub trait FamilyConfig: Send + Sync {
    fn text(&self) -> &decoder::Config;

    /// Where the decoder stands in the tree of tensors.
    fn text_path(&self) -> &str;

    /// Where the output layer stands, if it is not tied.
    fn head_path(&self) -> &str;

    /// The token that stands for image features in a prompt: its id and its text.
    fn image_token(&self) -> (u32, &str);

    /// How many ids the tokenizer may give: those of the decoder, and that of the image token where it is the one behind them.
    fn vocabulary(&self) -> usize {
        let size = self.text().vocab_size();
        size + usize::from(self.image_token().0 as usize == size)
    }

    /// A control token of which nothing is ever fed, so that the decoder need not have an embedding of it.
    fn unfed_token(&self) -> Option<&str> {
        None
    }

    /// The token that stands for a video's features in prompts that the published processor wrote, if it is another.
    fn video_token(&self) -> Option<u32> {
        None
    }

    /// What the files may hold beside the model, and is left alone.
    fn other_parts(&self) -> &'static [OtherPart] {
        &[]
    }

    /// Where the frames of a video stand on the axis of time, if they share one picture's rows, columns and markup.
    fn video_axis(&self) -> Option<VideoAxis> {
        None
    }

    /// Other control tokens that a picture's markup needs.
    fn markup_tokens(&self) -> &[&str] {
        &[]
    }

    /// The image processor, the tower and the connector.
    fn vision(
        &self,
        checkpoint: &Checkpoint,
        weights: &Weights,
    ) -> Result<Box<dyn Vision>, ModelError>;
}

/// A part of a checkpoint that has nothing to do with answers, by its tensors.
#[derive(Debug, Clone, Copy)]
pub struct OtherPart {
    pub what: &'static str,
    /// Parts of their names, with the dots or underscores around them.
    pub names: &'static [&'static str],
}

impl OtherPart {
    /// Whether the tensor `name` belongs to it.
    pub fn holds(&self, name: &str) -> bool {
        let dotted = format!(".{name}");
        self.names.iter().any(|part| dotted.contains(part))
    }
}

/// Where the parts of one video, a frame or a group of frames each, stand on the axis of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum VideoAxis {
    /// One position behind another.
    Parts,
    /// By their times: so many positions for a second.
    Seconds(f64),
}

/// A family of multimodal checkpoints.
pub struct Family {
    pub name: &'static str,
    /// What `model_type` says in their `config.json`.
    model_types: &'static [&'static str],
    /// Spellings of tensor names.
    pub names: Names,
    pub open: fn(&Checkpoint) -> Result<Box<dyn FamilyConfig>, ModelError>,
}

pub const FAMILIES: [Family; 12] = [
    Family {
        name: "SmolVLM",
        model_types: &["smolvlm", "idefics3"],
        names: Names(&[]),
        open: smolvlm::open,
    },
    Family {
        name: "LLaVA-1.5",
        model_types: &["llava"],
        names: llava::NAMES,
        open: llava::open,
    },
    Family {
        name: "LLaVA-NeXT",
        model_types: &["llava_next"],
        names: llava::NAMES,
        open: llava_next::open,
    },
    Family {
        name: "LLaVA-OneVision",
        model_types: &["llava_onevision"],
        names: llava::NAMES,
        open: llava_onevision::open,
    },
    Family {
        name: "InternVL",
        model_types: &["internvl"],
        names: internvl::NAMES,
        open: internvl::open,
    },
    Family {
        name: "LFM2-VL",
        model_types: &["lfm2_vl"],
        names: lfm2_vl::NAMES,
        open: lfm2_vl::open,
    },
    Family {
        name: "Qwen2-VL",
        model_types: &["qwen2_vl"],
        names: qwen2_vl::NAMES,
        open: qwen2_vl::open,
    },
    Family {
        name: "Qwen2.5-VL",
        model_types: &["qwen2_5_vl"],
        names: qwen2_vl::NAMES,
        open: qwen2_5_vl::open,
    },
    Family {
        name: "Qwen3-VL",
        model_types: &["qwen3_vl"],
        names: Names(&[]),
        open: qwen3_vl::open,
    },
    Family {
        name: "Qwen3.5",
        model_types: &["qwen3_5"],
        names: Names(&[]),
        open: qwen3_5::open,
    },
    Family {
        name: "Cosmos 3",
        model_types: &["cosmos3_omni"],
        names: cosmos3::NAMES,
        open: cosmos3::open,
    },
    Family {
        name: "Cosmos 3 Edge",
        model_types: &["cosmos3_edge"],
        names: cosmos3_edge::NAMES,
        open: cosmos3_edge::open,
    },
];

/// What every `config.json` says.
#[derive(Deserialize)]
struct Kind {
    model_type: String,
}

/// What `model_type` says.
pub fn model_type(checkpoint: &Checkpoint) -> Result<String, ModelError> {
    Ok(checkpoint.json::<Kind>(CONFIG)?.model_type)
}

impl Family {
    /// The multimodal family of `model_type`, if it is one.
    pub fn of(model_type: &str) -> Option<&'static Self> {
        FAMILIES
            .iter()
            .find(|family| family.model_types.contains(&model_type))
    }

    /// The family of a checkpoint that must be multimodal.
    pub fn find(checkpoint: &Checkpoint) -> Result<&'static Self, ModelError> {
        checkpoint.check_vision()?;
        let found = model_type(checkpoint)?;
        Self::of(&found).ok_or_else(|| unknown(checkpoint, &found, &[]))
    }
}

/// Layouts that are read in another form only: their `model_type`, and what to take.
const OTHER_FORMS: [(&str, &str); 2] = [
    (
        "internvl_chat",
        "internvl, the same model as converted for transformers: its repository has the same name and -hf (InternVL3) or -HF (InternVL3.5) \
         behind it, like OpenGVLab/InternVL3-1B-hf and OpenGVLab/InternVL3_5-1B-HF",
    ),
    (
        "lfm2-vl",
        "lfm2_vl, which newer revisions of the same repository say: download it again",
    ),
];

/// A `model_type` that is no multimodal family's and none of `others`.
fn unknown(checkpoint: &Checkpoint, found: &str, others: &[&str]) -> ModelError {
    let families = FAMILIES.iter().flat_map(|family| family.model_types);
    let known = families.chain(others).copied().collect::<Vec<_>>();
    let other_form = OTHER_FORMS.iter().find(|(name, _)| *name == found);
    let expected = other_form.map_or_else(|| known.join(", "), |(_, take)| take.to_string());
    decoder::Unsupported::new("model_type", found, expected).of(checkpoint.path(CONFIG))
}

/// The configuration of a checkpoint that is a decoder alone, checked.
pub fn decoder_config(checkpoint: &Checkpoint) -> Result<decoder::Config, ModelError> {
    let kind = model_type(checkpoint)?;
    let kinds = decoder::Config::KINDS;
    match kinds.contains(&kind.as_str()) {
        true => text_config(checkpoint, checkpoint.json(CONFIG)?, &kind, None),
        false => Err(unknown(checkpoint, &kind, &kinds)),
    }
}

/// The decoder's part of a configuration, checked. `kind` is its model_type if it does not say so, `tied` what the top level says of the
/// output layer. It is tied if either says so: versions of transformers have written it into the one and into the other, and the default
/// of the class, which is false, beside it.
pub fn text_config(
    checkpoint: &Checkpoint,
    json: Value,
    kind: &str,
    tied: Option<bool>,
) -> Result<decoder::Config, ModelError> {
    let file = || checkpoint.path(CONFIG);
    let nested = checkpoint.json::<Value>(CONFIG)?["text_config"].is_object();
    let wrong = |unsupported: decoder::Unsupported| match nested {
        true => unsupported.within("text_config").of(file()),
        false => unsupported.of(file()),
    };
    let mut config = decoder::Config::from_json(json, kind).map_err(wrong)?;
    if tied == Some(true) {
        config.set_tied();
    }
    match config.cache_shape() {
        Ok(_) => Ok(config),
        Err(unsupported) => Err(wrong(unsupported)),
    }
}
