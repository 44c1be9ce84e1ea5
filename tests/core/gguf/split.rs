//! Models that are split over several files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::precision::Precision;
use inf_mllm::model::text::TextModel;
use inf_mllm::model::weights::Quantization;
use proptest::prelude::*;
use tempfile::TempDir;

use super::projector::{mmproj, smolvlm, MMPROJ};
use super::writer::{quantised, text, File, HIDDEN};
use crate::support::{golden, try_load};

/// A folder with the parts of a model.
struct Parts {
    dir: TempDir,
    count: usize,
}

impl Parts {
    fn of(files: &[File]) -> Self {
        let dir = TempDir::new().unwrap();
        let parts = Self {
            dir,
            count: files.len(),
        };
        for (no, file) in files.iter().enumerate() {
            fs::write(parts.file(no), file.bytes()).unwrap();
        }
        parts
    }

    /// The tiny decoder in three parts.
    fn tiny() -> Self {
        Self::of(&File::decoder().split(4, 3))
    }

    fn name(&self, no: usize) -> String {
        format!("tiny-Q4_1-{:05}-of-{:05}.gguf", no + 1, self.count)
    }

    fn file(&self, no: usize) -> PathBuf {
        self.dir.path().join(self.name(no))
    }

    fn refused(&self, words: &[&str]) {
        for place in [self.file(0), self.dir.path().to_path_buf()] {
            let error = load(&place).err().expect("it loads").to_string();
            for word in words {
                assert!(error.contains(word), "{word:?} is not in: {error}");
            }
        }
    }

    /// The same with one part as `change` makes it.
    fn refused_with(no: usize, change: impl FnOnce(File) -> File, words: &[&str]) {
        let mut files = File::decoder().split(4, 3);
        let part = files.remove(no);
        files.insert(no, change(part));
        Self::of(&files).refused(words);
    }
}

fn load(path: &Path) -> Result<TextModel, String> {
    let loaded = TextModel::load(path, Quantization::Auto, Precision::F32, &Device::Cpu);
    loaded.map_err(|error| error.to_string())
}

fn logits(model: &TextModel) -> Tensor {
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: 16,
        ..CacheConfig::default()
    };
    let mut cache = BoundedCache::new(model.shape, &config, 0, DType::F32, &Device::Cpu).unwrap();
    let x = model.decoder.embed(&[2, 3, 4, 5]).unwrap();
    let marks = [Mark::default(); 4];
    let hidden = model.decoder.append(&x, &marks, &mut cache).unwrap();
    model.decoder.logits(&hidden).unwrap()
}

#[test]
fn the_parts_are_the_model_whichever_of_them_is_given() {
    for (name, in_first) in [("llama", 5), ("qwen3", 0), ("llama3_k", 1)] {
        let file = golden("gguf").join(format!("{name}.gguf"));
        let whole = load(&file).unwrap();
        let parts = Parts::of(&File::read(&file).split(in_first, 4));
        let places = (0..4).map(|no| parts.file(no));
        for place in places.chain([parts.dir.path().to_path_buf()]) {
            let split = load(&place).unwrap();
            let wanted = logits(&whole).to_vec2::<f32>().unwrap();
            assert_eq!(logits(&split).to_vec2::<f32>().unwrap(), wanted, "{name}");
            assert_eq!(split.weight_bytes, whole.weight_bytes);
        }
    }
}

#[test]
fn a_tower_is_found_beside_the_parts_and_may_be_split_itself() {
    let load = |parts: &Parts, no: usize| -> Mllm { try_load(&parts.file(no)).unwrap() };
    let parts = Parts::of(&smolvlm().split(3, 3));
    fs::copy(mmproj("mmproj-smolvlm"), parts.dir.path().join(MMPROJ)).unwrap();
    assert_eq!(load(&parts, 1).family.name, "SmolVLM");
    assert_eq!(try_load(parts.dir.path()).unwrap().family.name, "SmolVLM");
    fs::remove_file(parts.dir.path().join(MMPROJ)).unwrap();
    for (no, file) in File::read(&mmproj("mmproj-smolvlm"))
        .split(0, 2)
        .iter()
        .enumerate()
    {
        let name = format!("mmproj-{:05}-of-00002.gguf", no + 1);
        fs::write(parts.dir.path().join(name), file.bytes()).unwrap();
    }
    assert_eq!(load(&parts, 2).family.name, "SmolVLM");
    assert_eq!(try_load(parts.dir.path()).unwrap().family.name, "SmolVLM");
}

