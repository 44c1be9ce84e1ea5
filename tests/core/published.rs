//! The published checkpoints by their own configurations, tensor names and shapes: whether every one of them is found whole.
//!
//! `tests/golden/published` says what their files hold. Here these are written with holes where the weights would be, beside the
//! tokenizer and the chat template of a tiny checkpoint of the same kind, and inspected: that builds the model, so that every name
//! and shape is asked for, and reads no weight.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use inf_mllm::model::DeviceKind;
use inf_mllm::stream::inspect::{Options, Report};
use inf_mllm::stream::SessionConfig;
use serde_json::{json, Map, Value};
use tempfile::TempDir;

use crate::support::{golden, json};

/// What is known of a checkpoint without its files.
struct Known {
    name: &'static str,
    /// [`Report::family`] and [`Report::decoder`].
    kind: (&'static str, &'static str),
    /// Longest input, tokens.
    context: usize,
    /// Layers, heads of keys and values, and their size.
    cache: [u64; 3],
    /// Tokens of a frame of 640 x 480 pixels; none: it takes no pictures.
    frame: Option<usize>,
    /// Patterns of tensors that the model does without.
    unused: &'static [&'static str],
}

/// Buffers that older releases of transformers wrote beside the weights.
const OLD_LLAMA: &[&str] = &["model.layers.{0..31}.self_attn.rotary_emb.inv_freq"];
const OLD_NEOX: &[&str] = &[
    "gpt_neox.layers.{0..31}.attention.bias",
    "gpt_neox.layers.{0..31}.attention.masked_bias",
    "gpt_neox.layers.{0..31}.attention.rotary_emb.inv_freq",
];
/// Features are taken after the last layer but one.
const LAST_OF_CLIP: &[&str] = &[
    "vision_tower.vision_model.encoder.layers.23.*",
    "vision_tower.vision_model.post_layernorm.*",
];
/// Features are taken in front of it.
const LAST_NORM: &[&str] = &["vision_tower.vision_model.post_layernorm.*"];

#[rustfmt::skip]
const TEXT: [Known; 7] = [
    Known { name: "vicuna-7b-v1.5", kind: ("text", "llama"), context: 4096, cache: [32, 32, 128], frame: None, unused: OLD_LLAMA },
    Known { name: "LLaMA-2-7B-32K", kind: ("text", "llama"), context: 32768, cache: [32, 32, 128], frame: None, unused: OLD_LLAMA },
    Known { name: "SmolLM2-135M", kind: ("text", "llama"), context: 8192, cache: [30, 3, 64], frame: None, unused: &[] },
    Known { name: "SmolLM2-1.7B", kind: ("text", "llama"), context: 8192, cache: [24, 32, 64], frame: None, unused: &[] },
    Known { name: "Qwen2.5-0.5B", kind: ("text", "qwen2"), context: 32768, cache: [24, 2, 64], frame: None, unused: &[] },
    // The copy of the input embedding that is its output layer.
    Known { name: "Qwen3-0.6B", kind: ("text", "qwen3"), context: 40960, cache: [28, 8, 128], frame: None, unused: &["lm_head.weight"] },
    Known { name: "pythia-2.8b", kind: ("text", "gpt_neox"), context: 2048, cache: [32, 32, 80], frame: None, unused: OLD_NEOX },
];

#[rustfmt::skip]
const SMOLVLM: [Known; 4] = [
    Known { name: "SmolVLM-256M-Instruct", kind: ("SmolVLM", "llama"), context: 8192, cache: [30, 3, 64], frame: Some(64), unused: &[] },
    Known { name: "SmolVLM-500M-Instruct", kind: ("SmolVLM", "llama"), context: 8192, cache: [32, 5, 64], frame: Some(64), unused: &[] },
    Known { name: "SmolVLM2-2.2B-Instruct", kind: ("SmolVLM", "llama"), context: 8192, cache: [24, 32, 64], frame: Some(81), unused: &[] },
    Known { name: "Idefics3-8B-Llama3", kind: ("SmolVLM", "llama"), context: 131072, cache: [32, 8, 128], frame: Some(169), unused: &[] },
];

