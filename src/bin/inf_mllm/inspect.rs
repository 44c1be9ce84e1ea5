//! `inf_mllm inspect`: what a checkpoint is, what it needs, and whether everything is there.

use std::path::PathBuf;

use anyhow::{bail, Result};
use inf_mllm::stream::inspect::{Options, Report};

use crate::args::{Given, Inspected};
use crate::print;

#[derive(clap::Args)]
pub struct Args {
    /// Model directory, the .gguf file of a decoder, or a name on the hub (ORG/NAME) that is in the local cache.
    model: PathBuf,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Memory that the model may take, GiB: the largest budget that fits is told.
    #[arg(long)]
    memory: Option<f64>,
    #[command(flatten)]
    given: Given<Inspected>,
}

pub fn run(args: &Args) -> Result<()> {
    const GIB: f64 = (1u64 << 30) as f64;
    if let Some(memory) = args.memory.filter(|gib| !(gib.is_finite() && *gib > 0.0)) {
        bail!("--memory is {memory}, expected a positive number of GiB");
    }
    let config = args.given.config()?;
    let report = Report::of(
        &args.model,
        &Options {
            session: &config,
            memory: args.memory.map(|gib| (gib * GIB) as u64),
        },
    );
    match args.json {
        true => print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?,
        false => print(&report.to_string())?,
    }
    if !report.complete() {
        bail!("it cannot be run: {}", report.problems.join("; "));
    }
    Ok(())
}
