//! A checkpoint's directory as the hub has it, with holes in the place of its numbers.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::{json, Map, Value};
use tempfile::TempDir;

use crate::support::{golden, json};

/// A tensor in a file.
pub struct Hole {
    pub name: String,
    dtype: String,
    pub shape: Vec<u64>,
    /// Its numbers, where it is no hole.
    values: Vec<i64>,
}

impl Hole {
    pub fn elements(&self) -> u64 {
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
pub fn stands_for(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => names(pattern).iter().any(|one| one == name),
    }
}

/// All tensors of a checkpoint: parameters, what stands for quantised ones, then old buffers.
pub fn holes(about: &Value) -> Vec<Hole> {
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
pub fn write_directory(about: &Value) -> TempDir {
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