#[rustfmt::skip]
const LLAVA: [Known; 5] = [
    Known { name: "llava-1.5-7b-hf", kind: ("LLaVA-1.5", "llama"), context: 4096, cache: [32, 32, 128], frame: Some(576), unused: LAST_OF_CLIP },
    Known { name: "llava-v1.6-mistral-7b-hf", kind: ("LLaVA-NeXT", "mistral"), context: 32768, cache: [32, 8, 128], frame: Some(576), unused: LAST_OF_CLIP },
    Known { name: "llava-v1.6-vicuna-7b-hf", kind: ("LLaVA-NeXT", "llama"), context: 4096, cache: [32, 32, 128], frame: Some(576), unused: LAST_OF_CLIP },
    Known { name: "llava-onevision-qwen2-0.5b-ov-hf", kind: ("LLaVA-OneVision", "qwen2"), context: 32768, cache: [24, 2, 64], frame: Some(14 * 14 + 1), unused: LAST_NORM },
    Known { name: "llava-onevision-qwen2-7b-ov-hf", kind: ("LLaVA-OneVision", "qwen2"), context: 32768, cache: [28, 4, 128], frame: Some(14 * 14 + 1), unused: LAST_NORM },
];

#[rustfmt::skip]
const INTERNVL: [Known; 6] = [
    Known { name: "InternVL3-1B-hf", kind: ("InternVL", "qwen2"), context: 32768, cache: [24, 2, 64], frame: Some(256), unused: &[] },
    Known { name: "InternVL3-2B-hf", kind: ("InternVL", "qwen2"), context: 32768, cache: [28, 2, 128], frame: Some(256), unused: &[] },
    Known { name: "InternVL3_5-1B-HF", kind: ("InternVL", "qwen3"), context: 40960, cache: [28, 8, 128], frame: Some(256), unused: &[] },
    Known { name: "InternVL3_5-2B-HF", kind: ("InternVL", "qwen3"), context: 40960, cache: [28, 8, 128], frame: Some(256), unused: &[] },
    Known { name: "InternVL3_5-4B-HF", kind: ("InternVL", "qwen3"), context: 40960, cache: [36, 8, 128], frame: Some(256), unused: &[] },
    Known { name: "InternVL3_5-8B-HF", kind: ("InternVL", "qwen3"), context: 40960, cache: [36, 8, 128], frame: Some(256), unused: &[] },
];

#[rustfmt::skip]
const LFM2: [Known; 3] = [
    Known { name: "LFM2-VL-450M", kind: ("LFM2-VL", "lfm2"), context: 128_000, cache: [6, 8, 64], frame: Some(18 * 13), unused: &[] },
    Known { name: "LFM2.5-VL-450M", kind: ("LFM2-VL", "lfm2"), context: 128_000, cache: [6, 8, 64], frame: Some(18 * 13), unused: &[] },
    Known { name: "LFM2.5-VL-1.6B", kind: ("LFM2-VL", "lfm2"), context: 128_000, cache: [6, 8, 64], frame: Some(18 * 13), unused: &[] },
];

#[rustfmt::skip]
const QWEN: [Known; 6] = [
    Known { name: "Qwen2-VL-2B-Instruct", kind: ("Qwen2-VL", "qwen2_vl_text"), context: 32_768, cache: [28, 2, 128], frame: Some(23 * 17), unused: &[] },
    Known { name: "Qwen2.5-VL-3B-Instruct", kind: ("Qwen2.5-VL", "qwen2_5_vl_text"), context: 128_000, cache: [36, 2, 128], frame: Some(23 * 17), unused: &[] },
    Known { name: "Qwen2.5-VL-7B-Instruct", kind: ("Qwen2.5-VL", "qwen2_5_vl_text"), context: 128_000, cache: [28, 4, 128], frame: Some(23 * 17), unused: &[] },
    Known { name: "Qwen3-VL-2B-Instruct", kind: ("Qwen3-VL", "qwen3_vl_text"), context: 262_144, cache: [28, 8, 128], frame: Some(20 * 15), unused: &[] },
    Known { name: "Qwen3-VL-8B-Instruct", kind: ("Qwen3-VL", "qwen3_vl_text"), context: 262_144, cache: [36, 8, 128], frame: Some(20 * 15), unused: &[] },
    Known { name: "Qwen3-VL-4B-Instruct", kind: ("Qwen3-VL", "qwen3_vl_text"), context: 262_144, cache: [36, 8, 128], frame: Some(20 * 15), unused: &[] },
];

