//! A vision tower's file beside a decoder's, which is written here from the published checkpoint that both come from.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, PolicyKind};
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::precision::Precision;
use inf_mllm::model::template::{Content, Message};
use inf_mllm::model::text::TextModel;
use inf_mllm::model::vision::{ImageFeatures, View};
use inf_mllm::model::weights::Quantization;
use inf_mllm::stream::{Session, SessionConfig};
use serde_json::Value as Json;
use tempfile::TempDir;

use super::writer::{floats, size, text, texts, File};
use crate::support::{deviation, golden, json, tensors, tiny_config, tiny_dir, try_load};

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

/// The decoder of a published directory as llama.cpp's converter writes it, in f32.
struct Converted {
    config: Json,
    file: File,
}

impl Converted {
    fn new(dir: &Path, text_path: &str, head: &str, defaults: &[(&str, u64)]) -> Self {
        let mut config = json(&dir.join("config.json"))["text_config"].take();
        for (name, value) in defaults {
            if config[name].is_null() {
                config[name] = (*value).into();
            }
        }
        let mut converted = Self {
            config,
            file: File::default().set("general.architecture", text("llama")),
        };
        converted.add_settings();
        converted.add_vocabulary(&json(&dir.join("tokenizer.json")));
        let weights = tensors(&dir.join("model.safetensors"));
        converted.add_tensors(&weights, text_path, head);
        converted
    }

    fn number(&self, name: &str) -> usize {
        self.config[name].as_u64().unwrap() as usize
    }

    fn head_dim(&self) -> usize {
        match self.config["head_dim"].as_u64() {
            Some(given) => given as usize,
            None => self.number("hidden_size") / self.number("num_attention_heads"),
        }
    }

    fn set(&mut self, key: &str, value: Value) {
        self.file = std::mem::take(&mut self.file).set(key, value);
    }

    fn add_settings(&mut self) {
        for (key, name) in [
            ("block_count", "num_hidden_layers"),
            ("embedding_length", "hidden_size"),
            ("feed_forward_length", "intermediate_size"),
            ("attention.head_count", "num_attention_heads"),
            ("attention.head_count_kv", "num_key_value_heads"),
            ("context_length", "max_position_embeddings"),
        ] {
            let value = size(self.number(name));
            self.set(&format!("llama.{key}"), value);
        }
        let head_dim = size(self.head_dim());
        self.set("llama.attention.key_length", head_dim.clone());
        self.set("llama.attention.value_length", head_dim);
        for (key, name) in [
            ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
            ("rope.freq_base", "rope_theta"),
        ] {
            let value = self.config[name].as_f64().unwrap() as f32;
            self.set(&format!("llama.{key}"), Value::F32(value));
        }
    }

