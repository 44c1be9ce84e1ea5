//! GGUF files written for a test.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use tempfile::TempDir;

pub const HIDDEN: usize = 32;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 8;
const INNER: usize = 64;

/// Metadata and tensors, to be changed and written.
#[derive(Default)]
pub struct File {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, QTensor)>,
}

pub fn texts(values: &[&str]) -> Value {
    let texts = values.iter().map(|text| Value::String((*text).to_string()));
    Value::Array(texts.collect())
}

pub fn size(value: usize) -> Value {
    Value::U32(u32::try_from(value).unwrap())
}

pub fn text(value: &str) -> Value {
    Value::String(value.to_string())
}

/// A matrix of some numbers.
pub fn quantised(rows: usize, width: usize, dtype: GgmlDType) -> QTensor {
    let values = (0..rows * width).map(|i| ((i * 7919 + rows) % 101) as f32 / 500.0 - 0.1);
    let tensor = Tensor::from_iter(values, &Device::Cpu).unwrap();
    let tensor = tensor.reshape((rows, width)).unwrap();
    QTensor::quantize(&tensor, dtype).unwrap()
}

pub fn ones() -> QTensor {
    floats(&Tensor::ones(HIDDEN, DType::F32, &Device::Cpu).unwrap())
}

/// A tensor as it is.
pub fn floats(tensor: &Tensor) -> QTensor {
    // candle takes the whole memory of a tensor, of which a part may be meant.
    QTensor::quantize(&tensor.force_contiguous().unwrap(), GgmlDType::F32).unwrap()
}

impl File {
    /// A tiny decoder.
    pub fn decoder() -> Self {
        let kinds = [3, 3, 1, 1, 1, 1].map(Value::I32).to_vec();
        let metadata = [
            ("general.architecture", text("llama")),
            ("llama.block_count", size(1)),
            ("llama.embedding_length", size(HIDDEN)),
            ("llama.feed_forward_length", size(INNER)),
            ("llama.attention.head_count", size(HEADS)),
            ("llama.attention.head_count_kv", size(KV_HEADS)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.rope.freq_base", Value::F32(1e4)),
            ("llama.rope.dimension_count", size(HEAD_DIM)),
            ("llama.context_length", size(128)),
            ("tokenizer.ggml.model", text("gpt2")),
            ("tokenizer.ggml.pre", text("smollm")),
            (
                "tokenizer.ggml.tokens",
                texts(&["<|im_start|>", "<|im_end|>", "a", "b", "ab", "1"]),
            ),
            ("tokenizer.ggml.token_type", Value::Array(kinds)),
            ("tokenizer.ggml.merges", texts(&["a b"])),
            ("tokenizer.ggml.eos_token_id", Value::U32(1)),
        ];
        let mut file = metadata
            .into_iter()
            .fold(Self::default(), |file, (key, value)| file.set(key, value))
            .with("token_embd.weight", quantised(6, HIDDEN, GgmlDType::Q8_0))
            .with("output_norm.weight", ones());
        for (name, rows, width) in [
            ("attn_q", HEADS * HEAD_DIM, HIDDEN),
            ("attn_k", KV_HEADS * HEAD_DIM, HIDDEN),
            ("attn_v", KV_HEADS * HEAD_DIM, HIDDEN),
            ("attn_output", HIDDEN, HEADS * HEAD_DIM),
            ("ffn_gate", INNER, HIDDEN),
            ("ffn_up", INNER, HIDDEN),
            ("ffn_down", HIDDEN, INNER),
        ] {
            let tensor = quantised(rows, width, GgmlDType::Q4_1);
            file = file.with(&format!("blk.0.{name}.weight"), tensor);
        }
        file.with("blk.0.attn_norm.weight", ones())
            .with("blk.0.ffn_norm.weight", ones())
    }

    /// What a file holds.
    pub fn read(file: &Path) -> Self {
        let mut reader = fs::File::open(file).unwrap();
        let content = gguf_file::Content::read(&mut reader).unwrap();
        let mut names = content.tensor_infos.keys().collect::<Vec<_>>();
        names.sort();
        let tensor = |name: &String| {
            let tensor = content.tensor(&mut fs::File::open(file).unwrap(), name, &Device::Cpu);
            (name.clone(), tensor.unwrap())
        };
        let tensors = names.into_iter().map(tensor).collect();
        Self {
            metadata: content.metadata.into_iter().collect(),
            tensors,
        }
    }

    /// The same in several files, the first with so many tensors, the others with what is left in equal shares: as llama.cpp's
    /// gguf-split writes them.
    pub fn split(self, in_first: usize, count: usize) -> Vec<Self> {
        let total = self.tensors.len();
        let share = (total - in_first).div_ceil(count - 1);
        let mut tensors = self.tensors.into_iter();
        let mut metadata = self.metadata;
        let part = |no: usize| {
            let taken = if no == 0 { in_first } else { share };
            let part = Self {
                metadata: std::mem::take(&mut metadata),
                tensors: tensors.by_ref().take(taken).collect(),
            };
            part.set("split.no", Value::U16(no as u16))
                .set("split.count", Value::U16(count as u16))
                .set("split.tensors.count", Value::I32(total as i32))
        };
        (0..count).map(part).collect()
    }

    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.metadata.retain(|(known, _)| known != key);
        self.metadata.push((key.to_string(), value));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.metadata.retain(|(known, _)| known != name);
        self.tensors.retain(|(known, _)| known != name);
        self
    }

    pub fn without_tensors(mut self) -> Self {
        self.tensors.clear();
        self
    }

    /// The keys that begin so, with their values.
    pub fn keys(&self, beginning: &str) -> Vec<(String, Value)> {
        let keys = self.metadata.iter();
        keys.filter(|(key, _)| key.starts_with(beginning))
            .cloned()
            .collect()
    }

    /// The strings of an array.
    pub fn texts(&self, key: &str) -> Vec<String> {
        let (_, array) = self
            .metadata
            .iter()
            .find(|(known, _)| known == key)
            .unwrap();
        let texts = array.to_vec().unwrap().iter();
        texts
            .map(|text| text.to_string().unwrap().clone())
            .collect()
    }

    pub fn with(mut self, name: &str, tensor: QTensor) -> Self {
        self.tensors.retain(|(known, _)| known != name);
        self.tensors.push((name.to_string(), tensor));
        self
    }

    /// Every tensor as `change` makes it of its name and what it is.
    pub fn map(mut self, change: impl Fn(String, QTensor) -> (String, QTensor)) -> Self {
        let tensors = self.tensors.into_iter();
        self.tensors = tensors.map(|(name, tensor)| change(name, tensor)).collect();
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let metadata = self
            .metadata
            .iter()
            .map(|(key, value)| (key.as_str(), value));
        let tensors = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor));
        let (metadata, tensors) = (metadata.collect::<Vec<_>>(), tensors.collect::<Vec<_>>());
        let mut bytes = std::io::Cursor::new(Vec::new());
        gguf_file::write(&mut bytes, &metadata, &tensors).unwrap();
        bytes.into_inner()
    }
}

/// A file that lives as long as its directory.
pub fn written(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("tiny.gguf");
    fs::write(&file, bytes).unwrap();
    (dir, file)
}
