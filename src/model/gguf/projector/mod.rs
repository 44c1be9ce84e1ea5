//! Vision towers with their connectors, llama.cpp's `mmproj` files: keys as a published configuration, tensors under published
//! names.
//!
//! - this file: the file, and the table of projectors
//! - `idefics3`: SmolVLM, Idefics3
//! - `lfm2_vl`: LFM2-VL, LFM2.5-VL
//! - `mlp`: LLaVA-1.5, LLaVA-NeXT
//! - `qwen_vl`: Qwen2-VL, Qwen2.5-VL, Qwen3-VL

mod idefics3;
mod lfm2_vl;
mod mlp;
mod qwen_vl;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{json, Value as Json};

use super::decoder::Paths;
use super::spelling::{Cut, Spelling};
use super::tensors::{Entry, Form};
use super::value::Value;
use super::Gguf;
use crate::model::ModelError;

pub const ARCHITECTURE: &str = "clip";
/// What stands for an image in prompts.
pub const IMAGE: &str = "<image>";

/// Layers of CLIP and SigLIP, as the families have them whose tower stands at `vision_tower`.
const VIT: Spelling = Spelling(&[
    (
        "v.patch_embd",
        "vision_tower.vision_model.embeddings.patch_embedding",
    ),
    (
        "v.position_embd",
        "vision_tower.vision_model.embeddings.position_embedding",
    ),
    (
        "v.blk.#.ln1",
        "vision_tower.vision_model.encoder.layers.#.layer_norm1",
    ),
    (
        "v.blk.#.ln2",
        "vision_tower.vision_model.encoder.layers.#.layer_norm2",
    ),
    (
        "v.blk.#.attn_q",
        "vision_tower.vision_model.encoder.layers.#.self_attn.q_proj",
    ),
    (
        "v.blk.#.attn_k",
        "vision_tower.vision_model.encoder.layers.#.self_attn.k_proj",
    ),
    (
        "v.blk.#.attn_v",
        "vision_tower.vision_model.encoder.layers.#.self_attn.v_proj",
    ),
    (
        "v.blk.#.attn_out",
        "vision_tower.vision_model.encoder.layers.#.self_attn.out_proj",
    ),
    (
        "v.blk.#.ffn_up",
        "vision_tower.vision_model.encoder.layers.#.mlp.fc1",
    ),
    (
        "v.blk.#.ffn_down",
        "vision_tower.vision_model.encoder.layers.#.mlp.fc2",
    ),
    ("v.post_ln", "vision_tower.vision_model.post_layernorm"),
]);

const TYPE: &str = "clip.projector_type";
const WIDTH: &str = "clip.vision.embedding_length";
const LAYERS: &str = "clip.vision.block_count";
const IMAGE_SIZE: &str = "clip.vision.image_size";

/// The family that a projector was made from.
#[derive(Debug)]
struct Kind {
    /// What `clip.projector_type` says.
    name: &'static str,
    /// The architectures of decoders that it goes with.
    decoders: &'static [&'static str],
    paths: Paths,
    /// What published names begin with that are in `names` and `cut`.
    prefix: &'static str,
    names: &'static [Spelling],
    /// What converters cut into pieces.
    cut: &'static [Cut],
    /// Tensors that converters write and no model uses.
    unused: &'static [&'static str],
    /// `config.json` but for `text_config`, of the projector and the decoder.
    config: fn(&Gguf, &Gguf) -> Result<Json, ModelError>,
    /// `preprocessor_config.json`.
    processor: fn(&Gguf) -> Result<Json, ModelError>,
    /// The fewest and the most pixels in `video_preprocessor_config.json`, where published checkpoints have one.
    video_size: Option<[usize; 2]>,
    /// The tensor whose rows are as many as the decoder is wide.
    output: &'static str,
    /// Decoders are used whose makers did not add a token for images, nor a template that knows them.
    plain_decoder: bool,
}

static KINDS: [Kind; 6] = [
    idefics3::KIND,
    lfm2_vl::KIND,
    mlp::KIND,
    qwen_vl::QWEN2_VL,
    qwen_vl::QWEN2_5_VL,
    qwen_vl::QWEN3_VL,
];