    /// Byte-level BPE with its merges.
    fn add_vocabulary(&mut self, tokenizer: &Json) {
        let added = tokenizer["added_tokens"].as_array().unwrap();
        let mut tokens = vec![String::new(); self.number("vocab_size")];
        let mut kinds = vec![5; tokens.len()];
        for (id, token) in tokens.iter_mut().enumerate() {
            *token = format!("[PAD{id}]");
        }
        for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
            let id = id.as_u64().unwrap() as usize;
            (tokens[id], kinds[id]) = (token.clone(), 1);
        }
        for token in added {
            let id = token["id"].as_u64().unwrap() as usize;
            (tokens[id], kinds[id]) = (token["content"].as_str().unwrap().to_string(), 3);
        }
        let merges = tokenizer["model"]["merges"].as_array().unwrap().iter();
        let merges = merges.map(|pair| {
            format!(
                "{} {}",
                pair[0].as_str().unwrap(),
                pair[1].as_str().unwrap()
            )
        });
        let merges = merges.map(Value::String).collect();
        self.set("tokenizer.ggml.model", text("gpt2"));
        self.set("tokenizer.ggml.pre", text("smollm"));
        let tokens = tokens.iter().map(String::as_str).collect::<Vec<_>>();
        self.set("tokenizer.ggml.tokens", texts(&tokens));
        self.set(
            "tokenizer.ggml.token_type",
            Value::Array(kinds.into_iter().map(Value::I32).collect()),
        );
        self.set("tokenizer.ggml.merges", Value::Array(merges));
        let end = self.number("eos_token_id");
        self.set("tokenizer.ggml.eos_token_id", size(end));
    }

    fn add_tensors(&mut self, weights: &HashMap<String, Tensor>, text_path: &str, head: &str) {
        let mut add = |name: &str, published: &str, heads: Option<usize>| {
            let tensor = &weights[published];
            let tensor = heads.map_or(tensor.clone(), |heads| paired_rows(tensor, heads));
            self.file = std::mem::take(&mut self.file).with(name, floats(&tensor));
        };
        add(
            "token_embd.weight",
            &format!("{text_path}.embed_tokens.weight"),
            None,
        );
        add(
            "output_norm.weight",
            &format!("{text_path}.norm.weight"),
            None,
        );
        add("output.weight", &format!("{head}.weight"), None);
        let (heads, kv_heads) = (
            self.config["num_attention_heads"].as_u64().unwrap() as usize,
            self.config["num_key_value_heads"].as_u64().unwrap() as usize,
        );
        for layer in 0..self.config["num_hidden_layers"].as_u64().unwrap() {
            for (published, name) in LAYER {
                let paired = match name {
                    "attn_q" => Some(heads),
                    "attn_k" => Some(kv_heads),
                    _ => None,
                };
                let published = format!("{text_path}.layers.{layer}.{published}.weight");
                add(&format!("blk.{layer}.{name}.weight"), &published, paired);
            }
        }
    }
}

/// The two rows of a rotary pair as neighbours.
fn paired_rows(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, width) = weight.dims2().unwrap();
    let by_half = weight.reshape((heads, 2, rows / heads / 2, width)).unwrap();
    let by_pair = by_half.transpose(1, 2).unwrap().contiguous().unwrap();
    by_pair.reshape((rows, width)).unwrap()
}

/// A directory with a decoder's and a projector's file.
fn pair(decoder: &File, projector: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("decoder.gguf"), decoder.bytes()).unwrap();
    let projector = golden("gguf").join(format!("{projector}.gguf"));
    fs::copy(projector, dir.path().join("mmproj-model-f16.gguf")).unwrap();
    dir
}

fn smolvlm() -> File {
    let template = json(&tiny_dir().join("chat_template.json"));
    let converted = Converted::new(&tiny_dir(), "model.text_model", "lm_head", &[]);
    converted.file.set(
        "tokenizer.chat_template",
        text(template["chat_template"].as_str().unwrap()),
    )
}

/// The features of all images are those that transformers computes with the file's weights.
fn check_features(model: &Mllm, name: &str) -> Vec<ImageFeatures> {
    let about = json(&golden("gguf").join(format!("{name}.json")));
    let expected = tensors(&golden("gguf").join(format!("{name}.expected.safetensors")));
    let inputs = tensors(&golden(about["inputs"].as_str().unwrap()));
    let images = model.vision.split(&inputs, View::Image { of: 2 }).unwrap();
    let images = images
        .iter()
        .map(|pixels| model.vision.encode(pixels).unwrap());
    let images = images.collect::<Vec<_>>();
    let rows = images.iter().map(|image| &image.rows).collect::<Vec<_>>();
    let off = deviation(&Tensor::cat(&rows, 0).unwrap(), &expected["image_features"]);
    let tolerance = about["tolerance"].as_f64().unwrap() as f32;
    assert!(off <= tolerance, "{name}: image features differ by {off}");
    images
}

