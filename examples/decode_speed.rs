//! How long a language model takes per token: decoding at a given context, split into products, output layer and the rest, beside
//! the time that merely reading the weights takes; prefill; memory; and the own product against candle's for several numbers of rows.
//!
//! `cargo run --release --example decode_speed -- models/smollm2-135m [CONTEXT] [THREADS] [brief [QUANTIZATION]]`
//!
//! `brief` stops after prefill and decoding. QUANTIZATION none (the default) makes blocks floats, auto keeps them. THREADS 0 means what the node would use.
//!
//! Times are the best of several windows: on a shared machine the others' work is in all the rest.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, RmsNorm};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind};
use inf_mllm::model::decoder::{llama, Config};
use inf_mllm::model::linear::{forward_all, Linear};
use inf_mllm::model::memory::give_back;
use inf_mllm::model::precision::Precision;
use inf_mllm::model::text::TextModel;
use inf_mllm::model::threads::thread_pool_for;
use inf_mllm::model::weights::Quantization;
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

const WINDOWS: usize = 12;
/// Tokens per window.
const TOKENS: usize = 16;

/// The shortest of several runs, milliseconds per `count`.
fn best(count: usize, mut run: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let mut shortest = f64::INFINITY;
    for _ in 0..WINDOWS {
        let started = Instant::now();
        run()?;
        shortest = shortest.min(started.elapsed().as_secs_f64() * 1e3 / count as f64);
    }
    Ok(shortest)
}

/// Adds up numbers: the fastest way through memory that a program has.
struct Sum<'a>(&'a [f32]);

impl NullaryFnOnce for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn call(self) -> f32 {
        let mut sums = [0.0; 64];
        for values in self.0.as_chunks::<64>().0 {
            for i in 0..64 {
                sums[i] += values[i];
            }
        }
        sums.iter().sum()
    }
}

/// The configuration of a decoder that is built like Llama.
fn llama(model: &TextModel) -> anyhow::Result<&llama::Config> {
    match &model.config {
        Config::Llama(config) => Ok(config),
        other => anyhow::bail!(
            "the decoder is {}, expected one like Llama",
            other.model_type()
        ),
    }
}

/// The decoder's products alone, with weights of the same sizes.
struct Products {
    /// Query, key, value, output, gate, up, down.
    layers: Vec<[Linear; 7]>,
    /// What is read for a token: the layers' weights and those of the output layer.
    weights: Vec<Tensor>,
}

impl Products {
    fn new(model: &TextModel) -> anyhow::Result<Self> {
        let config = llama(model)?;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim();
        let keys = config.kv_heads() * config.head_dim();
        let mut weights = Vec::new();
        let mut linear = |outputs: usize, inputs: usize| -> candle_core::Result<Linear> {
            let weight = Tensor::rand(-1f32, 1.0, (outputs, inputs), &Device::Cpu)?;
            weights.push(weight.clone());
            Ok(Linear::new(weight))
        };
        let mut layer = || -> candle_core::Result<[Linear; 7]> {
            Ok([
                linear(queries, hidden)?,
                linear(keys, hidden)?,
                linear(keys, hidden)?,
                linear(hidden, queries)?,
                linear(inner, hidden)?,
                linear(inner, hidden)?,
                linear(hidden, inner)?,
            ])
        };
        let layers = (0..config.num_hidden_layers)
            .map(|_| layer())
            .collect::<candle_core::Result<_>>()?;
        linear(config.vocab_size, hidden)?;
        Ok(Self { layers, weights })
    }

    fn run(&self, x: &Tensor, inner: &Tensor) -> anyhow::Result<()> {
        for [q, k, v, o, gate, up, down] in &self.layers {
            black_box(forward_all(x, &[q, k, v])?);
            black_box(o.forward(x)?);
            black_box(forward_all(x, &[gate, up])?);
            black_box(down.forward(inner)?);
        }
        Ok(())
    }

    fn read(&self) -> anyhow::Result<f32> {
        let mut sum = 0.0;
        for weight in &self.weights {
            let values = weight.storage_and_layout();
            let candle_core::Storage::Cpu(storage) = &*values.0 else {
                anyhow::bail!("weights are not on the CPU");
            };
            let values = storage.as_slice::<f32>()?;
            let share = values.len().div_ceil(2 * rayon::current_num_threads());
            sum += values
                .par_chunks(share)
                .map(|part| Arch::new().dispatch(Sum(part)))
                .sum::<f32>();
        }
        Ok(sum)
    }
}

fn crossover() -> anyhow::Result<()> {
    println!("rows   own ms  candle ms   (576 -> 1536)");
    let weight = Tensor::rand(-1f32, 1.0, (1536, 576), &Device::Cpu)?;
    let layer = Linear::new(weight.clone());
    for rows in [1, 2, 3, 4, 6, 8, 9, 12, 16, 20, 24, 25, 32] {
        let x = Tensor::rand(-1f32, 1.0, (rows, 576), &Device::Cpu)?;
        let many = 200;
        let own = best(many, || {
            for _ in 0..many {
                black_box(layer.forward(&x)?);
            }
            Ok(())
        })?;
        let candle = best(many, || {
            for _ in 0..many {
                black_box(x.matmul(&weight.t()?)?);
            }
            Ok(())
        })?;
        println!("{rows:4} {own:8.4} {candle:10.4}");
    }
    Ok(())
}