/// Decoders of texts, which projectors of several families are put in front of.
const TEXT_DECODERS: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// The file of a vision tower and its connector.
#[derive(Debug, Clone)]
pub struct Projector {
    pub gguf: Arc<Gguf>,
    kind: &'static Kind,
    /// The tower's layers are called the wrong way round, as the first converters did it.
    swapped: bool,
    /// Layers of the tower whose features reach deeper layers of the decoder, in order.
    deep: Vec<usize>,
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
        let width = gguf.size(WIDTH)?;
        let first = gguf.header.tensors.get("v.blk.0.ffn_down.weight");
        let widens =
            |dims: &[usize]| matches!(dims, &[inner, rows] if rows == width && inner != width);
        let swapped = first.is_some_and(|info| widens(&info.dims));
        let deep = qwen_vl::deep_layers(&gguf)?;
        Ok(Self {
            kind,
            swapped,
            deep,
            gguf,
        })
    }

    /// Fails if what comes out of it is not as wide as the decoder.
    pub fn check_width(&self, hidden_size: usize) -> Result<(), ModelError> {
        let output = self.kind.output;
        let rows = self.gguf.tensor(output)?.dims[0];
        match rows == hidden_size {
            true => Ok(()),
            false => Err(self.gguf.fail(format!(
                "the tensor {output} has {rows} rows, expected {hidden_size}, the width of the decoder"
            ))),
        }
    }

    /// Where the family has its decoder and its output layer.
    pub fn paths(&self) -> Paths {
        self.kind.paths
    }

    /// The family's `config.json`.
    pub fn config(&self, decoder: &Gguf, text_config: &Json) -> Result<Json, ModelError> {
        let decoders = self.kind.decoders;
        if !decoders.contains(&decoder.architecture.as_str()) {
            let decoders = decoders.iter().map(|name| format!("{name:?}"));
            return Err(self.gguf.unsupported(
                TYPE,
                format!("{:?}", self.kind.name),
                format!(
                    "the type of a projector for a decoder of architecture {:?} ({}); this one is for {}",
                    decoder.architecture,
                    decoder.file().display(),
                    decoders.collect::<Vec<_>>().join(" or ")
                ),
            ));
        }
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

    pub fn has_video_processor(&self) -> bool {
        self.kind.video_size.is_some()
    }

    /// The family's `video_preprocessor_config.json`, if it has one.
    pub fn video_processor(&self) -> Result<Option<Json>, ModelError> {
        let Some([fewest, most]) = self.kind.video_size else {
            return Ok(None);
        };
        let mut config = self.processor()?;
        config["size"] = json!({ "shortest_edge": fewest, "longest_edge": most });
        Ok(Some(config))
    }

    /// Whether a decoder is to be made one that knows images, if it does not.
    pub fn takes_plain_decoders(&self) -> bool {
        self.kind.plain_decoder
    }

    /// The tensors under published names. One that has no place in the family is an error.
    pub fn entries(&self) -> Result<HashMap<String, Entry>, ModelError> {
        let layers = self.gguf.size(LAYERS)?;
        let mut entries = HashMap::new();
        for (stored, info) in &self.gguf.header.tensors {
            if self.kind.unused.contains(&stored.as_str()) {
                continue;
            }
            let (hub, entry) = match self.found(stored, layers)? {
                Found::Whole(hub) => (hub, Entry::new(stored, info, Form::Whole)),
                Found::First(hub, entry) => (hub, entry),
                Found::Later => continue,
                Found::Nothing => {
                    return Err(self.gguf.fail(format!(
                        "the tensor {stored} has no place beside a projector of type {} and a tower with {layers} layers",
                        self.kind.name
                    )))
                }
            };
            entries.insert(format!("{}{hub}", self.kind.prefix), entry);
        }
        Ok(entries)
    }

    /// What `stored` is of the published checkpoint.
    fn found(&self, stored: &str, layers: usize) -> Result<Found, ModelError> {
        let cuts = self.kind.cut.iter();
        let piece = cuts
            .filter_map(|cut| Some((cut, cut.piece(stored)?)))
            .next();
        let Some((cut, (index, layer))) = piece else {
            let called = self.called(stored);
            let hub = called.and_then(|called| {
                self.kind
                    .names
                    .iter()
                    .find_map(|names| names.hub(&called, layers))
            });
            return Ok(hub.map_or(Found::Nothing, Found::Whole));
        };
        if layer.is_some_and(|layer| layer >= layers) {
            return Ok(Found::Nothing);
        }
        let mut pieces = Vec::new();
        for name in cut.names(layer) {
            let info = self.gguf.tensor(&name)?.clone();
            pieces.push((name, info));
        }
        if index > 0 {
            return Ok(Found::Later);
        }
        let entry = Entry::joined(pieces, cut.form).map_err(|what| self.gguf.fail(what))?;
        Ok(Found::First(cut.hub(layer), entry))
    }

    /// The name in the file of the published `name`.
    pub fn stored(&self, name: &str) -> Option<String> {
        let name = name.strip_prefix(self.kind.prefix)?;
        if let Some(piece) = self.kind.cut.iter().find_map(|cut| cut.stored(name)) {
            return Some(piece);
        }
        let stored = self
            .kind
            .names
            .iter()
            .find_map(|names| names.stored(name))?;
        Some(qwen_vl::with_layer(&self.swap(&stored), &self.deep).into_owned())
    }

    /// `stored` as the table of names has it; nothing for a merger of a layer that has none.
    fn called<'a>(&self, stored: &'a str) -> Option<Cow<'a, str>> {
        match self.swapped {
            true => Some(self.swap(stored).into()),
            false => qwen_vl::with_place(stored, &self.deep),
        }
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

/// What a tensor of the file is.
enum Found {
    /// The published one of this name.
    Whole(String),
    /// The first piece of the published one of this name.
    First(String, Entry),
    /// Another piece.
    Later,
    Nothing,
}

/// `vision_config` as SigLIP and CLIP spell it.
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