/// The layers that keep no keys do not count.
#[rustfmt::skip]
const QWEN3_5: [Known; 4] = [
    Known { name: "Qwen3.5-0.8B", kind: ("Qwen3.5", "qwen3_5_text"), context: 262_144, cache: [6, 2, 256], frame: Some(20 * 15), unused: &[] },
    Known { name: "Qwen3.5-2B", kind: ("Qwen3.5", "qwen3_5_text"), context: 262_144, cache: [6, 2, 256], frame: Some(20 * 15), unused: &[] },
    Known { name: "Qwen3.5-4B", kind: ("Qwen3.5", "qwen3_5_text"), context: 262_144, cache: [8, 4, 256], frame: Some(20 * 15), unused: &[] },
    Known { name: "Qwen3.5-9B", kind: ("Qwen3.5", "qwen3_5_text"), context: 262_144, cache: [8, 4, 256], frame: Some(20 * 15), unused: &[] },
];

/// Their generators have nothing to do with answers.
#[rustfmt::skip]
const COSMOS3: [Known; 2] = [
    Known { name: "Cosmos3-Edge", kind: ("Cosmos 3 Edge", "cosmos3_edge_text"), context: 131_072, cache: [28, 8, 128], frame: Some(20 * 15), unused: &[] },
    Known { name: "Cosmos3-Nano", kind: ("Cosmos 3", "qwen3_vl_text"), context: 262_144, cache: [36, 8, 128], frame: Some(20 * 15), unused: &[] },
];

#[rustfmt::skip]
const QUANTISED: [Known; 3] = [
    Known { name: "Qwen2.5-VL-3B-Instruct-AWQ", kind: ("Qwen2.5-VL", "qwen2_5_vl_text"), context: 128_000, cache: [36, 2, 128], frame: Some(23 * 17), unused: &[] },
    Known { name: "Qwen2.5-VL-3B-Instruct-quantized.w4a16", kind: ("Qwen2.5-VL", "qwen2_5_vl_text"), context: 128_000, cache: [36, 2, 128], frame: Some(23 * 17), unused: &[] },
    Known { name: "Qwen3-VL-2B-Instruct-FP8", kind: ("Qwen3-VL", "qwen3_vl_text"), context: 262_144, cache: [28, 8, 128], frame: Some(20 * 15), unused: &[] },
];

/// A tensor in a file.
struct Hole {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    /// Its numbers, where it is no hole.
    values: Vec<i64>,
}

impl Hole {
    fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    fn element_bytes(&self) -> u64 {
        match self.dtype.as_str() {
            "BOOL" | "F8_E4M3" => 1,
            "F16" | "BF16" => 2,
            "F32" | "I32" => 4,
            "I64" => 8,
            other => panic!("{}: unexpected element type {other}", self.name),
        }
    }
}

/// The names of a pattern: `{first..last}` stands for the numbers of a run of layers.
pub fn names(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else {
        return vec![pattern.to_string()];
    };
    let (run, after) = rest.split_once('}').unwrap();
    let (first, last) = run.split_once("..").unwrap();
    let run = first.parse::<usize>().unwrap()..=last.parse().unwrap();
    run.map(|number| format!("{before}{number}{after}"))
        .collect()
}

/// Whether `pattern` stands for `name`; it may end in `*`.
fn stands_for(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => names(pattern).iter().any(|one| one == name),
    }
}

/// All tensors of a checkpoint: parameters, what stands for quantised ones, then old buffers.
fn holes(about: &Value) -> Vec<Hole> {
    let others = about["dtypes"].as_object();
    let dtype = |name: &str| {
        let mut others = others.into_iter().flatten();
        let other = others.find(|(ending, _)| name.ends_with(*ending));
        other.map_or(&about["dtype"], |(_, dtype)| dtype)
    };
    let parameters = about["tensors"].as_object().unwrap().iter();
    let parameters = parameters.map(|(pattern, shape)| {
        let dtype = dtype(pattern);
        (pattern, json!({ "dtype": dtype, "shape": shape }))
    });
    let others = ["packed", "buffers"]
        .into_iter()
        .filter_map(|part| about[part].as_object());
    let others = others
        .flatten()
        .map(|(pattern, one)| (pattern, one.clone()));
    parameters
        .chain(others)
        .flat_map(|(pattern, one)| {
            names(pattern).into_iter().map(move |name| Hole {
                name,
                dtype: one["dtype"].as_str().unwrap().to_string(),
                shape: serde_json::from_value(one["shape"].clone()).unwrap(),
                values: serde_json::from_value(one["values"].clone()).unwrap_or_default(),
            })
        })
        .collect()
}

