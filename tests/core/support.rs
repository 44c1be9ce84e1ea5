//! Paths, golden files and small models that several tests use.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use inf_mllm::cache::{
    BoundedCache, CacheConfig, CacheShape, KvBuffer, KvStorage, Mark, PolicyKind,
};
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::decoder::{Config, Decoder};
use inf_mllm::model::family::model_type;
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::precision::Precision;
use inf_mllm::model::weights::{Names, Quantization};
use inf_mllm::model::ModelError;
use inf_mllm::stream::grammar::Shot;
use inf_mllm::stream::{CameraImage, ImageData, Instruction, Session, SessionConfig};
use serde_json::Value;
use tempfile::TempDir;

/// Long enough for a busy machine; every wait ends as soon as its condition holds.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn golden(name: &str) -> PathBuf {
    root().join("tests/golden").join(name)
}

pub fn tiny_dir() -> PathBuf {
    golden("tiny_smolvlm")
}

pub fn demo_dir() -> PathBuf {
    root().join("models/demo")
}

pub fn load(dir: &Path) -> Mllm {
    try_load(dir).unwrap()
}

pub fn try_load(dir: &Path) -> Result<Mllm, ModelError> {
    let checkpoint = Checkpoint::open(dir)?;
    Mllm::load(
        &checkpoint,
        Quantization::Auto,
        Precision::F32,
        &Device::Cpu,
    )
}

/// The decoder of a directory without a tokenizer.
pub fn decoder_alone(dir: &Path) -> (Decoder, CacheShape) {
    decoder_alone_as(dir, DType::F32)
}

/// The same with weights of another type.
pub fn decoder_alone_as(dir: &Path, dtype: DType) -> (Decoder, CacheShape) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let kind = model_type(&checkpoint).unwrap();
    let config = Config::from_json(checkpoint.json("config.json").unwrap(), &kind).unwrap();
    let weights = checkpoint
        .weights(Names::default(), Quantization::None, dtype, &Device::Cpu)
        .unwrap();
    let (text, head) = match config {
        Config::Llama(_) => ("model", "lm_head"),
        Config::GptNeoX(_) => ("gpt_neox", "embed_out"),
        Config::Lfm2(_) | Config::Qwen3_5(_) => ("model", "lm_head"),
    };
    let decoder = Decoder::new(&config, &weights.pp(text), &weights.pp(head)).unwrap();
    (decoder, config.cache_shape().unwrap())
}

/// A copy of the tiny checkpoint, to be changed.
pub fn tiny_copy() -> TempDir {
    let dir = TempDir::new().unwrap();
    copy_tiny_to(dir.path());
    dir
}

/// Puts the tiny checkpoint's files into a folder, which is made if it is not there.
pub fn copy_tiny_to(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    for entry in std::fs::read_dir(tiny_dir()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
}

pub fn json(file: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// The files of a checkpoint's weights: those of its index, or the only one.
pub fn weight_files(dir: &Path) -> Vec<PathBuf> {
    let index = dir.join("model.safetensors.index.json");
    if !index.is_file() {
        return vec![dir.join("model.safetensors")];
    }
    let map = json(&index)["weight_map"].take();
    let files = map.as_object().unwrap().values();
    let files = files.map(|file| dir.join(file.as_str().unwrap()));
    files.collect::<BTreeSet<_>>().into_iter().collect()
}

pub fn tensors(file: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

pub fn ids(tensor: &Tensor) -> Vec<u32> {
    let flat = tensor.flatten_all().unwrap();
    flat.to_dtype(DType::U32).unwrap().to_vec1().unwrap()
}

/// Largest absolute difference of two tensors of one shape.
pub fn deviation(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b)
        .unwrap()
        .abs()
        .unwrap()
        .max_all()
        .unwrap()
        .to_scalar::<f32>()
        .unwrap()
}

/// Logits of a text in a cache that holds all of it, `[tokens, vocab]`.
pub fn logits(decoder: &Decoder, shape: CacheShape, ids: &[u32]) -> Tensor {
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: ids.len().max(64),
        ..CacheConfig::default()
    };
    let mut cache = BoundedCache::new(shape, &config, 0, DType::F32, &Device::Cpu).unwrap();
    let marks = vec![Mark::default(); ids.len()];
    let hidden = decoder.append(&decoder.embed(ids).unwrap(), &marks, &mut cache);
    decoder.logits(&hidden.unwrap()).unwrap()
}

/// What is left of `numbers` (`[heads, tokens, head_dim]`) that were stored, f32.
pub fn stored(numbers: &Tensor, storage: KvStorage) -> Tensor {
    let dims = numbers.dims3().unwrap();
    let buffer = KvBuffer::new(storage.of(DType::F32), dims, &Device::Cpu).unwrap();
    buffer.write(numbers, 0).unwrap();
    let stored = buffer.first(dims.1).unwrap();
    stored.to_dtype(DType::F32).unwrap()
}

/// A session on the tiny random model, small enough that a few frames make it evict.
pub fn tiny_config() -> SessionConfig {
    let mut config = SessionConfig {
        model_dir: tiny_dir(),
        system_prompt: "Be brief.".to_string(),
        max_new_tokens: 8,
        ..SessionConfig::default()
    };
    config.cache.budget = 256;
    config
}

pub fn tiny_session() -> Session {
    Session::new(tiny_config()).unwrap()
}

/// A picture of one colour with a stamp in milliseconds.
pub fn picture(stamp_ms: i64, colour: [u8; 3]) -> CameraImage {
    const SIDE: u32 = 24;
    let picture = RgbImage::from_pixel(SIDE, SIDE, image::Rgb(colour));
    camera_image(&picture, stamp_ms * 1_000_000)
}

/// A picture as a camera sends it, raw.
pub fn camera_image(picture: &RgbImage, stamp_ns: i64) -> CameraImage {
    let data = ImageData::Raw {
        encoding: "rgb8".to_string(),
        width: picture.width(),
        height: picture.height(),
        step: picture.width() * 3,
        is_bigendian: false,
        data: picture.as_raw().clone(),
    };
    CameraImage::recorded(stamp_ns, "camera", data)
}

/// A frame of the only camera, as far as it matters to the text around it.
pub fn shot(elapsed_ns: i64) -> Shot<'static> {
    Shot {
        grid: [1, 1, 1],
        elapsed_ns,
        camera: (0, None),
    }
}

pub fn instruction(id: &str, text: &str) -> Instruction {
    Instruction {
        id: id.to_string(),
        ..Instruction::new(text)
    }
}
