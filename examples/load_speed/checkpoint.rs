//! A checkpoint of random numbers, to measure how it is loaded; the tests load it too.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use anyhow::Context;
use candle_core::{DType, Device};
use half::{bf16, f16};
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
            Dtype::F16 => numbers
                .flat_map(|x| f16::from_f32(x).to_le_bytes())
                .collect(),
            Dtype::I32 => numbers.flat_map(|x| x.to_bits().to_le_bytes()).collect(),
            _ => numbers.flat_map(f32::to_le_bytes).collect(),
        })
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Tensors of a layer.
const OF_LAYER: [(&str, &[usize]); 9] = [
    ("input_layernorm", &[HIDDEN]),
    ("self_attn.q_proj", &[HIDDEN, HIDDEN]),
    ("self_attn.k_proj", &[KEYS, HIDDEN]),
    ("self_attn.v_proj", &[KEYS, HIDDEN]),
    ("self_attn.o_proj", &[HIDDEN, HIDDEN]),
    ("post_attention_layernorm", &[HIDDEN]),
    ("mlp.gate_proj", &[INNER, HIDDEN]),
    ("mlp.up_proj", &[INNER, HIDDEN]),
    ("mlp.down_proj", &[HIDDEN, INNER]),
];

/// How the tensors of a checkpoint are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Floats(Dtype),
    /// Matrices of layers as AWQ has them, the rest as f16.
    Awq,
}

const AWQ_GROUP: usize = 128;

impl Form {
    fn dtype(self) -> Dtype {
        match self {
            Self::Floats(dtype) => dtype,
            Self::Awq => Dtype::F16,
        }
    }

    /// What stands for the tensor `weight` of a layer.
    fn tensors(self, shape: &[usize]) -> Vec<(&'static str, Random)> {
        let of = |dtype, shape| Random { dtype, shape };
        match (self, shape) {
            (Self::Awq, &[rows, columns]) => vec![
                ("qweight", of(Dtype::I32, vec![columns, rows / 8])),
                (
                    "qzeros",
                    of(Dtype::I32, vec![columns / AWQ_GROUP, rows / 8]),
                ),
                ("scales", of(Dtype::F16, vec![columns / AWQ_GROUP, rows])),
            ],
            _ => vec![("weight", of(self.dtype(), shape.to_vec()))],
        }
    }
}

/// Writes `config.json` and a `model.safetensors` of about so many numbers into `dir`.
pub fn write(dir: &Path, numbers: usize, form: Form) -> anyhow::Result<()> {
    let layer_numbers = OF_LAYER
        .iter()
        .map(|(_, shape)| shape.iter().product::<usize>())
        .sum::<usize>();
    let layers = (numbers.saturating_sub(2 * VOCABULARY * HIDDEN) / layer_numbers).max(1);
    let plain = |name: &str, shape: Vec<usize>| {
        let dtype = form.dtype();
        (name.to_string(), Random { dtype, shape })
    };
    let mut tensors = vec![
        plain("model.embed_tokens.weight", vec![VOCABULARY, HIDDEN]),
        plain("model.norm.weight", vec![HIDDEN]),
        plain("lm_head.weight", vec![VOCABULARY, HIDDEN]),
    ];
    for layer in 0..layers {
        for (name, shape) in OF_LAYER {
            let parts = form.tensors(shape).into_iter();
            tensors.extend(
                parts.map(|(part, tensor)| (format!("model.layers.{layer}.{name}.{part}"), tensor)),
            );
        }
    }
    safetensors::serialize_to_file(tensors, None, &dir.join("model.safetensors"))?;
    let mut config = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 4,
    });
    if form == Form::Awq {
        config["quantization_config"] =
            json!({ "quant_method": "awq", "bits": 4, "group_size": AWQ_GROUP });
    }
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
    status("VmHWM")
}

/// A line of `/proc/self/status`, bytes.
pub fn status(name: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes = kilobytes.with_context(|| format!("no {name} in /proc/self/status"))?;
    Ok(kilobytes.trim().parse::<u64>()? * 1024)
}