/// A safetensors file with a hole in the place of its numbers, otherwise as the library of the published ones writes it.
fn write_sparse(file: &Path, holes: &[Hole], bare: bool) {
    let mut header = Map::new();
    if !bare {
        header.insert("__metadata__".to_string(), json!({ "format": "pt" }));
    }
    let mut holes = holes.iter().collect::<Vec<_>>();
    holes.sort_by_key(|hole| (Reverse(hole.element_bytes()), &hole.name));
    let mut end = 0;
    let mut values = Vec::new();
    for hole in holes {
        let start = end;
        if !hole.values.is_empty() {
            values.push((start, &hole.values));
        }
        end += hole.elements() * hole.element_bytes();
        header.insert(
            hole.name.clone(),
            json!({ "dtype": hole.dtype, "shape": hole.shape, "data_offsets": [start, end] }),
        );
    }
    let mut header = Value::Object(header).to_string();
    header.extend(std::iter::repeat_n(' ', (8 - header.len() % 8) % 8));
    let mut out = File::create(file).unwrap();
    out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    out.write_all(header.as_bytes()).unwrap();
    let numbers = 8 + header.len() as u64;
    out.set_len(numbers + end).unwrap();
    for (start, values) in values {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        out.seek(SeekFrom::Start(numbers + start)).unwrap();
        out.write_all(&bytes.collect::<Vec<_>>()).unwrap();
    }
}

