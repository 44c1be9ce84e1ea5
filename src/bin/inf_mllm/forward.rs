//! `inf_mllm forward`: prepared inputs through the model, to compare numbers with another implementation's.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{ensure, Context, Result};
use candle_core::{DType, Device, Tensor};
use inf_mllm::cache::{BoundedCache, CacheConfig, Mark, PolicyKind, MIN_BUDGET};
use inf_mllm::files;
use inf_mllm::model::family::{model_type, Family};
use inf_mllm::model::mllm::Mllm;
use inf_mllm::model::text::TextModel;
use inf_mllm::model::vision::{ImageFeatures, View};

use crate::args::{Compared, Given};

#[derive(clap::Args)]
pub struct Args {
    /// Model directory, the .gguf file of a decoder, or a name on the hub (ORG/NAME) that is in the local cache.
    #[arg(long)]
    model: PathBuf,
    /// Safetensors file with `input_ids` [1, tokens] and, with images, what the family's published processor gives:
    /// `pixel_values`, and `image_sizes` or `image_grid_thw` where it has them.
    #[arg(long)]
    inputs: PathBuf,
    /// Where to write `vision_features` [rows, width], `image_features` [tokens, hidden] and `logits` [1, tokens, vocab], all f32.
    #[arg(long)]
    out: PathBuf,
    /// The images are frames of a video.
    #[arg(long)]
    frames: bool,
    #[command(flatten)]
    given: Given<Compared>,
}

pub fn run(args: &Args) -> Result<()> {
    let config = args.given.config()?;
    let device = config.device.open()?;
    let checkpoint = config.checkpoint_in(&args.model)?;
    let about = || format!("inputs {}", args.inputs.display());
    files::check(&args.inputs).with_context(about)?;
    let inputs = candle_core::safetensors::load(&args.inputs, &Device::Cpu).with_context(about)?;
    let ids = input_ids(&inputs)?;
    let mut outputs = HashMap::new();
    let (decoder, shape, input, marks) = if Family::of(&model_type(&checkpoint)?).is_some() {
        let mut model = Mllm::load(&checkpoint, config.quantization, config.dtype, &device)?;
        model.decoder.lay_out_for(None)?;
        let images = images(&model, &inputs, args.frames, &mut outputs)?;
        let chunk = model.embed(&ids, &images)?;
        let marks = chunk.marks();
        (model.decoder, model.shape, chunk.embedded, marks)
    } else {
        let model = TextModel::of(&checkpoint, config.quantization, config.dtype, &device)?;
        let x = model.decoder.embed(&ids)?;
        let marks = vec![Mark::default(); ids.len()];
        (model.decoder, model.shape, x.into(), marks)
    };

    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: ids.len().max(MIN_BUDGET),
        ..CacheConfig::default()
    };
    let mut cache = BoundedCache::new(shape, &config, 0, decoder.dtype(), &device)?;
    let hidden = decoder.append_embedded(&input, &marks, &mut cache)?;
    let logits = decoder.logits(&hidden)?.unsqueeze(0)?;
    outputs.insert("logits", logits.to_dtype(DType::F32)?);
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

/// The features of the inputs' images; what the tower made of them goes to `outputs` beside them.
fn images(
    model: &Mllm,
    inputs: &HashMap<String, Tensor>,
    frames: bool,
    outputs: &mut HashMap<&str, Tensor>,
) -> Result<Vec<ImageFeatures>> {
    if !inputs.contains_key("pixel_values") && !inputs.contains_key("pixel_values_videos") {
        return Ok(Vec::new());
    }
    let view = match frames {
        true => View::Frame,
        false => View::Image { of: 0 },
    };
    let (mut towers, mut images) = (Vec::new(), Vec::new());
    for pixels in model.vision.split(inputs, view)? {
        let tower = model.vision.tower(&pixels)?;
        images.push(model.vision.connect(&tower, &pixels.layout)?);
        let width = tower.features.dim(candle_core::D::Minus1)?;
        towers.push(tower.features.reshape(((), width))?.to_dtype(DType::F32)?);
    }
    let rows = images
        .iter()
        .map(|image| image.rows.to_dtype(DType::F32))
        .collect::<candle_core::Result<Vec<_>>>()?;
    outputs.insert("vision_features", Tensor::cat(&towers, 0)?);
    outputs.insert("image_features", Tensor::cat(&rows, 0)?);
    Ok(images)
}
