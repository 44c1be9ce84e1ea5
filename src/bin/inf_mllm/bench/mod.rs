//! `inf_mllm bench`: how fast a published shape runs on this machine, with random weights.

mod decode;
mod frames;

use anyhow::{ensure, Result};
use clap::Subcommand;
use inf_mllm::eval::speed::spread::Spread;
use inf_mllm::eval::speed::weights::WeightKind;
use inf_mllm::eval::speed::{About, Bench, Path};

use crate::args::{Benched, Given};

#[derive(Subcommand)]
pub enum Command {
    /// Milliseconds per token with a full cache, beside what merely reading weights and cache would take.
    Decode(decode::Args),
    /// Frames per second into the cache while tokens are decoded.
    Frames(frames::Args),
}

pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Decode(args) => decode::run(args),
        Command::Frames(args) => frames::run(args),
    }
}

/// What is built.
#[derive(clap::Args)]
struct What {
    /// Shape of a published checkpoint: SmolVLM-500M, SmolVLM2-2.2B, Qwen3-VL-2B, LLaVA-1.5-7B or Qwen2.5-VL-3B; tiny is for trying out.
    #[arg(long)]
    shape: String,
    /// What the random weights are kept as: f32, f16, bf16, q8_0 or q4_k. `--dtype` is the type of the arithmetic with blocks.
    #[arg(long, default_value = "bf16")]
    weights: WeightKind,
    /// What decodes a token: kernels (the device's own, where it has such for this model) or operations.
    #[arg(long, default_value = "kernels")]
    path: Path,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    given: Given<Benched>,
}

impl What {
    fn bench(&self) -> Result<Bench> {
        ensure!(
            matches!(self.weights, WeightKind::Blocks(_)) || !self.given.has("dtype"),
            "--dtype is given with weights of {}, which are computed in their own type",
            self.weights
        );
        let config = self.given.config()?;
        Ok(Bench {
            shape: self.shape.clone(),
            weights: self.weights,
            precision: config.dtype,
            cache: config.cache,
            device: config.device.open()?,
            threads: config.threads,
            path: self.path,
        })
    }
}

/// The lines of a table that say what was measured.
fn about(about: &About) -> Vec<(&'static str, String)> {
    let threads = match about.device.kind.as_str() {
        "cpu" => format!(", {} threads", about.device.threads),
        _ => String::new(),
    };
    vec![
        (
            "model",
            format!(
                "{}, weights {}, computed in {}",
                about.shape, about.weights, about.dtype
            ),
        ),
        (
            "device",
            format!("{} ({}{threads})", about.device.kind, about.device.name),
        ),
        (
            "cache",
            format!(
                "{} tokens, policy {}, decoded in {}",
                about.budget, about.policy, about.path
            ),
        ),
        (
            "code",
            format!("{} {}", about.version, about.commit.unwrap_or_default()),
        ),
    ]
}

/// A spread of times as a line of a table says it.
fn ms(spread: &Spread) -> String {
    format!(
        "{:.3} ms median, {:.3} mean, {:.3} to {:.3} (10 to 90 %), most {:.3}",
        spread.median, spread.mean, spread.p10, spread.p90, spread.max
    )
}

/// Bytes as people read them.
fn bytes(count: f64) -> String {
    match count {
        count if count >= 1e9 => format!("{:.2} GB", count * 1e-9),
        count => format!("{:.2} MB", count * 1e-6),
    }
}

/// A table of two columns.
fn table(rows: Vec<(&str, String)>) -> String {
    let lines = rows.iter().map(|(name, value)| {
        let line = format!("{name:12} {value}");
        format!("{}\n", line.trim_end())
    });
    lines.collect()
}
