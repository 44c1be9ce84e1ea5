//! What the bounded cache costs on this machine, in the shape of SmolLM2-135M with random weights:
//! `cargo run --release --example cache_speed [-- attention|upkeep|h2o]`.
//!
//! Every figure is a ratio of two things measured in turn, block by block; the median over the blocks is printed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{
    BoundedCache, CacheConfig, CacheShape, Kernel, KvStorage, Mark, PolicyKind, Rope, StateShape,
};
use inf_mllm::model::decoder::{Config, Decoder};
use inf_mllm::model::weights::{TensorMap, Weights};
use rayon::prelude::*;

const SHAPE: CacheShape = CacheShape {
    layers: 30,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    rope: Rope::new(1e5),
    max_positions: 1 << 16,
    states: StateShape::NONE,
};
const BLOCKS: usize = 5;

fn main() -> Result<()> {
    let only = std::env::args().nth(1);
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    if wanted("attention") {
        attention(bandwidth())?;
    }
    let model = random_model()?;
    if wanted("upkeep") {
        upkeep(&model)?;
    }
    if wanted("h2o") {
        against_h2o(&model)?;
    }
    Ok(())
}

/// Bytes per second of all threads together, reading an array that no cache holds.
fn bandwidth() -> f64 {
    let data = vec![1f32; 256 << 20];
    let part = data.len() / rayon::current_num_threads();
    let read = || {
        let sum = data
            .par_chunks(part)
            .map(|part| {
                let mut lanes = [0f32; 64];
                for chunk in part.as_chunks::<64>().0 {
                    for i in 0..64 {
                        lanes[i] += chunk[i];
                    }
                }
                lanes.iter().sum::<f32>()
            })
            .sum::<f32>();
        assert!(sum > 0.0);
    };
    read();
    let best = (0..3).map(|_| time(read)).min().unwrap_or_default();
    (data.len() * 4) as f64 / best.as_secs_f64()
}

fn time(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn random(heads: usize, tokens: usize) -> Result<Tensor> {
    Ok(Tensor::randn(
        0f32,
        1f32,
        (heads, tokens, SHAPE.head_dim),
        &Device::Cpu,
    )?)
}

/// Attends with `tokens` new tokens in every layer.
fn attend(cache: &mut BoundedCache, inputs: &[Tensor; 3]) -> Result<()> {
    let tokens = cache.admit(&vec![Mark::default(); inputs[0].dim(1)?])?;
    let [q, k, v] = inputs;
    for i in 0..SHAPE.layers {
        cache.layer(i).attend(q, k, v, &tokens)?;
    }
    Ok(())
}

/// A cache with `len` tokens and room for `room` more.
fn filled(len: usize, room: usize, kernel: Kernel, storage: KvStorage) -> Result<BoundedCache> {
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: len + room,
        storage,
        ..CacheConfig::default()
    };
    let mut cache = BoundedCache::new(SHAPE, &config, 0, DType::F32, &Device::Cpu)?;
    let inputs = [
        random(SHAPE.heads, 256)?,
        random(SHAPE.kv_heads, 256)?,
        random(SHAPE.kv_heads, 256)?,
    ];
    while cache.len() < len {
        attend(&mut cache, &inputs)?;
    }
    Ok(cache.with_kernel(kernel)?)
}

