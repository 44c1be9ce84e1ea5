//! Every form in which matrices are stored, against transformers' logits for the numbers that they stand for.

use std::path::PathBuf;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::weights::{Matrix, Names, Quantization};
use serde_json::Value;

use super::{load, Loaded};
use crate::support::{deviation, golden, ids, json, tensors};

/// A golden checkpoint.
struct Golden {
    name: String,
    dir: PathBuf,
    about: Value,
    ids: Vec<u32>,
    logits: Tensor,
}

fn all() -> Vec<Golden> {
    let open = |dir: PathBuf| {
        let expected = tensors(&dir.join("expected.safetensors"));
        Golden {
            name: dir.file_name().unwrap().to_string_lossy().into_owned(),
            about: json(&dir.join("about.json")),
            ids: ids(&expected["input_ids"]),
            logits: expected["logits"].squeeze(0).unwrap(),
            dir,
        }
    };
    let dirs = std::fs::read_dir(golden("quantised")).unwrap();
    let mut all = dirs
        .map(|dir| open(dir.unwrap().path()))
        .collect::<Vec<_>>();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

impl Golden {
    fn load(&self, quantization: Quantization, dtype: DType) -> Loaded {
        let loaded = load(&self.dir, quantization, dtype);
        loaded.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// How far the logits are off.
    fn off(&self, model: &Loaded) -> f32 {
        let config = CacheConfig {
            policy: PolicyKind::Full,
            budget: 128,
            ..CacheConfig::default()
        };
        let x = model.decoder.embed(&self.ids).unwrap();
        let cache = BoundedCache::new(model.shape, &config, 0, x.dtype(), &Device::Cpu);
        let marks = vec![Mark::default(); self.ids.len()];
        let hidden = model.decoder.append(&x, &marks, &mut cache.unwrap());
        let logits = model.decoder.logits(&hidden.unwrap()).unwrap();
        deviation(&logits.to_dtype(DType::F32).unwrap(), &self.logits)
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(&self.dir).unwrap()
    }
}

/// Matrices of the golden checkpoints with their shapes.
const MATRICES: [(&str, [usize; 2]); 3] = [
    ("self_attn.k_proj", [32, 64]),
    ("mlp.up_proj", [128, 64]),
    ("mlp.down_proj", [64, 128]),
];

#[test]
fn widened_numbers_give_the_logits_of_transformers() {
    let all = all();
    assert!(all.len() >= 20, "{} golden checkpoints", all.len());
    for golden in &all {
        let tolerance = golden.about["tolerance"].as_f64().unwrap() as f32;
        let off = golden.off(&golden.load(Quantization::None, DType::F32));
        assert!(off <= tolerance, "{}: logits differ by {off}", golden.name);
        // Numbers as half floats are off by 2^-12 of each, as bf16 by 2^-9.
        for (dtype, most) in [(DType::F16, 0.1), (DType::BF16, 0.8)] {
            let off = golden.off(&golden.load(Quantization::None, dtype));
            assert!(off <= most, "{} as {dtype:?}: {off}", golden.name);
        }
        for (mistake, change) in golden.about["perturbed"].as_object().unwrap() {
            assert!(change.as_f64().unwrap() > 1.0, "{}: {mistake}", golden.name);
        }
    }
}

/// With blocks the inputs of a product are rounded to 8 bits, so that logits differ by what that makes.
#[test]
fn blocks_give_logits_that_are_near() {
    for golden in &all() {
        let off = golden.off(&golden.load(Quantization::Auto, DType::F32));
        assert!(off <= 0.3, "{}: {off}", golden.name);
    }
}

/// What `auto` makes of each form.
const KEPT: [(&str, Option<&str>); 20] = [
    ("awq_32", Some("Q4_1")),
    ("awq_64", Some("Q4_1")),
    ("awq_rows", Some("Q4_1")),
    ("bytes_8", Some("Q8_0")),
    ("fp8_blocks", None),
    ("fp8_compressed_blocks", None),
    ("fp8_modelopt", None),
    ("fp8_one_scale", None),
    ("fp8_rows", None),
    ("fp8_uneven_blocks", None),
    ("gptq_4", Some("Q4_0")),
    ("gptq_4_asymmetric", Some("Q4_1")),
    ("gptq_4_ordered", None),
    ("gptq_4_v2", Some("Q4_1")),
    ("gptq_8", Some("Q8_0")),
    ("gptq_8_asymmetric", None),
    ("packed_4", Some("Q4_0")),
    ("packed_4_asymmetric", Some("Q4_1")),
    ("packed_4_ordered", None),
    ("packed_8", Some("Q8_0")),
];

/// Blocks hold the widened numbers themselves where zero is in the middle; where each group has a zero, they are off by at most
/// 15 / 2048 of the distance of two integers.
#[test]
fn blocks_hold_the_same_numbers() {
    let all = all();
    assert_eq!(all.len(), KEPT.len());
    let mut largest = 0f32;
    for (golden, (name, blocks)) in all.iter().zip(KEPT) {
        assert_eq!(golden.name, name);
        let weights = |quantization| {
            let (names, device) = (Names::default(), Device::Cpu);
            let weights = golden
                .checkpoint()
                .weights(names, quantization, DType::F32, &device);
            weights.unwrap().pp("model.layers.0")
        };
        let (auto, none) = (weights(Quantization::Auto), weights(Quantization::None));
        for (matrix, [rows, width]) in MATRICES {
            let order = (0..rows as u32).rev().collect::<Vec<_>>();
            for order in [None, Some(order.as_slice())] {
                let take = |weights: &inf_mllm::model::weights::Weights| {
                    weights
                        .pp(matrix)
                        .matrix((rows, width), "weight", order)
                        .unwrap()
                };
                let (Matrix::Dense(wide), kept) = (take(&none), take(&auto)) else {
                    panic!("{name}: {matrix} is not widened");
                };
                let kept = match (kept, blocks) {
                    (Matrix::Dense(same), None) => same,
                    (Matrix::Quantised(kept), Some(blocks)) => {
                        assert_eq!(format!("{:?}", kept.dtype()), blocks, "{name}");
                        kept.dequantize(&Device::Cpu).unwrap()
                    }
                    (other, _) => panic!("{name}: {matrix} is {other:?}"),
                };
                let off = deviation(&kept, &wide);
                if blocks != Some("Q4_1") {
                    assert_eq!(off, 0.0, "{name}: {matrix}");
                    continue;
                }
                let distance = deviation_of_integers(&wide);
                largest = largest.max(off / distance);
            }
        }
    }
    println!("largest deviation: {largest:.2e} of the distance of two integers");
    assert!(largest <= 15.0 / 2048.0, "{largest}");
}

/// Floats are quantised after they have been widened, what has blocks of its own keeps them.
#[test]
fn quantisations_of_floats_work_on_top() {
    for (golden, (name, blocks)) in all().iter().zip(KEPT) {
        let matrix = |quantization| {
            let (names, device) = (Names::default(), Device::Cpu);
            let weights = golden
                .checkpoint()
                .weights(names, quantization, DType::F32, &device);
            let up = weights.unwrap().pp("model.layers.0.mlp.up_proj");
            up.matrix((128, 64), "weight", None).unwrap()
        };
        let Matrix::Dense(wide) = matrix(Quantization::None) else {
            panic!("{name} is not widened");
        };
        for (quantization, made) in [
            (Quantization::Q8_0, GgmlDType::Q8_0),
            (Quantization::Q4K, GgmlDType::Q5_0),
        ] {
            let Matrix::Quantised(kept) = matrix(quantization) else {
                panic!("{name} as {quantization} is not quantised");
            };
            match blocks {
                Some(blocks) => assert_eq!(format!("{:?}", kept.dtype()), blocks, "{name}"),
                None => {
                    let wanted = QTensor::quantize(&wide, made).unwrap();
                    assert_eq!(kept.data().unwrap(), wanted.data().unwrap(), "{name}");
                }
            }
        }
    }
}

/// The largest distance of two integers in any group: groups have 16 of them at most, and the numbers of one reach from the lowest to
/// the highest.
fn deviation_of_integers(wide: &Tensor) -> f32 {
    let groups = wide.reshape(((), 32)).unwrap();
    let span = (groups.max(1).unwrap() - groups.min(1).unwrap()).unwrap();
    span.max_all().unwrap().to_scalar::<f32>().unwrap() / 15.0
}

/// The rows of a matrix in another order are those rows.
#[test]
fn rows_come_in_the_order_that_is_asked_for() {
    const ORDER: [u32; 6] = [31, 0, 7, 8, 9, 9];
    for golden in &all() {
        let (names, device) = (Names::default(), Device::Cpu);
        let checkpoint = golden.checkpoint();
        let weights = checkpoint.weights(names, Quantization::None, DType::F32, &device);
        let k = weights.unwrap().pp("model.layers.0.self_attn.k_proj");
        let whole = k.get((32, 64), "weight").unwrap();
        let index = Tensor::new(&ORDER, &device).unwrap();
        let some = k.get_rows((32, 64), "weight", &ORDER).unwrap();
        let off = deviation(&some, &whole.index_select(&index, 0).unwrap());
        assert_eq!(off, 0.0, "{}", golden.name);
        assert!(k.get_rows((32, 64), "weight", &[32]).is_err());
    }
}

/// Where there are blocks a model takes hardly more than its file, elsewhere what floats take.
#[test]
fn blocks_take_little_more_than_the_file() {
    for (golden, (name, blocks)) in all().iter().zip(KEPT) {
        let kept = golden.load(Quantization::Auto, DType::F16).bytes as f64;
        let file = std::fs::metadata(golden.dir.join("model.safetensors")).unwrap();
        let ratio = kept / file.len() as f64;
        let most = match (blocks, name) {
            (Some(_), _) => 1.15,
            (None, "gptq_8_asymmetric") => 2.0,
            (None, name) if name.starts_with("fp8") => 2.0,
            (None, _) => 3.5,
        };
        assert!(ratio < most, "{name}: {ratio} of its file");
    }
}
