//! Decoders of the Llama architecture from one GGUF file: configuration, weights, vocabulary and chat template.
//!
//! Quantised weights are widened when they are loaded; the arithmetic is the same as with a published checkpoint.

mod header;
mod value;
mod vocabulary;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;

use super::decoder::llama;
use super::weights::{Quantization, TensorMap, Weights};
use super::ModelError;
use header::{Header, TensorInfo};
use value::Value;

/// The only architecture that is read.
const ARCHITECTURE: &str = "llama";

/// A GGUF file, mapped into memory.
pub struct Gguf {
    file: PathBuf,
    bytes: Mmap,
}

impl Gguf {
    /// Maps `file`; what is in it is checked by [`Self::read`].
    pub fn open(file: &Path) -> Result<Self, ModelError> {
        let fail = |error: std::io::Error| ModelError::File {
            file: file.to_path_buf(),
            what: error.to_string(),
        };
        let opened = File::open(file).map_err(fail)?;
        // SAFETY: the file must not be changed while it is mapped, as for the weights of any checkpoint.
        let bytes = unsafe { Mmap::map(&opened) }.map_err(fail)?;
        Ok(Self {
            file: file.to_path_buf(),
            bytes,
        })
    }

    /// Reads and checks the header.
    pub fn read(&self) -> Result<Contents<'_>, ModelError> {
        let header = Header::parse(&self.bytes).map_err(|what| ModelError::File {
            file: self.file.clone(),
            what,
        })?;
        let contents = Contents {
            file: &self.file,
            bytes: &self.bytes,
            header,
        };
        let architecture = contents.text("general.architecture")?;
        if architecture != ARCHITECTURE {
            return Err(contents.unsupported(
                "general.architecture",
                format!("{architecture:?}"),
                format!("{ARCHITECTURE:?}"),
            ));
        }
        Ok(contents)
    }
}

/// What a GGUF file holds.
pub struct Contents<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    header: Header<'a>,
}

impl<'a> Contents<'a> {
    pub fn file(&self) -> &Path {
        self.file
    }

    /// The decoder's configuration, from the keys that llama.cpp writes.
    pub fn config(&self) -> Result<llama::Config, ModelError> {
        let heads = self.size("llama.attention.head_count")?;
        let hidden_size = self.size("llama.embedding_length")?;
        let head_dim = match self.optional_size("llama.attention.key_length")? {
            Some(given) => given,
            None => hidden_size / heads.max(1),
        };
        // Other rotary widths, value widths, scaled positions and experts are models that this decoder is not.
        for (key, expected) in [
            ("llama.attention.value_length", head_dim),
            ("llama.rope.dimension_count", head_dim),
            ("llama.expert_count", 0),
        ] {
            if let Some(given) = self.optional_size(key)?.filter(|&given| given != expected) {
                return Err(self.unsupported(key, given.to_string(), expected.to_string()));
            }
        }
        const SCALING: &str = "llama.rope.scaling.type";
        if let Some(kind) = self.optional_text(SCALING)?.filter(|&kind| kind != "none") {
            return Err(self.unsupported(SCALING, format!("{kind:?}"), "\"none\"".to_string()));
        }
        let vocab_size = self.list(vocabulary::TOKENS)?.len();
        const VOCAB: &str = "llama.vocab_size";
        if let Some(given) = self
            .optional_size(VOCAB)?
            .filter(|&given| given != vocab_size)
        {
            let expected = format!("{vocab_size}, the length of {}", vocabulary::TOKENS);
            return Err(self.unsupported(VOCAB, given.to_string(), expected));
        }
        let config = llama::Config {
            vocab_size,
            hidden_size,
            intermediate_size: self.size("llama.feed_forward_length")?,
            num_hidden_layers: self.size("llama.block_count")?,
            num_attention_heads: heads,
            num_key_value_heads: self.optional_size("llama.attention.head_count_kv")?,
            head_dim: Some(head_dim),
            max_position_embeddings: self.size("llama.context_length")?,
            rms_norm_eps: self
                .float("llama.attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| self.missing("llama.attention.layer_norm_rms_epsilon"))?,
            rope_theta: self.float("llama.rope.freq_base")?,
            tie_word_embeddings: Some(!self.header.tensors.contains_key("output.weight")),
            ..llama::Config::default()
        };
        match config.cache_shape() {
            Err(unsupported) => Err(unsupported.of(self.file.to_path_buf())),
            Ok(_) => Ok(config),
        }
    }

    /// The decoder's weights under the names of published checkpoints (`embed_tokens.weight`, `layers.0.self_attn.q_proj.weight`),
    /// and `lm_head.weight` where it is not tied, as `dtype` on `device`.
    ///
    /// `config` is that of [`Self::config`]. A tensor that is missing, misshapen or left over is an error.
    ///
    /// The CPU has no bf16 products in candle: there, weights are rounded to bf16 and come back as f32.
    pub fn weights(
        &self,
        config: &llama::Config,
        _: Quantization,
        dtype: DType,
        device: &Device,
    ) -> Result<Weights, ModelError> {
        let mut left: HashSet<&str> = self.header.tensors.keys().copied().collect();
        let mut tensors = HashMap::new();
        for wanted in Wanted::all(config) {
            let (name, info) = self
                .header
                .tensors
                .get_key_value(wanted.stored.as_str())
                .ok_or_else(|| self.missing(&wanted.stored))?;
            left.remove(name);
            let tensor = self.tensor(&wanted, info)?;
            tensors.insert(wanted.name, tensor);
        }
        if let Some(name) = left.into_iter().min() {
            return Err(ModelError::File {
                file: self.file.to_path_buf(),
                what: format!(
                    "the tensor {name} has no place in this decoder, which knows no biases and no scaled rotary frequencies"
                ),
            });
        }
        let place = self.file.display().to_string();
        let source = Arc::new(TensorMap { tensors, place });
        Ok(Weights::new(source, dtype, device))
    }

    /// One tensor as f32 on the CPU, with the rows of queries and keys in the order of published checkpoints.
    fn tensor(&self, wanted: &Wanted, info: &TensorInfo) -> Result<Tensor, ModelError> {
        if info.dims != wanted.dims {
            return Err(self.unsupported(
                &format!("shape of {}", wanted.stored),
                format!("{:?}", info.dims),
                format!("{:?}", wanted.dims),
            ));
        }
        // A copy, because the blocks must be aligned in memory, which a mapped file does not promise.
        let bytes = self.bytes[info.bytes.clone()].to_vec();
        let tensor = qtensor_from_ggml(info.dtype, &bytes, info.dims.clone(), &Device::Cpu)
            .and_then(|quantised| quantised.dequantize(&Device::Cpu))
            .map_err(|error| ModelError::File {
                file: self.file.to_path_buf(),
                what: format!("tensor {}: {error}", wanted.stored),
            })?;
        let Some(heads) = wanted.rotary_heads else {
            return Ok(tensor);
        };
        // llama.cpp rotates neighbours, so its converter has put row i of a head's second half after row i of the first:
        // [heads, half, 2, in] -> [heads, 2, half, in].
        let (rows, width) = tensor.dims2()?;
        Ok(tensor
            .reshape((heads, rows / heads / 2, 2, width))?
            .transpose(1, 2)?
            .contiguous()?
            .reshape((rows, width))?)
    }

    fn value<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.header.get(key) else {
            return Ok(None);
        };
        let described = value.clone();
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.unsupported(key, described.describe(), expected.to_string())),
        }
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.value(key, "a whole number", |value| {
            value.whole().and_then(|size| usize::try_from(size).ok())
        })
    }

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.value(key, "a positive float", |value| {
            value.float().filter(|&x| x.is_finite() && x > 0.0)
        })
    }

    fn optional_text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.value(key, "a string", Value::text)
    }

    fn text(&self, key: &str) -> Result<&'a str, ModelError> {
        self.optional_text(key)?.ok_or_else(|| self.missing(key))
    }

    fn list(&self, key: &str) -> Result<impl ExactSizeIterator<Item = Value<'a>>, ModelError> {
        self.value(key, "an array", Value::list)?
            .ok_or_else(|| self.missing(key))
    }

    fn missing(&self, name: &str) -> ModelError {
        ModelError::File {
            file: self.file.to_path_buf(),
            what: format!("{name} is missing"),
        }
    }

    fn unsupported(&self, field: &str, value: String, expected: String) -> ModelError {
        ModelError::Unsupported {
            file: self.file.to_path_buf(),
            field: field.to_string(),
            value,
            expected,
        }
    }
}

