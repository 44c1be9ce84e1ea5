//! Decoding in the GPU's kernels, run on the CPU, with 16-bit weights and caches: how far logits are from those of 32 bits.

use candle_core::{DType, Device};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::chooser::{Chooser, Draws};
use inf_mllm::model::decoder::step::Stepper;

use crate::steps::kernels;
use crate::support::{decoder_alone_as, golden};

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

#[test]
fn logits_of_sixteen_bits_are_within_two_hundredths_of_their_length() {
    for family in ["llama", "llama3", "mistral", "qwen2", "qwen3"] {
        let wanted = logits(family, DType::F32).concat();
        for (dtype, near) in [(DType::F16, 4e-3), (DType::BF16, 2e-2)] {
            let got = logits(family, dtype).concat();
            let pairs = got.iter().zip(&wanted);
            let off = length(pairs.map(|(&a, &b)| f64::from(a) - f64::from(b)));
            let off = off / length(wanted.iter().map(|&x| f64::from(x)));
            assert!(off > 0.0, "{family}, {dtype:?}: not rounded");
            assert!(off < near, "{family}, {dtype:?}: off by {off:.1e}");
        }
    }
}
