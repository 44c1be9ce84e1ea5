//! Attention on the bounded cache: the fused kernel against the eager one, f16 storage, and the positions of what is kept.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{
    BoundedCache, CacheConfig, CacheShape, Kernel, KvStorage, Mark, PolicyKind, Rope, Scope,
    StateShape,
};
use inf_mllm::gpu::Gpu;
use proptest::prelude::*;

use crate::steps::kernels;
use crate::support::{deviation, stored};

/// Attends with a few chunks of one random stream; returns what comes out, and the kept sets in the end.
fn run(shape: CacheShape, config: &CacheConfig, chunks: &[usize]) -> (Tensor, Vec<Vec<u64>>) {
    run_on(None, shape, config, chunks)
}

/// The same with the kernels of a GPU, if they are given.
fn run_on(
    gpu: Option<Arc<dyn Gpu>>,
    shape: CacheShape,
    config: &CacheConfig,
    chunks: &[usize],
) -> (Tensor, Vec<Vec<u64>>) {
    let mut cache = BoundedCache::new(shape, config, 3, DType::F32, &Device::Cpu).unwrap();
    cache.run_on(gpu).unwrap();
    let mut seed = 1u64;
    let mut random = |heads: usize, tokens: usize| {
        let values = (0..heads * tokens * shape.head_dim)
            .map(|_| {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) as f32 / (1u64 << 30) as f32 - 1.0
            })
            .collect::<Vec<_>>();
        Tensor::from_vec(values, (heads, tokens, shape.head_dim), &Device::Cpu).unwrap()
    };
    let mut out = Vec::new();
    for &tokens in chunks {
        let admitted = cache.admit(&vec![Mark::default(); tokens]).unwrap();
        let q = (random(shape.heads, tokens) * 3.0).unwrap();
        let k = random(shape.kv_heads, tokens);
        let v = random(shape.kv_heads, tokens);
        out.push(cache.layer(0).attend(&q, &k, &v, &admitted).unwrap());
    }
    let kept = cache.layers()[0].sets();
    let kept = kept.map(|set| set.iter().map(|token| token.index).collect());
    (Tensor::cat(&out, 0).unwrap(), kept.collect())
}