/// The fused kernel against candle's operations, and against the memory.
fn attention(bandwidth: f64) -> Result<()> {
    println!(
        "{} threads, reading memory: {:.1} GB/s\n",
        rayon::current_num_threads(),
        bandwidth / 1e9
    );
    println!("Attention of all layers, milliseconds:\n");
    println!(
        "| keys | tokens | f32 fused | f32 eager | eager / fused | of bandwidth | f16 fused |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|");
    for len in [256, 512, 1024, 2048, 4096, 8192] {
        for tokens in [1, 64] {
            let steps = if tokens == 1 { 8 } else { 1 };
            let room = (BLOCKS + 1) * steps * tokens;
            let inputs = [
                random(SHAPE.heads, tokens)?,
                random(SHAPE.kv_heads, tokens)?,
                random(SHAPE.kv_heads, tokens)?,
            ];
            let mut caches = [
                filled(len, room, Kernel::Fused, KvStorage::F32)?,
                filled(len, room, Kernel::Eager, KvStorage::F32)?,
                filled(len, room, Kernel::Fused, KvStorage::F16)?,
            ];
            let mut times = [const { Vec::new() }; 3];
            for block in 0..=BLOCKS {
                for (cache, times) in caches.iter_mut().zip(&mut times) {
                    let started = Instant::now();
                    for _ in 0..steps {
                        attend(cache, &inputs)?;
                    }
                    // The first block warms up.
                    if block > 0 {
                        times.push(started.elapsed().as_secs_f64() * 1e3 / steps as f64);
                    }
                }
            }
            let ratios = times[1].iter().zip(&times[0]).map(|(e, f)| e / f).collect();
            let [fused, eager, half] = times.map(median);
            let bytes = (SHAPE.layers * SHAPE.kv_heads * SHAPE.head_dim * 2 * 4 * len) as f64;
            println!(
                "| {len} | {tokens} | {fused:.2} | {eager:.2} | {:.2} | {} | {half:.2} |",
                median(ratios),
                match tokens {
                    1 => format!("{:.0} %", 100.0 * bytes / (fused * 1e-3) / bandwidth),
                    _ => "".to_string(),
                },
            );
        }
    }
    println!();
    Ok(())
}

/// A decoder of SmolLM2-135M's shape.
fn random_model() -> Result<Decoder> {
    let json = serde_json::json!({
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": SHAPE.layers,
        "num_attention_heads": SHAPE.heads, "num_key_value_heads": SHAPE.kv_heads,
        "max_position_embeddings": SHAPE.max_positions, "rope_theta": SHAPE.rope.theta, "rms_norm_eps": 1e-5, "tie_word_embeddings": true
    });
    let (hidden, inner, head) = (576, 1536, SHAPE.head_dim);
    let (queries, keys) = (SHAPE.heads * head, SHAPE.kv_heads * head);
    let mut shapes = vec![
        ("embed_tokens".to_string(), vec![49152, hidden]),
        ("norm".to_string(), vec![hidden]),
    ];
    for i in 0..SHAPE.layers {
        let layer = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ];
        shapes.extend(layer.map(|(name, shape)| (format!("layers.{i}.{name}"), shape)));
    }
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let spread = match shape.as_slice() {
            [_] => 1.0,
            [.., inputs] => 1.0 / (*inputs as f32).sqrt(),
            [] => 0.0,
        };
        let tensor = Tensor::randn(0f32, spread, shape, &Device::Cpu)?;
        Ok((format!("{name}.weight"), tensor))
    });
    let source = TensorMap {
        tensors: tensors.collect::<candle_core::Result<_>>()?,
        place: "a random model".to_string(),
    };
    let weights = Weights::new(Arc::new(source), DType::F32, &Device::Cpu);
    let config = Config::from_json(json, "llama")?;
    Ok(Decoder::new(&config, &weights, &weights.pp("lm_head"))?)
}

/// A full cache under `policy`, just after a compaction.
struct Bench<'a> {
    model: &'a Decoder,
    cache: BoundedCache,
}

const BUDGET: usize = 2048;

impl<'a> Bench<'a> {
    fn new(model: &'a Decoder, policy: PolicyKind) -> Result<Self> {
        let config = CacheConfig {
            policy,
            budget: BUDGET,
            ..CacheConfig::default()
        };
        let mut cache = BoundedCache::new(SHAPE, &config, 4, DType::F32, &Device::Cpu)?;
        let mut next = 0;
        while cache.usage().compactions == 0 {
            feed(model, &mut cache, &mut next, 64)?;
            cache.reserve(64)?;
        }
        Ok(Self { model, cache })
    }

