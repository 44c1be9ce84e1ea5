//! A checkpoint of random numbers, to measure how it is loaded; the tests load it too.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use anyhow::Context;
use candle_core::{DType, Device};
use half::bf16;
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::decoder::{Config, Decoder};
use inf_mllm::model::weights::{Names, Quantization};
use safetensors::{Dtype, View};
use serde_json::json;

const HIDDEN: usize = 1024;
const INNER: usize = 2816;
const KEYS: usize = 256;
const VOCABULARY: usize = 16384;

/// A tensor whose numbers are made when they are written.
struct Random {
    dtype: Dtype,
    shape: Vec<usize>,
}

impl View for Random {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let count = self.shape.iter().product::<usize>();
        let numbers = (0..count as u64).map(|i| {
            let mixed = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            (mixed as f32 / (1 << 23) as f32 - 1.0) / 20.0
        });
        Cow::Owned(match self.dtype {
            Dtype::BF16 => numbers
                .flat_map(|x| bf16::from_f32(x).to_le_bytes())
                .collect(),
            _ => numbers.flat_map(f32::to_le_bytes).collect(),
        })
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Writes `config.json` and a `model.safetensors` of about `bytes` bytes into `dir`.
pub fn write(dir: &Path, bytes: usize, dtype: Dtype) -> anyhow::Result<()> {
    let table = ("embed_tokens", vec![VOCABULARY, HIDDEN]);
    let of_layer = [
        ("input_layernorm", vec![HIDDEN]),
        ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
        ("self_attn.k_proj", vec![KEYS, HIDDEN]),
        ("self_attn.v_proj", vec![KEYS, HIDDEN]),
        ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
        ("post_attention_layernorm", vec![HIDDEN]),
        ("mlp.gate_proj", vec![INNER, HIDDEN]),
        ("mlp.up_proj", vec![INNER, HIDDEN]),
        ("mlp.down_proj", vec![HIDDEN, INNER]),
    ];
    let layer_numbers = of_layer
        .iter()
        .map(|(_, shape)| shape.iter().product::<usize>())
        .sum::<usize>();
    let numbers = bytes * 8 / dtype.bitsize();
    let layers = (numbers.saturating_sub(2 * VOCABULARY * HIDDEN) / layer_numbers).max(1);
    let mut shapes = vec![
        (format!("model.{}.weight", table.0), table.1.clone()),
        ("model.norm.weight".to_string(), vec![HIDDEN]),
        ("lm_head.weight".to_string(), table.1),
    ];
    for layer in 0..layers {
        let names = of_layer.iter();
        let named = names
            .map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape.clone()));
        shapes.extend(named);
    }
    let tensors = shapes
        .into_iter()
        .map(|(name, shape)| (name, Random { dtype, shape }));
    safetensors::serialize_to_file(tensors, None, &dir.join("model.safetensors"))?;
    let config = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 4,
    });
    fs::write(dir.join("config.json"), config.to_string())?;
    Ok(())
}

/// Loads the decoder of a checkpoint.
pub fn load(path: &Path, quantization: Quantization, dtype: DType) -> anyhow::Result<Decoder> {
    let checkpoint = Checkpoint::open(path)?;
    let config = Config::from_json(checkpoint.json("config.json")?, "llama")?;
    let weights = checkpoint.weights(Names::default(), quantization, dtype, &Device::Cpu)?;
    Ok(Decoder::new(
        &config,
        &weights.pp("model"),
        &weights.pp("lm_head"),
    )?)
}

/// The most memory that this process has had, with what it had of files, bytes.
pub fn peak_memory() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kilobytes
        .context("no VmHWM in /proc/self/status")?
        .trim()
        .parse::<u64>()?
        * 1024)
}