/// The memory of this process that is no file's, MB.
fn held() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes = kilobytes.context("no RssAnon in /proc/self/status")?;
    Ok(kilobytes.parse::<f64>()? * 1.024e-3)
}

/// What the process holds of memory of its own, beside what `inf_mllm inspect` says, which leaves out what a step works with.
fn memory(model: &TextModel, budget: usize) -> anyhow::Result<()> {
    let storage = CacheConfig::default().storage.of(DType::F32);
    let cache = model.shape.slot_bytes(storage) * budget as u64;
    let tokenizer = model.tokenizer.chat().memory_bytes() as u64;
    let told = (model.weight_bytes + tokenizer + cache) as f64 / 1e6;
    let with_steps = held()?;
    give_back();
    println!(
        "memory     {:8.1} MB, {with_steps:.1} MB with what steps worked with; {told:.1} MB are weights, tokenizer and cache",
        held()?
    );
    Ok(())
}

fn measure(model: &TextModel, context: usize, brief: bool) -> anyhow::Result<()> {
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: context + WINDOWS * TOKENS,
        ..CacheConfig::default()
    };
    let shape = model.shape;
    let mut cache = BoundedCache::new(shape, &config, 0, DType::F32, &Device::Cpu)?;
    let ids = (0..context as u32)
        .map(|i| (i * 7919) % model.config.vocab_size() as u32)
        .collect::<Vec<_>>();
    let started = Instant::now();
    let x = model.decoder.embed(&ids)?;
    let hidden = model
        .decoder
        .append(&x, &vec![Mark::default(); context], &mut cache)?;
    let prefill = started.elapsed().as_secs_f64();
    let last = hidden.narrow(0, context - 1, 1)?.contiguous()?;

    let decode = best(TOKENS, || {
        for id in &ids[..TOKENS] {
            let x = model.decoder.embed(&[*id])?;
            let hidden = model.decoder.append(&x, &[Mark::default()], &mut cache)?;
            black_box(model.decoder.logits(&hidden)?);
        }
        Ok(())
    })?;
    let bytes = model.weight_bytes as f64;
    println!(
        "threads {}, context {context}, weights {:.0} MB",
        rayon::current_num_threads(),
        bytes / 1e6
    );
    println!("prefill    {:8.1} tokens/s", context as f64 / prefill);
    println!("decode     {decode:8.2} ms per token");
    memory(model, config.budget)?;
    if brief {
        return Ok(());
    }

    let head = best(TOKENS, || {
        for _ in 0..TOKENS {
            black_box(model.decoder.logits(&last)?);
        }
        Ok(())
    })?;
    let products = Products::new(model)?;
    let inner = Tensor::rand(
        -1f32,
        1.0,
        (1, llama(model)?.intermediate_size),
        &Device::Cpu,
    )?;
    let layers = best(TOKENS, || {
        (0..TOKENS).try_for_each(|_| products.run(&last, &inner))
    })?;
    let norm = RmsNorm::new(Tensor::ones(last.dim(1)?, DType::F32, &Device::Cpu)?, 1e-5);
    let small = best(TOKENS, || {
        for _ in 0..TOKENS * model.shape.layers {
            let x = (norm.forward(&last)? + &last)?;
            black_box((norm.forward(&x)? + &last)?);
            black_box((inner.silu()? * &inner)?);
        }
        Ok(())
    })?;
    let read = best(TOKENS, || {
        for _ in 0..TOKENS {
            black_box(products.read()?);
        }
        Ok(())
    })?;
    let rate = |ms: f64| bytes / ms / 1e6;
    println!("  products {layers:8.2}");
    println!("  lm_head  {head:8.2}");
    println!("  norms    {small:8.2} (with sums and activations)");
    println!(
        "  the rest {:8.2} (attention)",
        decode - layers - head - small
    );
    println!(
        "weights    {:8.1} GB/s in products and lm_head",
        rate(layers + head)
    );
    println!(
        "           {:8.1} GB/s when they are only read ({read:.2} ms)",
        rate(read)
    );
    crossover()
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let path = PathBuf::from(args.next().context("expected a model's path")?);
    let mut number = |default: usize| args.next().map_or(Ok(default), |text| text.parse());
    let (context, threads) = (number(512)?, number(0)?);
    let brief = args.next().is_some_and(|word| word == "brief");
    let quantization = args
        .next()
        .map_or(Ok(Quantization::None), |word| word.parse());
    let quantization = quantization.map_err(anyhow::Error::msg)?;
    anyhow::ensure!(
        context >= TOKENS,
        "context is {context}, expected at least {TOKENS}"
    );
    let started = Instant::now();
    let model = TextModel::load(&path, quantization, Precision::F32, &Device::Cpu)?;
    println!("loaded in {:.2} s", started.elapsed().as_secs_f64());
    thread_pool_for(threads, model.weight_bytes)?.install(|| measure(&model, context, brief))
}
