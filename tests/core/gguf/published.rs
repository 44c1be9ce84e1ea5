//! Published GGUF files by their keys, names and shapes alone, as `tests/golden/published/gguf` has them: written with holes in the place of
//! the numbers, and inspected, which builds the model without reading any.

use std::fs;
use std::io::Write;
use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use inf_mllm::model::DeviceKind;
use inf_mllm::stream::inspect::{Options, Report};
use inf_mllm::stream::SessionConfig;
use serde_json::Value as Json;
use tempfile::TempDir;

use super::writer::{text, texts, File};
use crate::published::files::names;
use crate::support::{golden, json};

/// What is known of a checkpoint's files.
struct Known {
    name: &'static str,
    /// [`Report::family`] and [`Report::decoder`].
    kind: (&'static str, &'static str),
    context: usize,
    /// Layers, heads of keys and values, and their size.
    cache: [u64; 3],
    /// Tokens of a frame of 640 x 480 pixels.
    frame: usize,
}

#[rustfmt::skip]
const FILES: [Known; 9] = [
    Known { name: "Qwen2-VL-2B-Instruct", kind: ("Qwen2-VL", "qwen2_vl_text"), context: 32_768, cache: [28, 2, 128], frame: 23 * 17 },
    Known { name: "Qwen2.5-VL-3B-Instruct", kind: ("Qwen2.5-VL", "qwen2_vl_text"), context: 128_000, cache: [36, 2, 128], frame: 23 * 17 },
    Known { name: "Qwen2.5-VL-7B-Instruct", kind: ("Qwen2.5-VL", "qwen2_vl_text"), context: 128_000, cache: [28, 4, 128], frame: 23 * 17 },
    // Cosmos-Reason2-2B and 8B have the same files as the checkpoints that they were trained from.
    Known { name: "Qwen3-VL-2B-Instruct", kind: ("Qwen3-VL", "qwen3_vl_text"), context: 262_144, cache: [28, 8, 128], frame: 20 * 15 },
    Known { name: "Qwen3-VL-4B-Instruct", kind: ("Qwen3-VL", "qwen3_vl_text"), context: 262_144, cache: [36, 8, 128], frame: 20 * 15 },
    Known { name: "Qwen3-VL-8B-Instruct", kind: ("Qwen3-VL", "qwen3_vl_text"), context: 262_144, cache: [36, 8, 128], frame: 20 * 15 },
    Known { name: "LFM2-VL-450M", kind: ("LFM2-VL", "lfm2"), context: 128_000, cache: [6, 8, 64], frame: 18 * 13 },
    Known { name: "LFM2.5-VL-450M", kind: ("LFM2-VL", "lfm2"), context: 128_000, cache: [6, 8, 64], frame: 18 * 13 },
    Known { name: "LFM2.5-VL-1.6B", kind: ("LFM2-VL", "lfm2"), context: 128_000, cache: [6, 8, 64], frame: 18 * 13 },
];

const ALIGNMENT: usize = 32;

/// `name: TYPE` in its parts.
fn typed(described: &str) -> (&str, &str) {
    described.split_once(": ").unwrap()
}

/// A key's value with its type.
fn value(kind: &str, json: &Json) -> Value {
    match (kind, json) {
        ("ARRAY", Json::Array(items)) => {
            let kind = match &items[0] {
                Json::Bool(_) => "BOOL",
                Json::Number(number) if number.is_f64() => "FLOAT32",
                _ => "INT32",
            };
            Value::Array(items.iter().map(|item| value(kind, item)).collect())
        }
        ("BOOL", Json::Bool(truth)) => Value::Bool(*truth),
        ("UINT32", Json::Number(number)) => Value::U32(number.as_u64().unwrap() as u32),
        ("INT32", Json::Number(number)) => Value::I32(number.as_i64().unwrap() as i32),
        ("FLOAT32", Json::Number(number)) => Value::F32(number.as_f64().unwrap() as f32),
        ("STRING", Json::String(string)) => text(string),
        other => panic!("unexpected value {other:?}"),
    }
}

/// The bytes of a string behind its length.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Type and value, or the value alone within an array.
fn put_value(out: &mut Vec<u8>, value: &Value, with_type: bool) {
    let kind: u32 = match value {
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
        other => panic!("unexpected value {other:?}"),
    };
    if with_type {
        out.extend(kind.to_le_bytes());
    }
    match value {
        Value::U32(number) => out.extend(number.to_le_bytes()),
        Value::I32(number) => out.extend(number.to_le_bytes()),
        Value::F32(number) => out.extend(number.to_le_bytes()),
        Value::Bool(truth) => out.push(u8::from(*truth)),
        Value::String(text) => put_text(out, text),
        Value::Array(items) => {
            let mut first = Vec::new();
            put_value(&mut first, &items[0], true);
            out.extend(&first[..4]);
            out.extend((items.len() as u64).to_le_bytes());
            items.iter().for_each(|item| put_value(out, item, false));
        }
        _ => {}
    }
}

