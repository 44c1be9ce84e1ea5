//! The multimodal model: checkpoints as published, and their forward passes on a bounded cache.
//!
//! - `checkpoint`: the files of a model directory, with errors that name what is missing or wrong
//! - `json`: JSON files, with errors that name field, value and expectation
//! - `weights`: a checkpoint's tensors by name, whatever file format they come from
//! - `gguf`: decoders from GGUF files
//! - `family`: the table of families; each has a folder with its configuration, tower and connector:
//!   - `smolvlm`: SmolVLM, SmolVLM2, Idefics3
//!   - `llava`, `llava_next`, `llava_onevision`: LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision
//!   - `internvl`: InternVL3, InternVL3.5
//!   - `lfm2_vl`: LFM2-VL, LFM2.5-VL
//!   - `qwen2_vl`: Qwen2-VL
//!   - `qwen2_5_vl`: Qwen2.5-VL
//!   - `qwen3_vl`: Qwen3-VL
//!   - `qwen3_5`: Qwen3.5
//!   - `cosmos3`: Cosmos 3 Nano and Super
//!   - `cosmos3_edge`: Cosmos 3 Edge
//! - `qwen_vl`: what the Qwen-VL families share
//! - `fields`: fields of configurations that stand in more than one form
//! - `mllm`: a loaded multimodal checkpoint
//! - `text`: a decoder with its tokenizer, for text alone, from any of the formats
//! - `decoder`: the text decoders, whose attention runs on the cache
//! - `vision`: what every family does with pictures
//! - `preprocess`: pictures to pixel values
//! - `tokenizer`: text to ids, in which control tokens count only where the chat format put them
//! - `template`: the checkpoint's own chat template
//! - `ends`: the tokens that end an answer
//! - `generation`: what a checkpoint asks of whoever chooses tokens
//! - `linear`: linear layers, with products of their own for a few rows on the CPU
//! - `activation`: the activation functions that configurations name
//! - `precision`: the type that a model computes in
//! - `sum`: sums of tensors in the same threads as products
//! - `threads`: how many threads the products are spread over
//! - `memory`: memory that was let go
//! - `placeholders`: the tokens that no answer holds
//! - `device`: where the model runs
//! - `finite`: numbers that are none in what a model has computed
//! - `chooser`: the next token from logits
//! - `constraint`: which tokens may come next in text of a grammar
//! - `text_stream`: text from ids as they come

pub mod activation;
pub mod checkpoint;
pub mod chooser;
pub mod constraint;
pub mod cosmos3;
pub mod cosmos3_edge;
pub mod decoder;
mod device;
pub mod ends;
pub mod family;
mod fields;
pub mod finite;
pub mod generation;
pub mod gguf;
pub mod internvl;
mod json;
pub mod lfm2_vl;
pub mod linear;
pub mod llava;
pub mod llava_next;
pub mod llava_onevision;
pub mod memory;
pub mod mllm;
mod placeholders;
pub mod precision;
pub mod preprocess;
pub mod qwen2_5_vl;
pub mod qwen2_vl;
pub mod qwen3_5;
pub mod qwen3_vl;
mod qwen_vl;
pub mod smolvlm;
mod sum;
pub mod template;
pub mod text;
pub mod text_stream;
pub mod threads;
pub mod tokenizer;
pub mod vision;
pub mod weights;

use std::path::PathBuf;

use candle_core::DType;

use chooser::ChoiceError;

use crate::cache::parameter::ParameterError;
use crate::cache::{CacheError, TensorError};
use crate::excerpt::excerpt_of_path;

pub use device::{beside, device_name, DeviceKind};

/// What can be wrong with a checkpoint or go wrong in a forward pass.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("model directory {}: {what}", excerpt_of_path(.dir))]
    Directory { dir: PathBuf, what: String },
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    #[error("{}: {what}", excerpt_of_path(.file))]
    File { file: PathBuf, what: String },
    #[error("{}: {field} is {value}, expected {expected}", excerpt_of_path(.file))]
    Unsupported {
        file: PathBuf,
        field: String,
        value: String,
        expected: String,
    },
    /// Ids, pictures or tensors that do not fit together.
    #[error("{0}")]
    Inputs(String),
    /// What the model computed.
    #[error("{what}: {value} is among its numbers, expected finite ones only: the weights are broken, or give numbers that are too large for {}", .dtype.as_str())]
    NotFinite {
        what: &'static str,
        value: f32,
        dtype: DType,
    },
    #[error("device {name} cannot be used: {what}")]
    Device { name: &'static str, what: String },
    /// What no attempt afterwards can mend.
    #[error(
        "{device} is lost for this process: {what}; with it goes what was remembered: start again"
    )]
    Lost { device: String, what: String },
    #[error("threads cannot be started: {0}")]
    Threads(String),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    #[error("tensor operation in the model: {0}")]
    Tensor(TensorError),
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error.into())
    }
}