fn shape(kv_heads: usize, group: usize, head_dim: usize) -> CacheShape {
    CacheShape {
        layers: 1,
        heads: kv_heads * group,
        kv_heads,
        head_dim,
        rope: Rope::new(1e4),
        max_positions: 1 << 20,
        states: StateShape::NONE,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_fused_kernel_computes_what_the_eager_one_does(
        kv_heads in 1usize..4,
        group in prop::sample::select(vec![1, 2, 3, 5, 9]),
        head_dim in prop::sample::select(vec![2, 8, 12, 32, 64, 80]),
        budget in prop::sample::select(vec![24, 100, 128, 300]),
        policy in prop::sample::select(PolicyKind::ALL[1..].to_vec()),
        scope in prop::sample::select(vec![Scope::Layer, Scope::KvHead]),
        storage in prop::sample::select(vec![KvStorage::F32, KvStorage::F16, KvStorage::Q8]),
        chunks in prop::collection::vec(1usize..150, 1..7),
    ) {
        let config = CacheConfig { policy, budget, scope, storage, ..CacheConfig::default() };
        let eager = CacheConfig { kernel: Kernel::Eager, ..config.clone() };
        let shape = shape(kv_heads, group, head_dim);
        let (fused, fused_kept) = run(shape, &config, &chunks);
        let (eager, eager_kept) = run(shape, &eager, &chunks);
        prop_assert_eq!(fused_kept, eager_kept);
        let off = deviation(&fused, &eager);
        prop_assert!(off <= 2e-5, "off by {}", off);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_kernels_of_a_gpu_compute_what_the_cpus_does(
        kv_heads in 1usize..4,
        group in prop::sample::select(vec![1, 2, 3, 5, 9]),
        head_dim in prop::sample::select(vec![2, 8, 12, 32, 64, 80, 128, 256]),
        budget in prop::sample::select(vec![24, 100, 128]),
        policy in prop::sample::select(PolicyKind::ALL[1..].to_vec()),
        scope in prop::sample::select(vec![Scope::Layer, Scope::KvHead]),
        storage in prop::sample::select(vec![KvStorage::Auto, KvStorage::F16, KvStorage::Q8]),
        chunks in prop::collection::vec(1usize..70, 1..5),
    ) {
        let config = CacheConfig { policy, budget, scope, storage, ..CacheConfig::default() };
        let shape = shape(kv_heads, group, head_dim);
        let (wanted, wanted_kept) = run(shape, &config, &chunks);
        let (got, kept) = run_on(Some(kernels()), shape, &config, &chunks);
        prop_assert_eq!(kept, wanted_kept);
        let off = deviation(&got, &wanted);
        prop_assert!(off <= 2e-5, "off by {}", off);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    for policy in [PolicyKind::H2o, PolicyKind::SnapKv, PolicyKind::InfMllm] {
        let config = CacheConfig {
            policy,
            budget: 300,
            ..CacheConfig::default()
        };
        let outputs = [1, 2, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| {
                let (out, kept) = run(shape(3, 3, 64), &config, &[200, 1, 90, 1, 1, 64, 77]);
                (out.flatten_all().unwrap().to_vec1::<f32>().unwrap(), kept)
            })
        });
        assert!(
            outputs[0] == outputs[1] && outputs[1] == outputs[2],
            "{policy}"
        );
    }
}

#[test]
fn storing_less_costs_rounding_only() {
    let config = CacheConfig {
        policy: PolicyKind::StreamingLlm,
        budget: 200,
        ..CacheConfig::default()
    };
    let chunks = [150, 1, 1, 60, 64, 64, 1];
    let (full, _) = run(shape(2, 3, 64), &config, &chunks);
    // Keys and values below 1 are off by 2^-12, or by half of 1 / 127; logits are sums over 64 products with queries below 3.
    for (storage, near) in [(KvStorage::F16, 4e-3), (KvStorage::Q8, 6e-2)] {
        for kernel in [Kernel::Fused, Kernel::Eager] {
            let less = CacheConfig {
                storage,
                kernel,
                ..config.clone()
            };
            let (less, _) = run(shape(2, 3, 64), &less, &chunks);
            let off = deviation(&less, &full);
            assert!(
                off > 0.0 && off < near,
                "{storage:?}, {kernel:?}: off by {off}"
            );
        }
    }
}

/// Ten thousand compactions, after which attention still is that of keys freshly rotated to where they stand.
/// Equal keys, so that every slot has the same share, and values of one: a sum of f16 in f16 would stop at a quarter.
#[test]
fn f16_sums_over_a_long_cache_are_whole() {
    const LEN: usize = 630 * 13 + 2;
    for kernel in [Kernel::Fused, Kernel::Eager] {
        for (dtype, group) in [(DType::F16, 1), (DType::F16, 3), (DType::F32, 1)] {
            let config = CacheConfig {
                policy: PolicyKind::Full,
                budget: LEN,
                kernel,
                ..CacheConfig::default()
            };
            let shape = shape(1, group, 8);
            let mut cache = BoundedCache::new(shape, &config, 0, dtype, &Device::Cpu).unwrap();
            let tensor = |value: f32, heads: usize, tokens: usize| {
                let shape = (heads, tokens, 8);
                let tensor = Tensor::full(value, shape, &Device::Cpu).unwrap();
                tensor.contiguous().unwrap().to_dtype(dtype).unwrap()
            };
            for tokens in [630; 13].into_iter().chain([1, 1]) {
                let admitted = cache.admit(&vec![Mark::default(); tokens]).unwrap();
                let q = tensor(0.0, group, tokens);
                let (k, v) = (tensor(0.0, 1, tokens), tensor(1.0, 1, tokens));
                let out = cache.layer(0).attend(&q, &k, &v, &admitted).unwrap();
                assert_eq!(out.dtype(), dtype);
                let out = out.to_dtype(DType::F32).unwrap();
                let off = (out - 1.0).unwrap().abs().unwrap().max_all().unwrap();
                let off = off.to_scalar::<f32>().unwrap();
                assert!(
                    off < 1e-3,
                    "{kernel:?}, {dtype:?}, {tokens} tokens: off by {off}"
                );
            }
        }
    }
}

#[test]
fn ten_thousand_compactions_leave_keys_as_fresh_as_new_ones() {
    /// Tokens that every query looks at, in a pair of numbers that the rotary embedding hardly turns.
    const SALIENT: [u64; 3] = [10, 17, 40];
    for storage in [KvStorage::F32, KvStorage::F16, KvStorage::Q8] {
        let config = CacheConfig {
            budget: 24,
            slack: 1,
            query_window: 4,
            bias: 0.0,
            storage,
            ..CacheConfig::default()
        };
        let shape = shape(1, 1, 8);
        let mut cache = BoundedCache::new(shape, &config, 0, DType::F32, &Device::Cpu).unwrap();
        let vector = |f: &dyn Fn(u64) -> f32| {
            let values = Tensor::from_iter((0..8).map(f), &Device::Cpu).unwrap();
            values.reshape((1, 1, 8)).unwrap()
        };
        let key = |index: u64| {
            let salient = SALIENT.contains(&index);
            vector(&|i| {
                let noise = 0.1 * ((index * 8 + i) as f32 * 0.7).sin();
                noise + if salient && i == 3 { 4.0 } else { 0.0 }
            })
        };
        let query = vector(&|i| if i == 3 { 4.0 } else { 0.0 });
        let mut index = 0;
        while cache.usage().compactions < 10_000 {
            let tokens = cache.admit(&[Mark::default()]).unwrap();
            let k = key(index);
            cache.layer(0).attend(&query, &k, &k, &tokens).unwrap();
            index += 1;
        }
        let kept = cache.layers()[0].sets().next().unwrap();
        for salient in SALIENT {
            assert!(kept.iter().any(|token| token.index == salient));
        }
        let fresh = kept
            .iter()
            .map(|token| key(token.index))
            .collect::<Vec<_>>();
        let fresh = Tensor::cat(&fresh, 1).unwrap();
        let want = fresh_rotation(&stored(&fresh, storage));
        let off = deviation(&cache.rotated_keys(0).unwrap(), &want);
        assert!(off <= 1e-6, "{storage:?}: off by {off}");
    }
}

/// Rotates `[1, tokens, 8]` to the positions 0, 1, 2 ... in f64.
fn fresh_rotation(keys: &Tensor) -> Tensor {
    let rows = keys.squeeze(0).unwrap().to_vec2::<f32>().unwrap();
    let rotated = rows.iter().enumerate().flat_map(|(position, row)| {
        (0..8).map(move |i| {
            let angle = position as f64 / 1e4f64.powf((i % 4) as f64 / 4.0);
            let (a, b) = (f64::from(row[i % 4]), f64::from(row[i % 4 + 4]));
            let (sin, cos) = angle.sin_cos();
            match i < 4 {
                true => (a * cos - b * sin) as f32,
                false => (b * cos + a * sin) as f32,
            }
        })
    });
    Tensor::from_iter(rotated, &Device::Cpu)
        .unwrap()
        .reshape(keys.dims())
        .unwrap()
}
