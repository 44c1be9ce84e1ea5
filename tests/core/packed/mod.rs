//! Checkpoints with a `quantization_config`.
//!
//! - this file: the golden ones, loaded
//! - `numbers`: every form that is read, against transformers
//! - `damaged`: files that do not hold what they say

mod damaged;
mod numbers;

use std::path::Path;

use candle_core::{DType, Device};
use inf_mllm::cache::CacheShape;
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::decoder::{Config, Decoder};
use inf_mllm::model::weights::{Names, Quantization};
use inf_mllm::model::ModelError;

/// A decoder that is alone in its directory.
struct Loaded {
    decoder: Decoder,
    shape: CacheShape,
    /// Memory of its weights, bytes.
    bytes: usize,
}

fn load(dir: &Path, quantization: Quantization, dtype: DType) -> Result<Loaded, ModelError> {
    let device = Device::Cpu;
    let checkpoint = Checkpoint::open(dir)?;
    let config = Config::from_json(checkpoint.json("config.json")?, "llama")
        .map_err(|unsupported| unsupported.of(checkpoint.path("config.json")))?;
    let weights = checkpoint.weights(Names::default(), quantization, dtype, &device)?;
    let decoder = Decoder::new(&config, &weights.pp("model"), &weights.pp("lm_head"))
        .map_err(|error| checkpoint.weight_error(error, &device))?;
    Ok(Loaded {
        decoder,
        shape: config
            .cache_shape()
            .map_err(|unsupported| unsupported.of(checkpoint.path("config.json")))?,
        bytes: weights.taken(),
    })
}