/// The tensors in as many files as on the hub, with the index of several.
fn write_weights(dir: &Path, about: &Value) {
    let holes = holes(about);
    let (shards, folders) = (
        about["shards"].as_u64().unwrap() as usize,
        &about["folders"],
    );
    let bare = about["bare"].as_bool().unwrap_or(false);
    if shards == 1 {
        return write_sparse(&dir.join("model.safetensors"), &holes, bare);
    }
    let mut index = Map::new();
    let mut write = |file: String, part: &[Hole]| {
        let path = dir.join(&file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_sparse(&path, part, bare);
        index.extend(part.iter().map(|hole| (hole.name.clone(), json!(file))));
    };
    let mut rest = holes;
    for (folder, beginnings) in folders.as_object().into_iter().flatten() {
        let beginnings = beginnings.as_array().unwrap();
        let within = |hole: &Hole| {
            let mut beginnings = beginnings.iter();
            beginnings.any(|beginning| hole.name.starts_with(beginning.as_str().unwrap()))
        };
        let (part, others) = rest.into_iter().partition::<Vec<_>, _>(within);
        write(format!("{folder}/model.safetensors"), &part);
        rest = others;
    }
    let shard = match folders.is_object() {
        true => "transformer/diffusion_pytorch_model",
        false => "model",
    };
    for (i, part) in rest.chunks(rest.len().div_ceil(shards)).enumerate() {
        write(
            format!("{shard}-{:05}-of-{shards:05}.safetensors", i + 1),
            part,
        );
    }
    let index = json!({ "metadata": {}, "weight_map": index });
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// Puts the ids of the tiny checkpoint in the place of the published ones, as far as it has them.
fn take_token_ids(config: &mut Value, tiny: &Value) {
    let Some(fields) = config.as_object_mut() else {
        return;
    };
    fields.retain(|name, value| {
        let is_id = name.ends_with("token_id") || name.ends_with("token_index");
        match tiny.get(name) {
            Some(id) if is_id => *value = id.clone(),
            None if is_id => return false,
            _ => take_token_ids(value, &tiny[name.as_str()]),
        }
        true
    });
}

/// A directory as the hub has it, without weights and with the tokenizer of a tiny checkpoint.
fn write_directory(about: &Value) -> TempDir {
    let dir = TempDir::new().unwrap();
    let family = golden("families").join(about["family"].as_str().unwrap());
    const STANDING_IN: [&str; 6] = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "chat_template.json",
        "chat_template.jinja",
    ];
    for name in STANDING_IN {
        if family.join(name).is_file() {
            fs::copy(family.join(name), dir.path().join(name)).unwrap();
        }
    }
    let mut config = about["config"].clone();
    take_token_ids(&mut config, &json(&family.join("config.json")));
    let mut files = vec![("config.json", &config)];
    for (name, value) in [
        ("preprocessor_config.json", &about["preprocessor_config"]),
        (
            "video_preprocessor_config.json",
            &about["video_preprocessor_config"],
        ),
    ] {
        if value.is_object() {
            files.push((name, value));
        }
    }
    for (name, value) in files {
        fs::write(dir.path().join(name), value.to_string()).unwrap();
    }
    write_weights(dir.path(), about);
    dir
}

fn about(name: &str) -> Value {
    json(&golden("published").join(format!("{name}.json")))
}

/// What is said of a checkpoint whose longest input has so many tokens.
fn report(dir: &Path, context: usize) -> Report {
    let mut session = SessionConfig {
        device: DeviceKind::Cpu,
        ..SessionConfig::default()
    };
    session.cache.budget = context.min(4096);
    let options = Options {
        session: &session,
        memory: None,
    };
    Report::of(dir, &options)
}

fn check(known: &Known) -> Report {
    let name = known.name;
    let about = about(name);
    let dir = write_directory(&about);
    // The header holds every name, shape and type.
    if let Some(published) = about["file_bytes"].as_u64() {
        let file = fs::metadata(dir.path().join("model.safetensors")).unwrap();
        assert_eq!(
            file.len(),
            published,
            "{name}: length of the file on the hub"
        );
    }
    let report = report(dir.path(), known.context);
    assert!(report.complete(), "{name}: {:?}", report.problems);
    assert_eq!(
        (report.family.as_str(), report.decoder.as_str()),
        known.kind
    );
    assert_eq!(report.context, known.context, "{name}");
    let [layers, heads, size] = known.cache;
    let key_and_value = 2 * 4 * layers * heads * size;
    assert_eq!(report.kv_bytes_per_token, key_and_value, "{name}");
    let frame = report.frames.iter().find(|frame| frame.width == 640);
    assert_eq!(frame.map(|frame| frame.image_tokens), known.frame, "{name}");

    let holes = holes(&about);
    let left_alone = |hole: &Hole| {
        let mut patterns = about["buffers"].as_object().unwrap().keys();
        let mut unused = known.unused.iter();
        patterns.any(|one| stands_for(one, &hole.name))
            && !unused.any(|one| stands_for(one, &hole.name))
    };
    let (unused, used) = holes
        .iter()
        .filter(|hole| !left_alone(hole))
        .partition::<Vec<_>, _>(|hole| {
            let patterns = known.unused.iter();
            patterns.clone().any(|one| stands_for(one, &hole.name))
        });
    let mut unused = unused.iter().map(|hole| &hole.name).collect::<Vec<_>>();
    unused.sort();
    assert_eq!(report.unused.iter().collect::<Vec<_>>(), unused, "{name}");
    let parameters = about["parameters"].as_u64().unwrap();
    if about["packed"].is_object() {
        assert_eq!(report.parameters.total, parameters, "{name}");
        return report;
    }
    let used = used.iter().map(|hole| hole.elements()).sum::<u64>();
    assert_eq!(report.parameters.total, used, "{name}");
    let buffers = about["buffers"].as_object().unwrap();
    let all = holes.iter().filter(|hole| {
        let patterns = buffers.keys();
        !patterns.clone().any(|one| stands_for(one, &hole.name))
    });
    assert_eq!(all.map(Hole::elements).sum::<u64>(), parameters, "{name}");
    report
}

fn check_all(all: &[Known]) {
    for known in all {
        check(known);
    }
}

#[test]
fn text_decoders_are_complete() {
    check_all(&TEXT);
}

#[test]
fn smolvlm_and_idefics3_are_complete() {
    check_all(&SMOLVLM);
}

#[test]
fn llava_is_complete() {
    check_all(&LLAVA);
}

#[test]
fn internvl_is_complete() {
    check_all(&INTERNVL);
}

#[test]
fn lfm2_vl_is_complete() {
    check_all(&LFM2);
}

#[test]
fn qwen_vl_is_complete() {
    check_all(&QWEN);
}

/// What they hold beside is left alone, and known by its names.
#[test]
fn cosmos3_and_qwen3_5_are_complete() {
    for known in COSMOS3.iter().chain(&QWEN3_5) {
        let about = about(known.name);
        let beside = about["buffers"].as_object().unwrap();
        let report = check(known);
        let left_alone = report.left_alone.values().map(|amount| amount.tensors);
        let all = beside.keys().map(|pattern| names(pattern).len());
        assert_eq!(
            left_alone.sum::<usize>(),
            all.sum::<usize>(),
            "{}",
            known.name
        );
    }
}

/// Quantised ones: what stands for a matrix is known, and what becomes of it.
#[test]
fn quantised_checkpoints_are_complete() {
    for (known, told, kept) in [
        (
            &QUANTISED[0],
            "AWQ, integers of 4 bits in groups of 128",
            Some("Q4_1"),
        ),
        (
            &QUANTISED[1],
            "compressed-tensors, integers of 4 bits in groups of 128",
            Some("Q4_0"),
        ),
        (
            &QUANTISED[2],
            "FP8, floats of 8 bits in blocks of 128 x 128",
            None,
        ),
    ] {
        let report = check(known);
        let name = known.name;
        assert_eq!(report.quantised.as_deref(), Some(told), "{name}");
        let layers = known.cache[0] as usize;
        let blocks = kept.and_then(|kept| report.kept.get(kept));
        assert_eq!(
            blocks.map(|blocks| blocks.tensors),
            kept.map(|_| 7 * layers),
            "{name}"
        );
        // On the CPU floats are f32, but for the matrices of the tower, which stay of 16 bits.
        let (floats, parameters) = (4 * report.parameters.total, &report.parameters);
        let tower = 2 * parameters.vision..=parameters.vision * 21 / 10;
        let decoder = match kept {
            Some(_) => parameters.decoder / 2..=floats,
            None => 4 * parameters.decoder..=4 * parameters.decoder,
        };
        assert!(
            (decoder.start() + tower.start()..=decoder.end() + tower.end())
                .contains(&report.weight_bytes),
            "{name}: {}",
            report.weight_bytes
        );
        assert!(
            kept.is_none() || report.weight_bytes < floats / 2,
            "{name}: {}",
            report.weight_bytes
        );
    }
}

/// A matrix that is missing in one layer is found although nothing is read.
#[test]
fn a_layer_that_is_missing_is_named() {
    let mut about = about("SmolLM2-135M");
    let missing = "model.layers.{0..29}.mlp.up_proj.weight";
    let tensors = about["tensors"].as_object_mut().unwrap();
    let shape = tensors.remove(missing).unwrap();
    tensors.insert("model.layers.{0..28}.mlp.up_proj.weight".into(), shape);
    let report = report(write_directory(&about).path(), 8192);
    let problem = report.problems.join("\n");
    assert!(
        problem.contains("model.layers.29.mlp.up_proj.weight"),
        "{problem}"
    );
}

/// The largest of each kind, 16 GB and more, are inspected in a small part of that.
#[test]
fn inspecting_takes_little_memory() {
    const LARGEST: [&str; 5] = [
        "vicuna-7b-v1.5",
        "Idefics3-8B-Llama3",
        "llava-onevision-qwen2-7b-ov-hf",
        "InternVL3_5-8B-HF",
        "Qwen2.5-VL-7B-Instruct",
    ];
    for name in LARGEST {
        let dir = write_directory(&about(name));
        let peak = peak_of_inspecting(dir.path());
        assert!(
            (1..256 << 10).contains(&peak),
            "{name}: {peak} KiB at the peak"
        );
    }
}

/// The most memory that `inf_mllm inspect` takes, KiB.
fn peak_of_inspecting(dir: &Path) -> u64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inf_mllm"));
    command.args(["inspect", "--json"]).arg(dir);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let exit = loop {
        // The high-water mark only rises: the last one seen is that of almost the whole run.
        peak = peak.max(peak_kib(&status).unwrap_or(0));
        match child.try_wait().unwrap() {
            Some(exit) => break exit,
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    assert!(exit.success());
    peak
}

fn peak_kib(status: &str) -> Option<u64> {
    let status = fs::read_to_string(status).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