/// Writes a file of these keys and of tensors without numbers; the bytes that their data takes.
fn write_hollow(file: &Path, keys: &[(String, Value)], tensors: &Json) -> u64 {
    let tensors = tensors.as_object().unwrap().iter();
    let tensors = tensors.flat_map(|(described, shape)| {
        let (pattern, kind) = typed(described);
        let shape = serde_json::from_value::<Vec<u64>>(shape.clone()).unwrap();
        names(pattern)
            .into_iter()
            .map(move |name| (name, kind, shape.clone()))
    });
    let tensors = tensors.collect::<Vec<_>>();
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        put_text(&mut out, key);
        put_value(&mut out, value, true);
    }
    let (mut offset, mut bytes) = (0, 0);
    for (name, kind, shape) in &tensors {
        let elements = shape.iter().product::<u64>();
        let (id, size) = match *kind {
            "F32" => (0u32, 4 * elements),
            "F16" => (1, 2 * elements),
            "Q8_0" => (8, elements / 32 * 34),
            other => panic!("unexpected type {other}"),
        };
        put_text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        let dims = shape.iter().rev();
        dims.for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(id.to_le_bytes());
        out.extend(u64::to_le_bytes(offset));
        offset += size.next_multiple_of(ALIGNMENT as u64);
        bytes += size;
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    let mut hollow = fs::File::create(file).unwrap();
    hollow.write_all(&out).unwrap();
    hollow.set_len(out.len() as u64 + offset).unwrap();
    bytes
}

fn keys(part: &Json) -> Vec<(String, Value)> {
    let architecture = part["architecture"].as_str().unwrap();
    let mut keys = vec![("general.architecture".to_string(), text(architecture))];
    for (described, given) in part["keys"].as_object().unwrap() {
        let (key, kind) = typed(described);
        keys.push((key.to_string(), value(kind, given)));
    }
    keys
}

/// The tokenizer of the tiny checkpoint of the family, with as many tokens as the decoder has.
fn tokenizer(family: &str, size: usize) -> Vec<(String, Value)> {
    let tiny = File::read(&golden("gguf").join(family).join("model-f32.gguf"));
    let mut tokens = tiny.texts("tokenizer.ggml.tokens");
    tokens.extend((tokens.len()..size).map(|id| format!("[PAD{id}]")));
    let tokens = tokens.iter().map(String::as_str).collect::<Vec<_>>();
    let mut keys = tiny.keys("tokenizer.");
    for (key, value) in &mut keys {
        match (key.as_str(), value) {
            ("tokenizer.ggml.tokens", value) => *value = texts(&tokens),
            ("tokenizer.ggml.token_type", Value::Array(kinds)) => {
                // Unused ones.
                kinds.resize(size, Value::I32(5));
            }
            _ => {}
        }
    }
    keys
}

fn check(known: &Known) {
    let name = known.name;
    let file = format!("published/gguf/{name}.json");
    let about = json(&golden(&file));
    let dir = TempDir::new().unwrap();
    let decoder = &about["decoder"];
    let embedding = decoder["tensors"].as_object().unwrap().iter();
    let embedding = embedding.map(|(described, shape)| (typed(described).0, shape));
    let mut embedding = embedding.filter(|(name, _)| *name == "token_embd.weight");
    let vocabulary = embedding.next().unwrap().1[0].as_u64().unwrap() as usize;
    let mut all = keys(decoder);
    all.extend(tokenizer(about["family"].as_str().unwrap(), vocabulary));
    for (part, keys) in [("decoder", all), ("projector", keys(&about["projector"]))] {
        let path = dir.path().join(format!("{part}.gguf"));
        let bytes = write_hollow(&path, &keys, &about[part]["tensors"]);
        assert_eq!(about[part]["bytes"], bytes, "{name}: {part}");
    }

    let mut session = SessionConfig {
        device: DeviceKind::Cpu,
        ..SessionConfig::default()
    };
    session.cache.budget = 4096;
    let options = Options {
        session: &session,
        memory: None,
    };
    let report = Report::of(dir.path(), &options);
    assert!(report.complete(), "{name}: {:?}", report.problems);
    let kind = (report.family.as_str(), report.decoder.as_str());
    assert_eq!(kind, known.kind, "{name}");
    assert_eq!(report.context, known.context, "{name}");
    assert!(report.unused.is_empty(), "{name}: {:?}", report.unused);
    let [layers, heads, size] = known.cache;
    let key_and_value = 2 * 4 * layers * heads * size;
    assert_eq!(report.kv_bytes_per_token, key_and_value, "{name}");
    let frame = report.frames.iter().find(|frame| frame.width == 640);
    assert_eq!(frame.unwrap().image_tokens, known.frame, "{name}");
    // The same parameters as the checkpoint that the files were made from.
    let made_from = json(&golden(&format!("published/{name}.json")));
    assert_eq!(made_from["parameters"], report.parameters.total, "{name}");
}

#[test]
fn they_are_complete() {
    FILES.iter().for_each(check);
    let listed = fs::read_dir(golden("published/gguf")).unwrap().count();
    assert_eq!(listed, FILES.len());
}
