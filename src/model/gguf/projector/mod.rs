//! Vision towers with their connectors, llama.cpp's `mmproj` files: keys as a published configuration, tensors under published
//! names.
//!
//! - this file: the file, and the table of projectors
//! - `idefics3`: SmolVLM, Idefics3
//! - `mlp`: LLaVA-1.5, LLaVA-NeXT

mod idefics3;
mod mlp;

use std::sync::Arc;

use serde_json::{json, Value as Json};

use super::decoder::Paths;
use super::header::TensorInfo;
use super::spelling::Spelling;
use super::tensors::Entry;
use super::value::Value;
use super::Gguf;
use crate::model::ModelError;

pub const ARCHITECTURE: &str = "clip";
/// What stands for an image in prompts.
pub const IMAGE: &str = "<image>";

const TYPE: &str = "clip.projector_type";
const LAYERS: &str = "clip.vision.block_count";
const IMAGE_SIZE: &str = "clip.vision.image_size";

/// The family that a projector was made from.
#[derive(Debug)]
struct Kind {
    /// What `clip.projector_type` says.
    name: &'static str,
    paths: Paths,
    names: Spelling,
    /// `config.json` but for `text_config`, of the projector and the decoder.
    config: fn(&Gguf, &Gguf) -> Result<Json, ModelError>,
    /// `preprocessor_config.json`.
    processor: fn(&Gguf) -> Result<Json, ModelError>,
    /// The tensor whose rows are as many as the decoder is wide.
    output: &'static str,
    /// Decoders are used whose makers did not add a token for images, nor a template that knows them.
    plain_decoder: bool,
}

static KINDS: [Kind; 2] = [idefics3::KIND, mlp::KIND];

/// The file of a vision tower and its connector.
#[derive(Debug, Clone)]
pub struct Projector {
    pub gguf: Arc<Gguf>,
    kind: &'static Kind,
    /// The tower's layers are called the wrong way round, as the first converters did it.
    swapped: bool,
}

impl Projector {
    pub fn new(gguf: Arc<Gguf>) -> Result<Self, ModelError> {
        let name = gguf.text(TYPE)?;
        let Some(kind) = KINDS.iter().find(|kind| kind.name == name) else {
            let known = KINDS.iter().map(|kind| format!("{:?}", kind.name));
            let expected = known.collect::<Vec<_>>().join(" or ");
            return Err(gguf.unsupported(TYPE, format!("{name:?}"), expected));
        };
        // What comes first widens: its rows are as long as the tower is wide.
        let (width, inner) = (
            gguf.size("clip.vision.embedding_length")?,
            gguf.size("clip.vision.feed_forward_length")?,
        );
        let first = gguf.header.tensors.get("v.blk.0.ffn_down.weight");
        let swapped = width != inner && first.is_some_and(|info| info.dims == [inner, width]);
        Ok(Self {
            kind,
            swapped,
            gguf,
        })
    }

    /// Fails if what comes out of it is not as wide as the decoder.
    pub fn check_width(&self, hidden_size: usize) -> Result<(), ModelError> {
        let output = self.kind.output;
        let info = self.gguf.header.tensors.get(output);
        let info = info.ok_or_else(|| self.gguf.missing(output))?;
        match info.dims[0] == hidden_size {
            true => Ok(()),
            false => Err(self.gguf.fail(format!(
                "the tensor {output} has {} rows, expected {hidden_size}, the width of the decoder",
                info.dims[0]
            ))),
        }
    }

    /// Where the family has its decoder and its output layer.
    pub fn paths(&self) -> Paths {
        self.kind.paths
    }

    /// The family's `config.json`.
    pub fn config(&self, decoder: &Gguf, text_config: &Json) -> Result<Json, ModelError> {
        let mut config = (self.kind.config)(&self.gguf, decoder)?;
        config["text_config"] = text_config.clone();
        Ok(config)
    }

    /// The family's `preprocessor_config.json`.
    pub fn processor(&self) -> Result<Json, ModelError> {
        let mut config = (self.kind.processor)(&self.gguf)?;
        for name in ["image_mean", "image_std"] {
            let channels =
                self.gguf
                    .elements(&format!("clip.vision.{name}"), "a float", Value::float)?;
            config[name] = channels.into();
        }
        Ok(config)
    }

    /// Whether a decoder is to be made one that knows images, if it does not.
    pub fn takes_plain_decoders(&self) -> bool {
        self.kind.plain_decoder
    }

    /// The tensors under published names. One that has no place in the family is an error.
    pub fn entries(&self) -> Result<Vec<(String, Entry)>, ModelError> {
        let layers = self.gguf.size(LAYERS)?;
        let tensors = self.gguf.header.tensors.iter();
        let entry = |(stored, info): (&String, &TensorInfo)| {
            let name = self.kind.names.hub(&self.swap(stored), layers);
            let name = name.ok_or_else(|| {
                self.gguf.fail(format!(
                    "the tensor {stored} has no place beside a projector of type {} and a tower with {layers} layers",
                    self.kind.name
                ))
            })?;
            let entry = Entry {
                stored: stored.clone(),
                info: info.clone(),
                paired: None,
            };
            Ok((name, entry))
        };
        tensors.map(entry).collect()
    }

    /// The name in the file of the published `name`.
    pub fn stored(&self, name: &str) -> Option<String> {
        Some(self.swap(&self.kind.names.stored(name)?))
    }

    fn swap(&self, stored: &str) -> String {
        let (up, down) = (".ffn_up.", ".ffn_down.");
        match self.swapped {
            true if stored.contains(up) => stored.replacen(up, down, 1),
            true => stored.replacen(down, up, 1),
            false => stored.to_string(),
        }
    }
}

/// `vision_config` as the towers of all families spell it.
fn vision_config(projector: &Gguf) -> Result<Json, ModelError> {
    let size = |name: &str| projector.size(&format!("clip.vision.{name}"));
    Ok(json!({
        "hidden_size": size("embedding_length")?,
        "intermediate_size": size("feed_forward_length")?,
        "num_hidden_layers": size("block_count")?,
        "num_attention_heads": size("attention.head_count")?,
        "image_size": size("image_size")?,
        "patch_size": size("patch_size")?,
        "layer_norm_eps": projector.float("clip.vision.attention.layer_norm_epsilon")?,
        "hidden_act": activation(projector)?,
    }))
}

/// The tower's activation: quick gelu where no key says otherwise.
fn activation(projector: &Gguf) -> Result<&'static str, ModelError> {
    let says = |key: &str| Ok::<_, ModelError>(projector.truth(key)?.unwrap_or(false));
    Ok(match (says("clip.use_gelu")?, says("clip.use_silu")?) {
        (true, _) => "gelu_pytorch_tanh",
        (false, true) => "silu",
        (false, false) => "quick_gelu",
    })
}
