//! `inf_mllm forward`: prepared inputs through the model, to compare numbers with another implementation's.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{ensure, Context, Result};
use candle_core::{DType, Device, Tensor};
use clap::ValueEnum;
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind, MIN_BUDGET};
use inf_mllm::model::checkpoint::Checkpoint;
use inf_mllm::model::smolvlm::SmolVlm;

use crate::args::DeviceArgs;

#[derive(clap::Args)]
pub struct Args {
    /// Model directory.
    #[arg(long)]
    model: PathBuf,
    /// Safetensors file with `input_ids` [1, tokens] and, with images, `pixel_values` [1, images, 3, size, size].
    #[arg(long)]
    inputs: PathBuf,
    /// Where to write `image_features` [images, tokens, hidden] and `logits` [1, tokens, vocab], both f32.
    #[arg(long)]
    out: PathBuf,
    /// Precision of the arithmetic.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    dtype: Precision,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Precision {
    F32,
    F16,
    Bf16,
}

impl Precision {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let device = args.device.device.open()?;
    let checkpoint = Checkpoint::open(&args.model)?;
    let model = SmolVlm::load(&checkpoint, args.dtype.dtype(), &device)?;
    let inputs = candle_core::safetensors::load(&args.inputs, &Device::Cpu)
        .with_context(|| format!("inputs {}", args.inputs.display()))?;
    let ids = input_ids(&inputs)?;
    let features = match inputs.get("pixel_values") {
        Some(pixels) => Some(model.image_features(&real_images(pixels)?)?),
        None => None,
    };

    let shape = model.config.text_config.cache_shape();
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: ids.len().max(MIN_BUDGET),
        ..CacheConfig::default()
    };
    let mut cache = BoundedCache::new(shape, &config, 0, model.dtype(), &device)?;
    let x = model.embed(&ids, features.as_ref())?;
    let hidden = model
        .decoder
        .append(&x, &vec![Mark::default(); ids.len()], &mut cache)?;
    let logits = model.decoder.logits(&hidden)?.unsqueeze(0)?;

    let mut outputs = HashMap::from([("logits", logits.to_dtype(DType::F32)?)]);
    if let Some(features) = features {
        outputs.insert("image_features", features.to_dtype(DType::F32)?);
    }
    candle_core::safetensors::save(&outputs, &args.out)
        .with_context(|| format!("writing {}", args.out.display()))?;
    Ok(())
}

fn input_ids(inputs: &HashMap<String, Tensor>) -> Result<Vec<u32>> {
    let ids = inputs
        .get("input_ids")
        .context("the inputs hold no tensor input_ids")?;
    ensure!(
        ids.rank() == 2 && ids.dim(0)? == 1,
        "input_ids has the shape {:?}, expected [1, tokens]",
        ids.dims()
    );
    Ok(ids.to_dtype(DType::U32)?.flatten_all()?.to_vec1()?)
}

/// The images of `pixel_values`, `[images, 3, size, size]`; all-zero ones are padding of the processor and left out.
fn real_images(pixels: &Tensor) -> Result<Tensor> {
    ensure!(
        pixels.rank() == 5 && pixels.dim(0)? == 1,
        "pixel_values has the shape {:?}, expected [1, images, 3, size, size]",
        pixels.dims()
    );
    let pixels = pixels.squeeze(0)?.to_dtype(DType::F32)?;
    let mut real = Vec::new();
    for i in 0..pixels.dim(0)? as u32 {
        let image = pixels.get(i as usize)?;
        if image.abs()?.max_all()?.to_scalar::<f32>()? > 0.0 {
            real.push(i);
        }
    }
    let index = Tensor::from_slice(&real, real.len(), &Device::Cpu)?;
    Ok(pixels.index_select(&index, 0)?)
}