/// A tensor that the decoder needs.
struct Wanted {
    /// Name in the file.
    stored: String,
    /// Name in a published checkpoint.
    name: String,
    dims: Vec<usize>,
    /// Heads of queries or keys.
    rotary_heads: Option<usize>,
}

impl Wanted {
    fn new(stored: &str, name: &str, dims: &[usize]) -> Self {
        Self {
            stored: format!("{stored}.weight"),
            name: format!("{name}.weight"),
            dims: dims.to_vec(),
            rotary_heads: None,
        }
    }

    /// In order; lazily, because a damaged number of layers must not take memory.
    fn all(config: &llama::Config) -> impl Iterator<Item = Self> + '_ {
        let hidden = config.hidden_size;
        let head = (config.tie_word_embeddings != Some(true))
            .then(|| Self::new("output", "lm_head", &[config.vocab_size, hidden]));
        [
            Self::new("token_embd", "embed_tokens", &[config.vocab_size, hidden]),
            Self::new("output_norm", "norm", &[hidden]),
        ]
        .into_iter()
        .chain(head)
        .chain((0..config.num_hidden_layers).flat_map(|layer| Self::of_layer(config, layer)))
    }

    fn of_layer(config: &llama::Config, layer: usize) -> [Self; 9] {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        // Numbers from a damaged file: a product that overflows fits no tensor.
        let queries = config.num_attention_heads.saturating_mul(config.head_dim());
        let keys = config.kv_heads().saturating_mul(config.head_dim());
        let new = |stored: &str, name: &str, dims: &[usize]| {
            Self::new(
                &format!("blk.{layer}.{stored}"),
                &format!("layers.{layer}.{name}"),
                dims,
            )
        };
        let rotary = |wanted: Self, heads: usize| Self {
            rotary_heads: Some(heads),
            ..wanted
        };
        let q = new("attn_q", "self_attn.q_proj", &[queries, hidden]);
        let k = new("attn_k", "self_attn.k_proj", &[keys, hidden]);
        [
            new("attn_norm", "input_layernorm", &[hidden]),
            rotary(q, config.num_attention_heads),
            rotary(k, config.kv_heads()),
            new("attn_v", "self_attn.v_proj", &[keys, hidden]),
            new("attn_output", "self_attn.o_proj", &[hidden, queries]),
            new("ffn_norm", "post_attention_layernorm", &[hidden]),
            new("ffn_gate", "mlp.gate_proj", &[inner, hidden]),
            new("ffn_up", "mlp.up_proj", &[inner, hidden]),
            new("ffn_down", "mlp.down_proj", &[hidden, inner]),
        ]
    }
}