#[test]
fn parts_in_a_hub_cache_are_links_to_blobs() {
    let parts = Parts::tiny();
    for no in 0..3 {
        let blob = parts.dir.path().join(format!("{no:x}{no:x}{no:x}"));
        fs::rename(parts.file(no), &blob).unwrap();
        symlink(&blob, parts.file(no)).unwrap();
    }
    load(&parts.file(2)).unwrap();
}

#[test]
fn missing_parts_are_named() {
    let parts = Parts::tiny();
    fs::remove_file(parts.file(1)).unwrap();
    parts.refused(&["1 of its 3 parts is missing", &parts.name(1)]);
    // The first has the keys, and any other still says what is missing.
    fs::remove_file(parts.file(0)).unwrap();
    let error = load(&parts.file(2)).err().unwrap();
    for word in [
        "2 of its 3 parts are missing",
        &parts.name(0),
        &parts.name(1),
    ] {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
    // So many cannot be listed.
    let parts = Parts {
        count: 65535,
        ..Parts::of(&[])
    };
    let part = File::decoder()
        .set("split.no", Value::U16(0))
        .set("split.count", Value::U16(65535));
    fs::write(parts.file(0), part.bytes()).unwrap();
    parts.refused(&["65534 of its 65535 parts are missing", "65526 more"]);
    assert!(load(&parts.file(0)).err().unwrap().len() < 1000);
}

#[test]
fn parts_of_different_models_are_refused() {
    // Of another count, in another place, with another number of tensors in all.
    let count = |count| move |part: File| part.set("split.count", Value::U16(count));
    Parts::refused_with(
        1,
        count(2),
        &["00002-of-00003", "split.count is 2, expected 3"],
    );
    Parts::refused_with(
        1,
        count(1),
        &["00002-of-00003", "split.count is 1, expected 3"],
    );
    let no = |part: File| part.set("split.no", Value::U16(2));
    Parts::refused_with(1, no, &["00002-of-00003", "split.no is 2, expected 1"]);
    let tensors = |part: File| part.set("split.tensors.count", Value::I32(7));
    Parts::refused_with(
        1,
        tensors,
        &["00002-of-00003", "split.tensors.count is 7, expected 11"],
    );
    Parts::refused_with(
        2,
        |part| part.without("split.tensors.count"),
        &[
            "00003-of-00003",
            "split.tensors.count is missing, expected 11",
        ],
    );
    // With the same tensor, or with more or fewer than there are to be.
    let again = |part: File| part.with("output_norm.weight", super::writer::ones());
    let words = [
        "00003-of-00003",
        "output_norm.weight is in tiny-Q4_1-00001-of-00003.gguf too",
    ];
    Parts::refused_with(2, again, &words);
    let more = |part: File| part.with("more", super::writer::ones());
    Parts::refused_with(2, more, &["split.tensors.count is 11, expected 12"]);
    Parts::refused_with(
        2,
        |part| part.without("blk.0.ffn_norm.weight"),
        &["split.tensors.count is 11, expected 10"],
    );
    // By their keys.
    for (key, value) in [("general.architecture", "qwen3"), ("general.name", "Other")] {
        let other = |part: File| part.set(key, text(value));
        Parts::refused_with(
            1,
            other,
            &["00002-of-00003", key, value, "as in its first part"],
        );
    }
    // Of another shape, which is told with the file that it is in.
    let wide = quantised(16, HIDDEN * 2, GgmlDType::Q8_0);
    Parts::refused_with(
        1,
        |part| part.with("blk.0.attn_v.weight", wide),
        &["blk.0.attn_v.weight", "00002-of-00003", "[16, 64]"],
    );
}

#[test]
fn keys_of_splits_that_do_not_fit_are_named() {
    let first = |key: &str, value: Value, words: &[&str]| {
        let key = key.to_string();
        Parts::refused_with(0, |part| part.set(&key, value), words);
    };
    let range = "expected a whole number from 1 to 65535";
    first("split.count", Value::U16(0), &["split.count is 0", range]);
    first(
        "split.count",
        Value::U32(65536),
        &["split.count is 65536", range],
    );
    first(
        "split.count",
        Value::U64(u64::MAX),
        &["split.count is 18446744073709551615", range],
    );
    first("split.count", Value::I32(-3), &["split.count is -3", range]);
    first("split.count", text("3"), &["split.count is \"3\"", range]);
    first(
        "split.no",
        Value::U16(3),
        &["split.no is 3", "expected a whole number below 3"],
    );
    first(
        "split.no",
        Value::U16(1),
        &["part 2 of 3 by its keys", "part 1 of 3 by its name"],
    );
    first(
        "split.tensors.count",
        Value::I32(-1),
        &["split.tensors.count is -1"],
    );
    for key in ["split.no", "split.count"] {
        Parts::refused_with(0, |part| part.without(key), &[key, "missing"]);
    }
    Parts::refused_with(
        0,
        |part| part.without("general.architecture"),
        &["00001-of-00003", "general.architecture is missing"],
    );
}

#[test]
fn parts_are_found_by_their_names() {
    let parts = Parts::tiny();
    let other = parts.dir.path().join("first.gguf");
    fs::rename(parts.file(0), &other).unwrap();
    let error = load(&other).err().unwrap();
    for word in ["first.gguf", "part 1 of 3", "NAME-00001-of-00003.gguf"] {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
    // A file that is whole may be called so where there is but one.
    let (_dir, whole) = super::writer::written(&File::decoder().bytes());
    let only = whole.with_file_name("tiny-00001-of-00001.gguf");
    fs::rename(&whole, &only).unwrap();
    load(&only).unwrap();
    let one = File::decoder().set("split.count", Value::U16(1)).bytes();
    fs::write(&only, one).unwrap();
    load(&only).unwrap();
}

#[test]
fn what_is_no_part_is_named_with_its_file() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n";
    for (what, word) in [
        (pointer, "git lfs pull"),
        ("<!doctype html><html></html>", "web page"),
        ("Entry not found", "Entry not found"),
        ("", "does not begin with GGUF"),
    ] {
        let parts = Parts::tiny();
        fs::write(parts.file(1), what).unwrap();
        parts.refused(&["00002-of-00003.gguf", word]);
    }
    let parts = Parts::tiny();
    let bytes = fs::read(parts.file(2)).unwrap();
    fs::write(parts.file(2), &bytes[..bytes.len() - 40]).unwrap();
    parts.refused(&["00003-of-00003.gguf", "the file has"]);
    fs::remove_file(parts.file(2)).unwrap();
    fs::create_dir(parts.file(2)).unwrap();
    parts.refused(&["00003-of-00003.gguf", "a folder, expected a file"]);
    fs::remove_dir(parts.file(2)).unwrap();
    symlink("nowhere", parts.file(2)).unwrap();
    parts.refused(&["00003-of-00003.gguf", "a link to nowhere"]);
}

#[test]
fn sizes_of_a_part_that_overflow_are_refused() {
    let parts = Parts::tiny();
    let name = "blk.0.ffn_up.weight";
    let holds = |bytes: &[u8]| {
        bytes
            .windows(name.len())
            .position(|at| at == name.as_bytes())
    };
    let (no, mut bytes, at) = (0..3)
        .find_map(|no| {
            let bytes = fs::read(parts.file(no)).unwrap();
            let at = holds(&bytes)?;
            Some((no, bytes, at + name.len()))
        })
        .unwrap();
    assert!(no > 0, "the tensor is to be behind the first part");
    // After the name: rank (4 bytes), then two dimensions.
    bytes[at + 4..at + 20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x40].repeat(2));
    fs::write(parts.file(no), bytes).unwrap();
    parts.refused(&[&parts.name(no), name, "too large"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_parts_never_panic(
        no in 0usize..3,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let parts = Parts::tiny();
        let mut bytes = fs::read(parts.file(no)).unwrap();
        // Only the header can mislead a parser.
        let reach = bytes.len().min(if no == 0 { 1500 } else { 400 });
        for (at, value) in damage {
            bytes[at.index(reach)] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(parts.file(no), bytes).unwrap();
        let _ = load(&parts.file(0));
        let _ = load(parts.dir.path());
    }
}