#[test]
fn a_smolvlm_of_two_files_is_the_published_one() {
    let dir = pair(&smolvlm(), "mmproj-smolvlm");
    let model = try_load(dir.path()).unwrap();
    assert_eq!(model.family.name, "SmolVLM");
    check_features(&model, "mmproj-smolvlm");

    // Template, ids and pixels.
    let forward = golden("tiny_forward");
    let about = json(&forward.join("forward.json"));
    let question = Content::Text {
        text: about["question"].as_str().unwrap().to_string(),
    };
    let content = vec![Content::Image, Content::Image, question];
    let rendered = model
        .template
        .render(&[Message {
            role: "user",
            content,
        }])
        .unwrap();
    assert_eq!(rendered, about["template_text"].as_str().unwrap());
    let inputs = tensors(&forward.join("inputs.safetensors"));
    let ids = inputs["input_ids"].flatten_all().unwrap();
    let ids = ids.to_dtype(DType::U32).unwrap().to_vec1::<u32>().unwrap();
    let encoded = model.tokenizer.encode(about["prompt"].as_str().unwrap());
    assert_eq!(encoded.unwrap(), ids);
    assert!(model.ends.contains(301));
    let published = try_load(&tiny_dir()).unwrap();
    let picture = image::open(forward.join("image0.png")).unwrap().to_rgb8();
    let tiles = |model: &Mllm| model.vision.prepare(&picture, View::Frame).tiles;
    assert_eq!(tiles(&model), tiles(&published));

    // The decoder, on the features of the checkpoint whose numbers were not rounded.
    let images = published.vision.split(&inputs, View::Frame).unwrap();
    let images = images
        .iter()
        .map(|pixels| published.vision.encode(pixels).unwrap());
    let images = images.collect::<Vec<_>>();
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: 256,
        ..CacheConfig::default()
    };
    let mut cache = BoundedCache::new(model.shape, &config, 0, DType::F32, &Device::Cpu).unwrap();
    let chunk = model.embed(&ids, &images).unwrap();
    let hidden = model
        .decoder
        .append_embedded(&chunk.embedded, &chunk.marks(), &mut cache);
    let logits = model
        .decoder
        .logits(&hidden.unwrap())
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    let expected = tensors(&forward.join("expected.safetensors"));
    let off = deviation(&logits, &expected["logits"]);
    assert!(off <= 1e-4, "logits differ by {off}");
}

#[test]
fn two_files_are_a_model_for_a_session_and_their_decoder_one_for_text() {
    let dir = pair(&smolvlm(), "mmproj-smolvlm");
    let model_dir = dir.path().to_path_buf();
    assert!(Session::new(SessionConfig {
        model_dir,
        ..tiny_config()
    })
    .is_ok());
    let load = |path: &Path| {
        let model =
            TextModel::load(path, Quantization::Auto, Precision::F32, &Device::Cpu).unwrap();
        model.weight_bytes
    };
    assert_eq!(load(dir.path()), load(&dir.path().join("decoder.gguf")));
}

fn refused(dir: &TempDir, words: &[&str]) {
    let error = try_load(dir.path()).err().expect("it loads").to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn files_that_do_not_go_together_are_named() {
    let name = "mmproj-smolvlm";
    // No word for an image.
    let tokens = |file: File| file.set("tokenizer.ggml.tokens", texts(&["a"; 1]));
    refused(&pair(&tokens(smolvlm()), name), &["decoder.gguf"]);
    // Two decoders, and a decoder alone.
    let dir = pair(&smolvlm(), name);
    fs::copy(
        dir.path().join("decoder.gguf"),
        dir.path().join("other.gguf"),
    )
    .unwrap();
    refused(
        &dir,
        &["2 decoders and 1 projectors", "expected one decoder"],
    );
    fs::remove_file(dir.path().join("mmproj-model-f16.gguf")).unwrap();
    fs::remove_file(dir.path().join("other.gguf")).unwrap();
    refused(&dir, &["decoder.gguf", "a decoder alone", "mmproj"]);
    // A tower of another decoder.
    let other = smolvlm().set("llama.embedding_length", size(24));
    refused(&pair(&other, name), &["24"]);
}
