//! Published checkpoints in the files that llama.cpp's converter makes of them, all numbers in f32.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use candle_core::{DType, Tensor};
use serde_json::Value as Json;

use super::writer::{floats, size, text, texts, File};
use crate::support::{json, tensors};

const LAYER: [(&str, &str); 9] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Of CLIP's tower: what stands in front of its layers, and in each.
const CLIP: [(&str, &str); 5] = [
    ("embeddings.class_embedding", "v.class_embd"),
    ("embeddings.patch_embedding.weight", "v.patch_embd.weight"),
    (
        "embeddings.position_embedding.weight",
        "v.position_embd.weight",
    ),
    ("pre_layrnorm.weight", "v.pre_ln.weight"),
    ("pre_layrnorm.bias", "v.pre_ln.bias"),
];
const CLIP_LAYER: [(&str, &str); 8] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.out_proj", "attn_out"),
    ("layer_norm1", "ln1"),
    ("layer_norm2", "ln2"),
    ("mlp.fc1", "ffn_up"),
    ("mlp.fc2", "ffn_down"),
];

/// Sizes as a configuration names them, with what it leaves out.
fn number(config: &Json, name: &str) -> usize {
    let default = match name {
        "num_key_value_heads" => {
            return number_or(config, name, number(config, "num_attention_heads"))
        }
        "eos_token_id" => 2,
        _ => 0,
    };
    number_or(config, name, default)
}

fn number_or(config: &Json, name: &str, default: usize) -> usize {
    config[name]
        .as_u64()
        .map_or(default, |number| number as usize)
}

/// All tensors of a directory.
pub fn weights(dir: &Path) -> HashMap<String, Tensor> {
    let shards = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let shards = shards.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    shards.flat_map(|shard| tensors(&shard)).collect()
}

fn add(file: File, name: &str, tensor: &Tensor) -> File {
    file.with(name, floats(&tensor.to_dtype(DType::F32).unwrap()))
}

/// The decoder of a published multimodal directory; its first `vocabulary` tokens only, if so many are given.
pub fn decoder(dir: &Path, text_path: &str, head: &str, vocabulary: Option<usize>) -> File {
    let config = json(&dir.join("config.json"))["text_config"].take();
    let vocabulary = vocabulary.unwrap_or_else(|| number(&config, "vocab_size"));
    let file = File::default().set("general.architecture", text("llama"));
    let file = with_settings(file, &config);
    let file = with_vocabulary(file, &json(&dir.join("tokenizer.json")), vocabulary).set(
        "tokenizer.ggml.eos_token_id",
        size(number(&config, "eos_token_id")),
    );
    with_tensors(file, &config, &weights(dir), (text_path, head), vocabulary)
}

fn with_settings(mut file: File, config: &Json) -> File {
    for (key, name) in [
        ("block_count", "num_hidden_layers"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("context_length", "max_position_embeddings"),
    ] {
        file = file.set(&format!("llama.{key}"), size(number(config, name)));
    }
    let head_dim = number(config, "hidden_size") / number(config, "num_attention_heads");
    let head_dim = size(number_or(config, "head_dim", head_dim));
    let float =
        |name: &str, default: f64| Value::F32(config[name].as_f64().unwrap_or(default) as f32);
    file.set("llama.attention.key_length", head_dim.clone())
        .set("llama.attention.value_length", head_dim)
        .set(
            "llama.attention.layer_norm_rms_epsilon",
            float("rms_norm_eps", 1e-6),
        )
        .set("llama.rope.freq_base", float("rope_theta", 1e4))
}

/// Byte-level BPE with its merges, or SentencePiece with scores, as the tokenizer has it.
fn with_vocabulary(file: File, tokenizer: &Json, size: usize) -> File {
    let mut tokens = (0..size).map(|id| format!("[PAD{id}]")).collect::<Vec<_>>();
    let mut kinds = vec![5; size];
    let mut put = |id: &Json, token: &str, kind: i32| {
        let id = id.as_u64().unwrap() as usize;
        if id < size {
            (tokens[id], kinds[id]) = (token.to_string(), kind);
        }
    };
    for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        let is_byte = token.len() == 6 && token.starts_with("<0x");
        put(id, token, if is_byte { 6 } else { 1 });
    }
    for token in tokenizer["added_tokens"].as_array().unwrap() {
        let content = token["content"].as_str().unwrap();
        put(
            &token["id"],
            content,
            if content == "<unk>" { 2 } else { 3 },
        );
    }
    let is_sentence_piece = tokenizer["model"]["byte_fallback"] == true;
    let names = tokens.iter().map(String::as_str).collect::<Vec<_>>();
    let integers = |kinds: &[i32]| Value::Array(kinds.iter().copied().map(Value::I32).collect());
    let file = file
        .set("tokenizer.ggml.tokens", texts(&names))
        .set("tokenizer.ggml.token_type", integers(&kinds));
    if is_sentence_piece {
        let scores = (0..size).map(|id| Value::F32(-(id as f32)));
        return file
            .set("tokenizer.ggml.model", text("llama"))
            .set("tokenizer.ggml.scores", Value::Array(scores.collect()));
    }
    let merges = tokenizer["model"]["merges"].as_array().unwrap().iter();
    let merges = merges.map(|pair| {
        let side = |i: usize| pair[i].as_str().unwrap();
        Value::String(format!("{} {}", side(0), side(1)))
    });
    file.set("tokenizer.ggml.model", text("gpt2"))
        .set("tokenizer.ggml.pre", text("smollm"))
        .set("tokenizer.ggml.merges", Value::Array(merges.collect()))
}

