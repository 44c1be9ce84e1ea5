//! Damaged and unsupported GGUF files: an error that names the file and what is wrong, never a panic.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::text::TextModel;
use inf_mllm::model::weights::Quantization;
use proptest::prelude::*;
use tempfile::TempDir;

const HIDDEN: usize = 32;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 8;
const INNER: usize = 64;

/// A tiny decoder: metadata and tensors, to be changed and written.
struct Model {
    metadata: Vec<(&'static str, Value)>,
    tensors: Vec<(String, QTensor)>,
}

fn texts(values: &[&str]) -> Value {
    Value::Array(
        values
            .iter()
            .map(|text| Value::String((*text).to_string()))
            .collect(),
    )
}

fn quantised(rows: usize, width: usize, dtype: GgmlDType) -> QTensor {
    let values = (0..rows * width).map(|i| ((i * 7919 + rows) % 101) as f32 / 500.0 - 0.1);
    let tensor = Tensor::from_iter(values, &Device::Cpu).unwrap();
    let tensor = tensor.reshape((rows, width)).unwrap();
    QTensor::quantize(&tensor, dtype).unwrap()
}

fn ones() -> QTensor {
    let ones = Tensor::ones(HIDDEN, DType::F32, &Device::Cpu).unwrap();
    QTensor::quantize(&ones, GgmlDType::F32).unwrap()
}

impl Model {
    fn new() -> Self {
        let size = |value: usize| Value::U32(u32::try_from(value).unwrap());
        let kinds = [3, 3, 1, 1, 1, 1].map(Value::I32).to_vec();
        let metadata = vec![
            ("general.architecture", Value::String("llama".to_string())),
            ("llama.block_count", size(1)),
            ("llama.embedding_length", size(HIDDEN)),
            ("llama.feed_forward_length", size(INNER)),
            ("llama.attention.head_count", size(HEADS)),
            ("llama.attention.head_count_kv", size(KV_HEADS)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.rope.freq_base", Value::F32(1e4)),
            ("llama.rope.dimension_count", size(HEAD_DIM)),
            ("llama.context_length", size(128)),
            ("tokenizer.ggml.model", Value::String("gpt2".to_string())),
            ("tokenizer.ggml.pre", Value::String("smollm".to_string())),
            (
                "tokenizer.ggml.tokens",
                texts(&["<|im_start|>", "<|im_end|>", "a", "b", "ab", "1"]),
            ),
            ("tokenizer.ggml.token_type", Value::Array(kinds)),
            ("tokenizer.ggml.merges", texts(&["a b"])),
            ("tokenizer.ggml.eos_token_id", Value::U32(1)),
        ];
        let mut tensors = vec![
            (
                "token_embd".to_string(),
                quantised(6, HIDDEN, GgmlDType::Q8_0),
            ),
            ("output_norm".to_string(), ones()),
        ];
        for (name, rows, width) in [
            ("attn_q", HEADS * HEAD_DIM, HIDDEN),
            ("attn_k", KV_HEADS * HEAD_DIM, HIDDEN),
            ("attn_v", KV_HEADS * HEAD_DIM, HIDDEN),
            ("attn_output", HIDDEN, HEADS * HEAD_DIM),
            ("ffn_gate", INNER, HIDDEN),
            ("ffn_up", INNER, HIDDEN),
            ("ffn_down", HIDDEN, INNER),
        ] {
            let tensor = quantised(rows, width, GgmlDType::Q4_1);
            tensors.push((format!("blk.0.{name}"), tensor));
        }
        tensors.push(("blk.0.attn_norm".to_string(), ones()));
        tensors.push(("blk.0.ffn_norm".to_string(), ones()));
        for (name, _) in &mut tensors {
            name.push_str(".weight");
        }
        Self { metadata, tensors }
    }

    fn set(mut self, key: &'static str, value: Value) -> Self {
        self.metadata.retain(|(known, _)| *known != key);
        self.metadata.push((key, value));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.metadata.retain(|(known, _)| *known != name);
        self.tensors.retain(|(known, _)| known != name);
        self
    }

    fn with(mut self, name: &str, tensor: QTensor) -> Self {
        self.tensors.retain(|(known, _)| known != name);
        self.tensors.push((name.to_string(), tensor));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let metadata = self
            .metadata
            .iter()
            .map(|(key, value)| (*key, value))
            .collect::<Vec<_>>();
        let tensors = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
            .collect::<Vec<_>>();
        let mut bytes = std::io::Cursor::new(Vec::new());
        gguf_file::write(&mut bytes, &metadata, &tensors).unwrap();
        bytes.into_inner()
    }
}

/// A file that lives as long as its directory.
fn written(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("tiny.gguf");
    fs::write(&file, bytes).unwrap();
    (dir, file)
}

fn try_load(file: &Path) -> Result<TextModel, String> {
    TextModel::load(file, Quantization::None, DType::F32, &Device::Cpu)
        .map_err(|error| error.to_string())
}

fn refused(bytes: &[u8], words: &[&str]) {
    let (_dir, file) = written(bytes);
    let error = try_load(&file).err().expect("a damaged file loads");
    for word in ["tiny.gguf"].iter().chain(words) {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn a_whole_file_loads_and_runs() {
    let (_dir, file) = written(&Model::new().bytes());
    let model = try_load(&file).unwrap();
    assert_eq!(model.tokenizer.encode("ab1").unwrap(), [4, 5]);
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: 16,
        ..CacheConfig::default()
    };
    let shape = model.shape;
    let mut cache = BoundedCache::new(shape, &config, 0, DType::F32, &Device::Cpu).unwrap();
    let x = model.decoder.embed(&[2, 3, 4]).unwrap();
    let hidden = model
        .decoder
        .append(&x, &[Mark::default(); 3], &mut cache)
        .unwrap();
    assert_eq!(model.decoder.logits(&hidden).unwrap().dims(), [3, 6]);
}

#[test]
fn an_output_layer_of_its_own_is_used() {
    let head = quantised(6, HIDDEN, GgmlDType::F16);
    let (_dir, file) = written(&Model::new().with("output.weight", head).bytes());
    let model = try_load(&file).unwrap();
    assert!(!model.config.tied());
}

#[test]
fn what_is_no_gguf_file_is_said() {
    refused(b"", &["does not begin with GGUF"]);
    refused(b"PK\x03\x04 an archive", &["does not begin with GGUF"]);
    let mut old = Model::new().bytes();
    old[4] = 1;
    refused(&old, &["version is 1", "2 or 3"]);
    let error = try_load(Path::new("no/such.gguf")).err().unwrap();
    assert!(error.contains("no/such.gguf"), "{error}");
}

#[test]
fn a_cut_file_is_refused_wherever_it_is_cut() {
    let bytes = Model::new().bytes();
    // The last tensor may be followed by padding.
    for length in (0..bytes.len() - 32).step_by(97) {
        refused(&bytes[..length], &[]);
    }
    refused(&bytes[..bytes.len() - 40], &["tensor", "the file has"]);
}

#[test]
fn keys_that_do_not_fit_are_named() {
    let text = |text: &str| Value::String(text.to_string());
    for (key, value, expected) in [
        ("general.architecture", text("qwen2"), "\"llama\""),
        ("general.architecture", Value::U8(3), "a string"),
        ("llama.block_count", text("one"), "a whole number"),
        ("llama.block_count", Value::I32(-1), "a whole number"),
        (
            "llama.attention.head_count",
            Value::Array(vec![Value::U32(4)]),
            "a whole number",
        ),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Value::F32(f32::NAN),
            "a positive float",
        ),
        ("llama.rope.freq_base", Value::F32(0.0), "a positive float"),
        ("llama.rope.dimension_count", Value::U32(4), "8"),
        ("llama.rope.scaling.type", text("yarn"), "\"none\""),
        ("llama.expert_count", Value::U32(8), "0"),
        ("llama.vocab_size", Value::U32(7), "6"),
        ("general.alignment", Value::U32(0), "a multiple of 8"),
        ("tokenizer.ggml.model", text("llama"), "\"gpt2\""),
        ("tokenizer.ggml.pre", text("qwen2"), "\"smollm\""),
        (
            "tokenizer.ggml.token_type",
            Value::Array(vec![Value::I32(1)]),
            "6",
        ),
        (
            "tokenizer.ggml.merges",
            Value::Array(vec![Value::I32(1)]),
            "a string",
        ),
        ("tokenizer.ggml.eos_token_id", text("a"), "a token's id"),
    ] {
        refused(
            &Model::new().set(key, value).bytes(),
            &[key, "expected", expected],
        );
    }
    let kv_heads = Value::U32(3);
    refused(
        &Model::new()
            .set("llama.attention.head_count_kv", kv_heads)
            .bytes(),
        &["num_key_value_heads is 3", "a divisor"],
    );
}

#[test]
fn missing_keys_and_tensors_are_named() {
    for name in [
        "general.architecture",
        "llama.block_count",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "llama.context_length",
        "tokenizer.ggml.model",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
        "token_embd.weight",
        "blk.0.ffn_down.weight",
    ] {
        refused(&Model::new().without(name).bytes(), &[name, "missing"]);
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let name = "blk.0.attn_k.weight";
    let other = quantised(8, HIDDEN, GgmlDType::Q4_1);
    refused(
        &Model::new().with(name, other).bytes(),
        &[name, "[8, 32]", "expected [16, 32]"],
    );
    refused(
        &Model::new().with("blk.0.attn_q.bias", ones()).bytes(),
        &["blk.0.attn_q.bias", "no biases"],
    );
    // More layers than there are: found at the first missing tensor, whatever the number.
    refused(
        &Model::new()
            .set("llama.block_count", Value::U64(u64::MAX >> 1))
            .bytes(),
        &["blk.1.attn_norm.weight", "missing"],
    );
    refused(
        &Model::new()
            .set("llama.attention.key_length", Value::U64(1 << 62))
            .bytes(),
        &["expected 4611686018427387904"],
    );
}

/// The bytes of a file with one entry of the table of tensors changed: `change` gets what follows the name.
fn with_entry(name: &str, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut bytes = Model::new().bytes();
    let at = bytes
        .windows(name.len())
        .position(|window| window == name.as_bytes())
        .unwrap();
    change(&mut bytes[at + name.len()..]);
    bytes
}

#[test]
fn sizes_that_overflow_and_shared_bytes_are_refused() {
    let name = "blk.0.ffn_up.weight";
    // After the name: rank (4 bytes), two dimensions (8 each), element type (4), offset (8).
    let huge = with_entry(name, |entry| {
        entry[4..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x40].repeat(2));
    });
    refused(&huge, &[name, "too large"]);
    let rank = with_entry(name, |entry| entry[0] = 200);
    refused(&rank, &[name, "200 dimensions"]);
    let kind = with_entry(name, |entry| entry[20] = 99);
    refused(&kind, &[name, "element type is 99"]);
    let far = with_entry(name, |entry| entry[24..32].fill(0xff));
    refused(&far, &[name, "offset"]);
    let far = with_entry(name, |entry| {
        entry[24..32].copy_from_slice(&(u64::MAX - 31).to_le_bytes())
    });
    refused(&far, &[name, "the file has"]);
    let shared = with_entry(name, |entry| entry[24..32].fill(0));
    refused(&shared, &["within the tensor before it"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_files_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = Model::new().bytes();
        // Only the header can mislead a parser.
        let reach = bytes.len().min(2200);
        for (at, value) in damage {
            bytes[at.index(reach)] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let (_dir, file) = written(&bytes);
        let _ = try_load(&file);
    }
}
