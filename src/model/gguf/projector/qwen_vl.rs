//! Qwen2-VL, Qwen2.5-VL, Qwen3-VL, and what was trained further from them (Cosmos-Reason).
//!
//! What these files do not say is that of all published checkpoints: pictures at the sizes of their image processors (llama.cpp keeps
//! them at 8 to 4096 tokens), windows of 112 pixels, two positions for a second of a video, 1e-6 beside the variances of the tower (the
//! key holds the decoder's epsilon).

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde_json::{json, Value as Json};

use super::{activation, Kind, LAYERS, WIDTH};
use crate::model::gguf::decoder::{self, Paths};
use crate::model::gguf::spelling::{Cut, Spelling};
use crate::model::gguf::tensors::Form;
use crate::model::gguf::value::Value;
use crate::model::gguf::Gguf;
use crate::model::ModelError;

pub const QWEN2_VL: Kind = Kind {
    name: "qwen2vl_merger",
    decoders: &[decoder::QWEN2_VL],
    paths: Paths::ALONE,
    prefix: "visual.",
    names: &[COMMON, QWEN2_VL_NAMES, MERGER],
    cut: &[QKV_WEIGHT, QKV_BIAS, PATCHES],
    unused: &[POSITIONS],
    config: qwen2_vl,
    processor,
    video_size: None,
    output: OUTPUT,
    plain_decoder: false,
};

pub const QWEN2_5_VL: Kind = Kind {
    name: "qwen2.5vl_merger",
    names: &[COMMON, QWEN2_5_VL_NAMES, MERGER],
    config: qwen2_5_vl,
    ..QWEN2_VL
};

pub const QWEN3_VL: Kind = Kind {
    name: "qwen3vl_merger",
    decoders: &[decoder::QWEN3_VL],
    paths: Paths {
        text: "model.language_model",
        head: "lm_head",
    },
    prefix: "model.visual.",
    names: &[COMMON, QWEN3_VL_NAMES],
    cut: &[PATCHES],
    unused: &[],
    config: qwen3_vl,
    processor: qwen3_processor,
    video_size: Some([4096, 24576 * 1024]),
    ..QWEN2_VL
};

const COMMON: Spelling = Spelling(&[
    ("v.blk.#.ln1", "blocks.#.norm1"),
    ("v.blk.#.ln2", "blocks.#.norm2"),
    ("v.blk.#.attn_out", "blocks.#.attn.proj"),
]);

const MERGER: Spelling = Spelling(&[
    ("v.post_ln", "merger.ln_q"),
    ("mm.0", "merger.mlp.0"),
    ("mm.2", "merger.mlp.2"),
]);

const QWEN2_VL_NAMES: Spelling = Spelling(&[
    ("v.blk.#.ffn_up", "blocks.#.mlp.fc1"),
    ("v.blk.#.ffn_down", "blocks.#.mlp.fc2"),
]);

const QWEN2_5_VL_NAMES: Spelling = Spelling(&[
    ("v.blk.#.ffn_gate", "blocks.#.mlp.gate_proj"),
    ("v.blk.#.ffn_up", "blocks.#.mlp.up_proj"),
    ("v.blk.#.ffn_down", "blocks.#.mlp.down_proj"),
]);

const QWEN3_VL_NAMES: Spelling = Spelling(&[
    ("v.patch_embd", "patch_embed.proj"),
    ("v.position_embd", "pos_embed"),
    ("v.blk.#.attn_qkv", "blocks.#.attn.qkv"),
    ("v.blk.#.ffn_up", "blocks.#.mlp.linear_fc1"),
    ("v.blk.#.ffn_down", "blocks.#.mlp.linear_fc2"),
    ("v.post_ln", "merger.norm"),
    ("mm.0", "merger.linear_fc1"),
    ("mm.2", "merger.linear_fc2"),
    // Here the number is a place among these layers.
    ("v.deepstack.#.norm", "deepstack_merger_list.#.norm"),
    ("v.deepstack.#.fc1", "deepstack_merger_list.#.linear_fc1"),
    ("v.deepstack.#.fc2", "deepstack_merger_list.#.linear_fc2"),
]);

const QKV_WEIGHT: Cut = Cut {
    hub: "blocks.#.attn.qkv.weight",
    pieces: &[
        "v.blk.#.attn_q.weight",
        "v.blk.#.attn_k.weight",
        "v.blk.#.attn_v.weight",
    ],
    form: Form::Rows,
};