fn with_tensors(
    mut file: File,
    config: &Json,
    weights: &HashMap<String, Tensor>,
    (text_path, head): (&str, &str),
    vocabulary: usize,
) -> File {
    let table = |name: &str| weights[name].narrow(0, 0, vocabulary).unwrap();
    file = add(
        file,
        "token_embd.weight",
        &table(&format!("{text_path}.embed_tokens.weight")),
    );
    file = add(file, "output.weight", &table(&format!("{head}.weight")));
    file = add(
        file,
        "output_norm.weight",
        &weights[&format!("{text_path}.norm.weight")],
    );
    for layer in 0..number(config, "num_hidden_layers") {
        for (published, name) in LAYER {
            let heads = match name {
                "attn_q" => Some(number(config, "num_attention_heads")),
                "attn_k" => Some(number(config, "num_key_value_heads")),
                _ => None,
            };
            let tensor = &weights[&format!("{text_path}.layers.{layer}.{published}.weight")];
            let tensor = heads.map_or(tensor.clone(), |heads| paired_rows(tensor, heads));
            file = add(file, &format!("blk.{layer}.{name}.weight"), &tensor);
        }
    }
    file
}

/// The two rows of a rotary pair as neighbours.
fn paired_rows(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, width) = weight.dims2().unwrap();
    let by_half = weight.reshape((heads, 2, rows / heads / 2, width)).unwrap();
    let by_pair = by_half.transpose(1, 2).unwrap().contiguous().unwrap();
    by_pair.reshape((rows, width)).unwrap()
}

/// The tower and the connector of a published LLaVA-NeXT directory.
pub fn llava_next_projector(dir: &Path) -> File {
    let config = json(&dir.join("config.json"));
    let processor = json(&dir.join("preprocessor_config.json"));
    let (tower, weights) = (&config["vision_config"], weights(dir));
    let floats = |name: &str| {
        let channels = processor[name].as_array().unwrap().iter();
        Value::Array(
            channels
                .map(|x| Value::F32(x.as_f64().unwrap() as f32))
                .collect(),
        )
    };
    let pinpoints = config["image_grid_pinpoints"].as_array().unwrap().iter();
    let sides = pinpoints.flat_map(|pair| pair.as_array().unwrap());
    let sides = sides.map(|side| size(side.as_u64().unwrap() as usize));
    let mut file = File::default()
        .set("general.architecture", text("clip"))
        .set("clip.projector_type", text("mlp"))
        .set("clip.use_gelu", Value::Bool(false))
        .set("clip.vision.attention.layer_norm_epsilon", Value::F32(1e-5))
        .set("clip.vision.mm_patch_merge_type", text("spatial_unpad"))
        .set(
            "clip.vision.image_grid_pinpoints",
            Value::Array(sides.collect()),
        )
        .set("clip.vision.image_mean", floats("image_mean"))
        .set("clip.vision.image_std", floats("image_std"));
    for (key, name) in [
        ("block_count", "num_hidden_layers"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("image_size", "image_size"),
        ("patch_size", "patch_size"),
    ] {
        // The layer behind the features is left out.
        let left_out = usize::from(key == "block_count");
        file = file.set(
            &format!("clip.vision.{key}"),
            size(number(tower, name) - left_out),
        );
    }
    for (published, name) in CLIP {
        file = add(
            file,
            name,
            &weights[&format!("vision_tower.vision_model.{published}")],
        );
    }
    for layer in 0..number(tower, "num_hidden_layers") - 1 {
        for (published, name) in CLIP_LAYER {
            for kind in ["weight", "bias"] {
                let published =
                    format!("vision_tower.vision_model.encoder.layers.{layer}.{published}.{kind}");
                file = add(
                    file,
                    &format!("v.blk.{layer}.{name}.{kind}"),
                    &weights[&published],
                );
            }
        }
    }
    for (published, name) in [("linear_1", "mm.0"), ("linear_2", "mm.2")] {
        for kind in ["weight", "bias"] {
            let published = format!("multi_modal_projector.{published}.{kind}");
            file = add(file, &format!("{name}.{kind}"), &weights[&published]);
        }
    }
    add(file, "model.image_newline", &weights["image_newline"])
}
