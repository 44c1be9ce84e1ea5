//! What a checkpoint is and what it needs, told from its headers alone: no weight is read.
//!
//! - this file: the report and how it is made
//! - `table`: the report as text

mod table;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use serde::Serialize;

use super::checkpoint::Checkpoint;
use super::decoder;
use super::family::{model_type, Family};
use super::mllm::Mllm;
use super::text::TextModel;
use super::vision::View;
use super::weights::{Hollow, Kept, Quantization, Source};
use super::ModelError;
use crate::cache::CacheShape;

/// What the report assumes.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub quantization: Quantization,
    /// Type of the arithmetic.
    pub dtype: DType,
    /// Type of cached keys and values.
    pub kv_dtype: DType,
    /// Slots per layer.
    pub budget: usize,
    /// Memory that the model may take, bytes.
    pub memory: Option<u64>,
}

/// Camera pictures that frames are counted for.
const PICTURES: [(usize, usize); 4] = [(320, 240), (640, 480), (1280, 720), (1920, 1080)];

/// A checkpoint at a glance. Sizes are in bytes.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub path: String,
    pub family: String,
    /// `model_type` of the decoder.
    pub decoder: String,
    pub parameters: Parameters,
    /// What is in the files, by element type.
    pub stored: BTreeMap<String, Amount>,
    /// What it becomes in memory, by element or block type.
    pub kept: BTreeMap<String, Amount>,
    /// Matrices whose rows do not fill the blocks asked for, and what they became.
    pub fallbacks: Vec<String>,
    pub frames: Vec<Frame>,
    /// Longest input, tokens.
    pub context: usize,
    pub kv_bytes_per_token: u64,
    pub weight_bytes: u64,
    pub budget: usize,
    pub cache_bytes: u64,
    /// Weights and cache, without the working memory of a step.
    pub memory_bytes: u64,
    /// The largest budget with which weights and cache fit the memory that was named.
    pub fitting_budget: Option<usize>,
    /// What stands in the way of running it.
    pub problems: Vec<String>,
    /// Tensors in the files that the model does not use.
    pub unused: Vec<String>,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Parameters {
    pub total: u64,
    pub decoder: u64,
    /// Tower and connector.
    pub vision: u64,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Amount {
    pub tensors: usize,
    pub bytes: u64,
}

/// What a camera's picture becomes as a frame of the stream.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Frame {
    pub width: usize,
    pub height: usize,
    pub tokens: usize,
}

impl Report {
    /// Whether everything that is needed is there.
    pub fn complete(&self) -> bool {
        self.problems.is_empty()
    }

    /// Looks at a published directory. What is wrong with it becomes a problem of the report, not an error.
    pub fn of(path: &Path, options: &Options) -> Self {
        let mut report = Self {
            path: path.display().to_string(),
            budget: options.budget,
            ..Self::default()
        };
        if let Err(error) = report.fill(path, options) {
            report.problems.push(error.to_string());
        }
        report
    }

    fn fill(&mut self, path: &Path, options: &Options) -> Result<(), ModelError> {
        let checkpoint = Checkpoint::open(path)?;
        let kind = model_type(&checkpoint)?;
        match Family::of(&kind) {
            Some(family) => self.fill_multimodal(&checkpoint, family, options),
            None => self.fill_text(&checkpoint, options),
        }
    }

    fn fill_multimodal(
        &mut self,
        checkpoint: &Checkpoint,
        family: &'static Family,
        options: &Options,
    ) -> Result<(), ModelError> {
        self.family = family.name.to_string();
        let config = (family.open)(checkpoint)?;
        self.fill_decoder(config.text(), options)?;
        let tensors = checkpoint.tensors(family.names, options.quantization)?;
        self.fill_stored(tensors.as_ref());
        let hollow = Arc::new(Hollow::new(tensors));
        let device = (options.dtype, &Device::Cpu);
        let model = Mllm::build(checkpoint, family, hollow.clone(), device)?;
        for (width, height) in PICTURES {
            let layout = model.vision.layout((width, height), View::Frame);
            let tokens = model.vision.tokens(&layout);
            self.frames.push(Frame {
                width,
                height,
                tokens,
            });
        }
        let of_decoder = |name: &str| {
            name.starts_with(config.text_path()) || name.starts_with(config.head_path())
        };
        self.fill_kept(&hollow, of_decoder, options);
        Ok(())
    }