const QKV_BIAS: Cut = Cut {
    hub: "blocks.#.attn.qkv.bias",
    pieces: &[
        "v.blk.#.attn_q.bias",
        "v.blk.#.attn_k.bias",
        "v.blk.#.attn_v.bias",
    ],
    form: Form::Rows,
};

/// The embedding of patches, frame by frame.
const PATCHES: Cut = Cut {
    hub: "patch_embed.proj.weight",
    pieces: &["v.patch_embd.weight", "v.patch_embd.weight.1"],
    form: Form::Frames,
};

/// Learned positions; files of Qwen2-VL by the first converter have a table of zeros.
const POSITIONS: &str = "v.position_embd.weight";
const OUTPUT: &str = "mm.2.weight";
/// Tensors of the mergers of earlier layers begin so, then comes the layer.
const DEEP: &str = "v.deepstack.";
const DEEP_FLAGS: &str = "clip.vision.is_deepstack_layers";
const MERGE: &str = "clip.vision.spatial_merge_size";
const PATCH: &str = "clip.vision.patch_size";
const WINDOW: &str = "clip.vision.window_size";
const WINDOW_PATTERN: &str = "clip.vision.n_wa_pattern";
const IMAGE_PAD: &str = "<|image_pad|>";

/// Side of a window, pixels.
const PUBLISHED_WINDOW: usize = 112;
/// Positions on the axis of time for a second of a video.
const PUBLISHED_PER_SECOND: usize = 2;
/// Frames of a patch: the pieces that it is cut into.
const FRAMES: usize = PATCHES.pieces.len();

/// What all three say of the model.
fn common(projector: &Gguf, decoder: &Gguf, family: &str) -> Result<Json, ModelError> {
    let Some(image) = decoder.token_id(IMAGE_PAD)? else {
        return Err(decoder.fail(format!("the control token {IMAGE_PAD} is missing")));
    };
    Ok(json!({
        "model_type": family,
        "image_token_id": image,
        "vision_config": {
            "depth": projector.size(LAYERS)?,
            "num_heads": projector.size("clip.vision.attention.head_count")?,
            "patch_size": projector.size(PATCH)?,
            "temporal_patch_size": FRAMES,
            "spatial_merge_size": merge(projector)?,
            "hidden_act": activation(projector)?,
        },
    }))
}

/// Side of the square of patches that becomes one token.
fn merge(projector: &Gguf) -> Result<usize, ModelError> {
    Ok(projector.optional_size(MERGE)?.unwrap_or(2))
}

fn qwen2_vl(projector: &Gguf, decoder: &Gguf) -> Result<Json, ModelError> {
    let (width, inner) = (projector.size(WIDTH)?, inner(projector)?);
    if width == 0 || !inner.is_multiple_of(width) {
        let expected = format!("a multiple of {width}, the width of the tower");
        return Err(projector.unsupported("width within a layer of the tower", inner, expected));
    }
    let mut config = common(projector, decoder, "qwen2_vl")?;
    let tower = &mut config["vision_config"];
    tower["embed_dim"] = width.into();
    tower["mlp_ratio"] = (inner / width).into();
    tower["hidden_size"] = rows(projector, OUTPUT)?.into();
    Ok(config)
}

fn qwen2_5_vl(projector: &Gguf, decoder: &Gguf) -> Result<Json, ModelError> {
    let layers = projector.size(LAYERS)?;
    let pattern = projector.size(WINDOW_PATTERN)?;
    if pattern == 0 {
        return Err(projector.unsupported(WINDOW_PATTERN, pattern, "at least 1"));
    }
    // More layers than there are tensors are found where the first one is missing.
    let layers = layers.min(projector.header.tensors.len());
    let whole = (0..layers).filter(|layer| (layer + 1).is_multiple_of(pattern));
    let mut config = common(projector, decoder, "qwen2_5_vl")?;
    let tower = &mut config["vision_config"];
    tower["hidden_size"] = projector.size(WIDTH)?.into();
    tower["intermediate_size"] = inner(projector)?.into();
    tower["out_hidden_size"] = rows(projector, OUTPUT)?.into();
    tower["fullatt_block_indexes"] = whole.collect::<Vec<_>>().into();
    let window = projector.optional_size(WINDOW)?;
    tower["window_size"] = window.unwrap_or(PUBLISHED_WINDOW).into();
    tower["tokens_per_second"] = PUBLISHED_PER_SECOND.into();
    Ok(config)
}

