//! 16 bits: how far logits are from those of 32 bits, in the GPU's kernels run on the CPU, and of the families' golden scenes.

use std::path::Path;

use candle_core::{DType, Device};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::chooser::{Chooser, Draws};
use inf_mllm::model::decoder::step::Stepper;

use crate::commands::{path, run, succeeded};
use crate::steps::kernels;
use crate::support::{decoder_alone_as, golden, json, tensors};

const TOKENS: u32 = 90;

/// Logits behind each of a row of tokens, of which the cache evicts some, the same for every type.
fn logits(family: &str, dtype: DType) -> Vec<Vec<f32>> {
    let (decoder, shape) = decoder_alone_as(&golden("families").join(family), dtype);
    let config = CacheConfig {
        policy: PolicyKind::StreamingLlm,
        budget: 48,
        ..CacheConfig::default()
    };
    let mut cache = BoundedCache::new(shape, &config, 0, dtype, &Device::Cpu).unwrap();
    cache.run_on(Some(kernels())).unwrap();
    let chooser = Chooser::new(0.0, Vec::new());
    let stepper = Stepper::new(&decoder, &kernels(), &cache, (&chooser, &[])).unwrap();
    let mut stepper = stepper.one_at_a_time();
    let mut draws = Draws::new(0);
    let logits = (0..TOKENS).map(|i| {
        let token = 3 + i * 7 % 50;
        let rules = (&chooser, &mut draws);
        stepper
            .step(token, Mark::default(), &mut cache, rules)
            .unwrap();
        cache.reserve(1).unwrap();
        stepper.logits().unwrap()
    });
    let logits = logits.collect();
    assert!(cache.usage().compactions > 1, "{family} has not evicted");
    logits
}

fn length(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}

/// Distance of two vectors, relative to the length of the second one.
fn distance(got: &[f32], wanted: &[f32]) -> f64 {
    let pairs = got.iter().zip(wanted);
    let off = length(pairs.map(|(&a, &b)| f64::from(a) - f64::from(b)));
    off / length(wanted.iter().map(|&x| f64::from(x)))
}

#[test]
fn logits_of_sixteen_bits_are_within_two_hundredths_of_their_length() {
    for family in ["llama", "llama3", "mistral", "qwen2", "qwen3"] {
        let wanted = logits(family, DType::F32).concat();
        for (dtype, near) in [(DType::F16, 4e-3), (DType::BF16, 2e-2)] {
            let off = distance(&logits(family, dtype).concat(), &wanted);
            assert!(off > 0.0, "{family}, {dtype:?}: not rounded");
            assert!(off < near, "{family}, {dtype:?}: off by {off:.1e}");
        }
    }
}

/// How far off transformers is in the same type: what 16 bits cost is a matter of the checkpoint.
#[test]
fn golden_scenes_in_sixteen_bits_are_about_as_near_as_transformers_own() {
    let out = tempfile::tempdir().unwrap();
    let written = out.path().join("out.safetensors");
    let theirs = json(&golden("half_precision.json"));
    let mut checked = 0;
    for (family, scenes) in theirs.as_object().unwrap() {
        let dir = golden("families").join(family);
        // The command reads a whole checkpoint; three of the decoders have no tokenizer of their own.
        if !dir.join("tokenizer.json").exists() {
            continue;
        }
        for (scene, types) in scenes.as_object().unwrap() {
            let file = |kind: &str| dir.join(format!("golden/{scene}.{kind}.safetensors"));
            let wanted = flat(&file("expected"));
            let inputs = file("inputs");
            for (dtype, theirs) in types.as_object().unwrap() {
                let mut args = vec!["forward", "--model", path(&dir), "--inputs", path(&inputs)];
                args.extend(["--out", path(&written), "--dtype", dtype]);
                args.extend((scene == "frames").then_some("--frames"));
                succeeded(&run(&args));
                let (off, theirs) = (distance(&flat(&written), &wanted), theirs.as_f64().unwrap());
                assert!(
                    off < 1.5 * theirs,
                    "{family} {scene}, {dtype}: off by {off:.1e}, transformers by {theirs:.1e}"
                );
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 80);
}

fn flat(file: &Path) -> Vec<f32> {
    let logits = tensors(file).remove("logits").unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}