    fn fill_text(&mut self, checkpoint: &Checkpoint, options: &Options) -> Result<(), ModelError> {
        self.family = "text".to_string();
        let about = TextModel::about(checkpoint)?;
        self.fill_decoder(&about.config, options)?;
        let tensors = checkpoint.tensors(about.names, options.quantization)?;
        self.fill_stored(tensors.as_ref());
        let hollow = Arc::new(Hollow::new(tensors));
        TextModel::build(
            checkpoint,
            about,
            hollow.clone(),
            options.dtype,
            &Device::Cpu,
        )?;
        self.fill_kept(&hollow, |_| true, options);
        Ok(())
    }

    fn fill_decoder(
        &mut self,
        config: &decoder::Config,
        options: &Options,
    ) -> Result<(), ModelError> {
        self.decoder = config.model_type().to_string();
        let shape = config
            .cache_shape()
            .map_err(|unsupported| ModelError::Inputs(unsupported.to_string()))?;
        self.context = shape.max_positions;
        self.kv_bytes_per_token = kv_bytes(&shape, options.kv_dtype);
        self.cache_bytes = self.kv_bytes_per_token.saturating_mul(self.budget as u64);
        Ok(())
    }

    fn fill_stored(&mut self, source: &dyn Source) {
        for tensor in source.list() {
            let amount = self.stored.entry(tensor.dtype).or_default();
            amount.tensors += 1;
            amount.bytes += tensor.bytes as u64;
        }
    }

    /// What the model has taken of the source.
    fn fill_kept(&mut self, hollow: &Hollow, of_decoder: impl Fn(&str) -> bool, options: &Options) {
        let seen = hollow.seen();
        let mut narrow = BTreeMap::<(String, usize), usize>::new();
        for (name, kept) in &seen {
            let elements = kept.elements as u64;
            self.parameters.total += elements;
            match of_decoder(name) {
                true => self.parameters.decoder += elements,
                false => self.parameters.vision += elements,
            }
            let bytes = kept_bytes(kept, options.dtype);
            self.weight_bytes += bytes;
            let kind = kept_name(kept, options.dtype);
            let amount = self.kept.entry(kind.clone()).or_default();
            amount.tensors += 1;
            amount.bytes += bytes;
            if fell_back(kept, options.quantization) {
                *narrow.entry((kind, kept.width)).or_default() += 1;
            }
        }
        for ((kind, width), count) in narrow {
            self.fallbacks.push(format!(
                "{count} matrices as {kind}: rows of {width} do not fill blocks of 256"
            ));
        }
        let unused = hollow.list().into_iter().map(|tensor| tensor.name);
        self.unused = unused.filter(|name| !seen.contains_key(name)).collect();
        self.unused.sort();
        self.memory_bytes = self.weight_bytes.saturating_add(self.cache_bytes);
        self.fitting_budget = options.memory.map(|memory| {
            let left = memory.saturating_sub(self.weight_bytes);
            let slots = left / self.kv_bytes_per_token.max(1);
            usize::try_from(slots)
                .unwrap_or(usize::MAX)
                .min(self.context)
        });
    }
}

/// Keys and values of one token over all layers, bytes.
fn kv_bytes(shape: &CacheShape, dtype: DType) -> u64 {
    let values = shape
        .layers
        .saturating_mul(2 * shape.kv_heads * shape.head_dim);
    (values as u64).saturating_mul(dtype.size_in_bytes() as u64)
}

fn kept_bytes(kept: &Kept, dtype: DType) -> u64 {
    let bytes = match kept.blocks {
        None => kept.elements * dtype.size_in_bytes(),
        Some(blocks) => kept.elements / blocks.block_size() * blocks.type_size(),
    };
    bytes as u64
}

fn kept_name(kept: &Kept, dtype: DType) -> String {
    match kept.blocks {
        None => dtype.as_str().to_string(),
        Some(blocks) => format!("{blocks:?}"),
    }
}

/// Whether a matrix was to become blocks of 256 and did not.
fn fell_back(kept: &Kept, quantization: Quantization) -> bool {
    const SUPER_BLOCK: usize = 256;
    quantization == Quantization::Q4K
        && kept.blocks.is_some()
        && !kept.width.is_multiple_of(SUPER_BLOCK)
}