fn qwen3_vl(projector: &Gguf, decoder: &Gguf) -> Result<Json, ModelError> {
    let deep = deep_layers(projector)?;
    let expected = decoder.deep_layers()?;
    if let Some(expected) = expected.filter(|&expected| expected != deep.len()) {
        return Err(projector.unsupported(
            DEEP_FLAGS,
            format!("{} layers ({deep:?})", deep.len()),
            format!(
                "{expected}, n_deepstack_layers of {}",
                decoder.file().display()
            ),
        ));
    }
    let mut config = common(projector, decoder, "qwen3_vl")?;
    let tower = &mut config["vision_config"];
    tower["hidden_size"] = projector.size(WIDTH)?.into();
    tower["intermediate_size"] = inner(projector)?.into();
    tower["out_hidden_size"] = rows(projector, OUTPUT)?.into();
    tower["num_position_embeddings"] = rows(projector, POSITIONS)?.into();
    tower["deepstack_visual_indexes"] = deep.into();
    Ok(config)
}

/// The width within a layer, as the tensors have it: for Qwen2-VL converters write the decoder's width as `feed_forward_length`, or 0.
fn inner(projector: &Gguf) -> Result<usize, ModelError> {
    let name = "v.blk.0.ffn_up.weight";
    let info = projector.tensor(name)?;
    // What is called so widens, or narrows where the layers are called the wrong way round.
    let width = projector.size(WIDTH)?;
    match *info.dims.as_slice() {
        [rows, columns] if rows == width => Ok(columns),
        [rows, _] => Ok(rows),
        _ => {
            let field = format!("shape of {name}");
            let value = format!("{:?}", info.dims);
            Err(projector.unsupported(&field, value, "two dimensions"))
        }
    }
}

/// The first dimension of a tensor.
fn rows(projector: &Gguf, name: &str) -> Result<usize, ModelError> {
    Ok(projector.tensor(name)?.dims[0])
}

fn processor(projector: &Gguf) -> Result<Json, ModelError> {
    resizing(projector, 56 * 56, 28 * 28 * 16384)
}

fn qwen3_processor(projector: &Gguf) -> Result<Json, ModelError> {
    resizing(projector, 256 * 256, 4096 * 4096)
}

/// The image processor, with the published limits where the file has none of its own.
fn resizing(projector: &Gguf, fewest: usize, most: usize) -> Result<Json, ModelError> {
    let fewest = projector
        .optional_size("clip.vision.image_min_pixels")?
        .unwrap_or(fewest);
    let most = projector
        .optional_size("clip.vision.image_max_pixels")?
        .unwrap_or(most);
    Ok(json!({
        "patch_size": projector.size(PATCH)?,
        "temporal_patch_size": FRAMES,
        "merge_size": merge(projector)?,
        "size": { "shortest_edge": fewest, "longest_edge": most },
    }))
}

/// The layers that have mergers of their own, which the file's flags must name, if there are flags.
pub fn deep_layers(projector: &Gguf) -> Result<Vec<usize>, ModelError> {
    let tensors = projector.header.tensors.keys();
    let deep = tensors.filter_map(|name| Some(split(name)?.0));
    let deep = deep
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>();
    let flags = projector.optional_elements(DEEP_FLAGS, "a truth value", Value::truth)?;
    let Some(flags) = flags else {
        return Ok(deep);
    };
    let flagged = flags.iter().enumerate().filter(|(_, flag)| **flag);
    let flagged = flagged.map(|(layer, _)| layer).collect::<Vec<_>>();
    match flagged == deep {
        true => Ok(deep),
        false => {
            let value = format!("true for the layers {flagged:?}");
            let expected = format!("those that have tensors {DEEP}*: {deep:?}");
            Err(projector.unsupported(DEEP_FLAGS, value, expected))
        }
    }
}

/// The layer of such a tensor, and the rest of its name.
fn split(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix(DEEP)?.split_once('.')?;
    let number = layer.parse::<usize>().ok()?;
    (number.to_string() == layer).then_some((number, rest))
}

/// `stored` with the place of its layer among `deep` in place of the layer, if it is of a merger of one of them.
pub fn with_place<'a>(stored: &'a str, deep: &[usize]) -> Option<Cow<'a, str>> {
    if !stored.starts_with(DEEP) {
        return Some(stored.into());
    }
    let (layer, rest) = split(stored)?;
    let place = deep.iter().position(|&other| other == layer)?;
    Some(format!("{DEEP}{place}.{rest}").into())
}

/// The opposite.
pub fn with_layer<'a>(called: &'a str, deep: &[usize]) -> Cow<'a, str> {
    match split(called).and_then(|(place, rest)| Some((deep.get(place)?, rest))) {
        Some((layer, rest)) => format!("{DEEP}{layer}.{rest}").into(),
        None => called.into(),
    }
}
