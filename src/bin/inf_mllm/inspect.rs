//! `inf_mllm inspect`: what a checkpoint is, what it needs, and whether everything is there.

use std::path::PathBuf;

use anyhow::{bail, Result};
use candle_core::DType;
use inf_mllm::cache::{CacheConfig, KvStorage};
use inf_mllm::model::inspect::{Options, Report};
use inf_mllm::model::weights::Quantization;

#[derive(clap::Args)]
pub struct Args {
    /// Model directory.
    model: PathBuf,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// What becomes of the decoder's matrices: auto, none, q8_0, q4_k.
    #[arg(long, default_value_t)]
    quantization: Quantization,
    /// Slots per layer, tokens.
    #[arg(long, default_value_t = CacheConfig::default().budget)]
    budget: usize,
    /// What keys and values are stored as: auto, f32 or f16.
    #[arg(long, default_value = "auto")]
    kv_storage: KvStorage,
    /// Memory that the model may take, GiB: the largest budget that fits is told.
    #[arg(long)]
    memory: Option<f64>,
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
            dtype: DType::F32,
            kv_dtype: args.kv_storage.dtype(DType::F32),
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
