//! `inf_mllm inspect`: what a checkpoint is, what it needs, and whether everything is there.

use std::path::PathBuf;

use anyhow::{bail, Result};
use inf_mllm::cache::{CacheConfig, KvStorage};
use inf_mllm::model::precision::Precision;
use inf_mllm::model::weights::Quantization;
use inf_mllm::stream::inspect::{Options, Report};

use crate::args::DeviceArgs;

#[derive(clap::Args)]
pub struct Args {
    /// Model directory, or the .gguf file of a decoder.
    model: PathBuf,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// What becomes of the decoder's matrices: auto, none, q8_0, q4_k.
    #[arg(long, default_value_t)]
    quantization: Quantization,
    /// Type of the arithmetic: auto, f32, f16, bf16.
    #[arg(long, default_value_t)]
    dtype: Precision,
    /// Slots per layer, tokens.
    #[arg(long, default_value_t = CacheConfig::default().budget)]
    budget: usize,
    /// What keys and values are stored as: auto, f32 or f16.
    #[arg(long, default_value = "auto")]
    kv_storage: KvStorage,
    /// Memory that the model may take, GiB: the largest budget that fits is told.
    #[arg(long)]
    memory: Option<f64>,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args) -> Result<()> {
    const GIB: f64 = (1u64 << 30) as f64;
    if let Some(memory) = args.memory.filter(|gib| !(gib.is_finite() && *gib > 0.0)) {
        bail!("--memory is {memory}, expected a positive number of GiB");
    }
    let report = Report::of(
        &args.model,
        &Options {
            quantization: args.quantization,
            device: args.device.device,
            dtype: args.dtype,
            kv_storage: args.kv_storage,
            budget: args.budget,
            memory: args.memory.map(|gib| (gib * GIB) as u64),
        },
    );
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{report}"),
    }
    if !report.complete() {
        bail!("{} is not complete", args.model.display());
    }
    Ok(())
}
