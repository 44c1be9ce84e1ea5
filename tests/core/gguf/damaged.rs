//! Damaged and unsupported GGUF files: an error that names the file and what is wrong, never a panic.

use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::precision::Precision;
use inf_mllm::model::text::TextModel;
use inf_mllm::model::weights::Quantization;
use proptest::prelude::*;

use super::writer::{floats, ones, quantised, size, text, texts, written, File, HIDDEN};
use crate::support::golden;

/// The tiny decoder.
type Model = File;

fn try_load(file: &Path) -> Result<TextModel, String> {
    let load = |quantization| TextModel::load(file, quantization, Precision::F32, &Device::Cpu);
    let widened = load(Quantization::None).map_err(|error| error.to_string());
    let kept = load(Quantization::Auto).map_err(|error| error.to_string());
    assert_eq!(widened.as_ref().err(), kept.as_ref().err());
    widened
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
    let (_dir, file) = written(&Model::decoder().bytes());
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
    let (_dir, file) = written(&Model::decoder().with("output.weight", head).bytes());
    let model = try_load(&file).unwrap();
    assert!(!model.config.tied());
}

#[test]
fn what_is_no_gguf_file_is_said() {
    refused(b"", &["does not begin with GGUF"]);
    refused(b"PK\x03\x04 an archive", &["does not begin with GGUF"]);
    let mut old = Model::decoder().bytes();
    old[4] = 1;
    refused(&old, &["version is 1", "2 or 3"]);
    let error = try_load(Path::new("no/such.gguf")).err().unwrap();
    assert!(error.contains("no/such.gguf"), "{error}");
}

#[test]
fn a_cut_file_is_refused_wherever_it_is_cut() {
    let bytes = Model::decoder().bytes();
    // The last tensor may be followed by padding.
    for length in (0..bytes.len() - 32).step_by(97) {
        refused(&bytes[..length], &[]);
    }
    refused(&bytes[..bytes.len() - 40], &["tensor", "the file has"]);
}

#[test]
fn keys_that_do_not_fit_are_named() {
    for (key, value, expected) in [
        ("general.architecture", text("gemma3"), "\"qwen2\""),
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
        ("llama.rope.scaling.type", text("yarn"), "\"linear\""),
        ("llama.expert_count", Value::U32(8), "0"),
        ("llama.vocab_size", Value::U32(7), "6"),
        ("general.alignment", Value::U32(0), "a multiple of 8"),
        ("tokenizer.ggml.model", text("bert"), "\"gpt2\""),
        ("tokenizer.ggml.pre", text("tekken"), "\"smollm\""),
        ("tokenizer.ggml.add_bos_token", size(1), "a truth value"),
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
            &Model::decoder().set(key, value).bytes(),
            &[key, "expected", expected],
        );
    }
    let kv_heads = Value::U32(3);
    refused(
        &Model::decoder()
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
        refused(&Model::decoder().without(name).bytes(), &[name, "missing"]);
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let name = "blk.0.attn_k.weight";
    let other = quantised(8, HIDDEN, GgmlDType::Q4_1);
    refused(
        &Model::decoder().with(name, other).bytes(),
        &[name, "[8, 32]", "expected [16, 32]"],
    );
    refused(
        &Model::decoder().with("blk.0.attn_q.bias", ones()).bytes(),
        &["blk.0.attn_q.bias", "no place"],
    );
    let norm = Model::decoder().with("blk.0.attn_q_norm.weight", ones());
    refused(&norm.bytes(), &["blk.0.attn_q_norm.weight", "no place"]);
    let layer = Model::decoder().with("blk.1.attn_norm.weight", ones());
    refused(&layer.bytes(), &["blk.1.attn_norm.weight", "1 layers"]);
    // More layers than there are: found at the first missing tensor, whatever the number.
    refused(
        &Model::decoder()
            .set("llama.block_count", Value::U64(u64::MAX >> 1))
            .bytes(),
        &["blk.1.attn_norm.weight", "missing"],
    );
    refused(
        &Model::decoder()
            .set("llama.attention.key_length", Value::U64(1 << 62))
            .bytes(),
        &["expected 4611686018427387904"],
    );
}

#[test]
fn scaled_frequencies_that_are_not_llama3s_are_refused() {
    let name = "rope_freqs.weight";
    let with = |factors: &[f32]| {
        let factors = Tensor::new(factors, &Device::Cpu).unwrap();
        Model::decoder().with(name, floats(&factors))
    };
    let (_dir, file) = written(&with(&[1.0, 1.0, 8.0, 8.0]).bytes());
    assert!(try_load(&file).is_ok());
    refused(
        &with(&[1.0, 4.0, 2.0, 8.0]).bytes(),
        &[name, "1 to 8", "llama3"],
    );
    refused(&with(&[1.0, 8.0]).bytes(), &[name, "[2]", "expected [4]"]);
    let twice = with(&[1.0, 1.0, 8.0, 8.0]).set("llama.rope.scaling.type", text("linear"));
    refused(
        &twice.bytes(),
        &["llama.rope.scaling.type", "\"none\"", name],
    );
}

#[test]
fn a_linear_scaling_needs_its_factor() {
    let linear = || Model::decoder().set("llama.rope.scaling.type", text("linear"));
    refused(&linear().bytes(), &["llama.rope.scaling.factor", "missing"]);
    let (_dir, file) = written(
        &linear()
            .set("llama.rope.scaling.factor", Value::F32(2.0))
            .bytes(),
    );
    assert!(try_load(&file).is_ok());
}

#[test]
fn a_sentencepiece_vocabulary_needs_a_score_for_every_piece() {
    let with = |model: Model| model.set("tokenizer.ggml.model", text("llama"));
    let scores = |count: usize| Value::Array(vec![Value::F32(-1.0); count]);
    let key = "tokenizer.ggml.scores";
    refused(&with(Model::decoder()).bytes(), &[key, "missing"]);
    refused(
        &with(Model::decoder().set(key, scores(5))).bytes(),
        &[key, "is 5", "expected 6"],
    );
    let long = "a".repeat(257);
    let tokens = texts(&["<|im_start|>", "<|im_end|>", "a", "b", "ab", &long]);
    let model = Model::decoder()
        .set(key, scores(6))
        .set("tokenizer.ggml.tokens", tokens);
    refused(
        &with(model).bytes(),
        &["tokenizer.ggml.tokens[5]", "257 bytes", "at most 256"],
    );
    let (_dir, file) = written(&with(Model::decoder().set(key, scores(6))).bytes());
    assert_eq!(
        try_load(&file).unwrap().tokenizer.encode("ab").unwrap(),
        [4]
    );
}

/// The bytes of a file with one entry of the table of tensors changed: `change` gets what follows the name.
fn with_entry(name: &str, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut bytes = Model::decoder().bytes();
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
        let mut bytes = Model::decoder().bytes();
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

    #[test]
    fn damaged_files_of_every_kind_never_panic(
        name in prop::sample::select(vec!["llama", "llama3_k", "qwen3", "mmproj-smolvlm"]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = std::fs::read(golden("gguf").join(format!("{name}.gguf"))).unwrap();
        // Keys come first, names of tensors after the vocabulary.
        let reach = bytes.len().min(16_000);
        for (at, value) in damage {
            bytes[at.index(reach)] = value;
        }
        let (_dir, file) = written(&bytes);
        let _ = try_load(&file);
    }
}