    /// Seconds for `total` tokens in chunks of `chunk`, with a compaction at the end if `evict`; then all is taken back.
    fn run(&mut self, total: usize, chunk: usize, evict: bool) -> Result<f64> {
        self.cache.mark();
        let started = Instant::now();
        let mut next = 1;
        for _ in 0..total / chunk {
            feed(self.model, &mut self.cache, &mut next, chunk)?;
        }
        if evict {
            self.cache.reserve(total)?;
        }
        let seconds = started.elapsed().as_secs_f64();
        self.cache.put_back()?;
        self.cache.let_go();
        Ok(seconds)
    }
}

/// Feeds the next `count` tokens and computes the last one's logits.
fn feed(model: &Decoder, cache: &mut BoundedCache, next: &mut u32, count: usize) -> Result<()> {
    let new = *next..*next + count as u32;
    let ids = new.clone().map(|id| id * 31 % 49152).collect::<Vec<_>>();
    // Sentences of sixteen tokens.
    let marks = new.clone().map(|id| Mark {
        starts_unit: id % 16 == 0,
        ..Mark::default()
    });
    *next = new.end;
    let hidden = model.append(&model.embed(&ids)?, &marks.collect::<Vec<_>>(), cache)?;
    model.logits(&hidden.narrow(0, count - 1, 1)?)?;
    Ok(())
}

/// What scoring and eviction add to a decode step and to a chunk.
fn upkeep(model: &Decoder) -> Result<()> {
    println!("Scoring and eviction at budget {BUDGET}, switched on and off in turn:\n");
    println!("| policy | chunk | ms per token without | added |");
    println!("|---|---:|---:|---:|");
    for policy in [
        PolicyKind::InfMllm,
        PolicyKind::InfMllmPlus,
        PolicyKind::SnapKv,
        PolicyKind::Tova,
    ] {
        let mut bench = Bench::new(model, policy)?;
        let total = bench.cache.plan().slack;
        for chunk in [1, 64] {
            let mut off = Vec::new();
            let mut added = Vec::new();
            for _ in 0..BLOCKS {
                let without = bench.run(total, chunk, false)?;
                let with = bench.run(total, chunk, true)?;
                off.push(without * 1e3 / total as f64);
                added.push(100.0 * (with / without - 1.0));
            }
            println!(
                "| {policy} | {chunk} | {:.2} | {:.1} % |",
                median(off),
                median(added)
            );
        }
    }
    println!();
    Ok(())
}

/// inf_mllm against h2o, which evicts with every token: as here, the new token in the evicted one's slot, and as implementations
/// that gather every kept key and value after each token do it.
fn against_h2o(model: &Decoder) -> Result<()> {
    println!("Time of h2o over time of inf_mllm at budget {BUDGET}:\n");
    println!("| chunk | h2o, slot overwritten | h2o, every token gathers the whole cache |");
    println!("|---:|---:|---:|");
    let mut ours = Bench::new(model, PolicyKind::InfMllm)?;
    let mut h2o = Bench::new(model, PolicyKind::H2o)?;
    let total = ours.cache.plan().slack;
    for chunk in [1, 64] {
        let mut overwritten = Vec::new();
        let mut gathered = Vec::new();
        for _ in 0..3 {
            let base = ours.run(total, chunk, true)?;
            let theirs = h2o.run(total, chunk, false)?;
            overwritten.push(theirs / base);
            gathered.push((theirs + gather_time(total)?) / base);
        }
        println!(
            "| {chunk} | {:.2} | {:.2} |",
            median(overwritten),
            median(gathered)
        );
    }
    Ok(())
}

/// Seconds to gather all keys and values of a full cache into new tensors, once for each of `tokens` tokens.
fn gather_time(tokens: usize) -> Result<f64> {
    let buffer = random(SHAPE.kv_heads, BUDGET)?;
    let rows = Tensor::arange(1u32, BUDGET as u32, &Device::Cpu)?;
    // Of every token's layers only a part is run, and counted for all.
    let sample = 20;
    let started = Instant::now();
    for _ in 0..sample * SHAPE.layers * 2 {
        buffer.index_select(&rows, 1)?;
    }
    Ok(started.elapsed().as_secs_f64() * tokens as f64 / sample as f64)
}
