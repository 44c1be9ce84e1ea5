//! `inf_mllm bench decode`: milliseconds per token.

use std::time::Duration;

use anyhow::Result;
use inf_mllm::eval::speed::decode::{Decoded, Length};

use super::{about, bytes, ms, table, What};
use crate::print;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    what: What,
    /// Random tokens that are put into the cache first.
    #[arg(long, default_value_t = 2048)]
    fill: usize,
    /// Tokens that are decoded with the clock.
    #[arg(long, default_value_t = 200)]
    tokens: usize,
    /// Tokens that are decoded before the clock starts.
    #[arg(long, default_value_t = 16)]
    warmup: usize,
    /// Seconds after which no further token is decoded; 0: no limit.
    #[arg(long, default_value_t = 0)]
    seconds: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let limit = (args.seconds > 0).then(|| Duration::from_secs(args.seconds));
    let decoded = args.what.bench()?.decode(Length {
        fill: args.fill,
        warmup: args.warmup,
        tokens: args.tokens,
        limit,
    })?;
    print(&match args.what.json {
        true => format!("{}\n", serde_json::to_string(&decoded)?),
        false => table(rows(&decoded)),
    })
}

fn rows(decoded: &Decoded) -> Vec<(&'static str, String)> {
    let mut rows = about(&decoded.about);
    let (read, compactions) = (&decoded.read, &decoded.compactions);
    let asked = match decoded.tokens == decoded.asked {
        true => String::new(),
        false => format!(" of {}", decoded.asked),
    };
    let memory = |used: Option<u64>| used.map_or("unknown".to_string(), |used| bytes(used as f64));
    rows.extend([
        (
            "tokens",
            format!(
                "{}{asked}, behind {} in the stream",
                decoded.tokens, decoded.fill
            ),
        ),
        ("per token", ms(&decoded.ms)),
        ("per second", format!("{:.1} tokens", decoded.tokens_per_s)),
        (
            "flatness",
            format!(
                "{:.3} (mean of the last {} over that of the first)",
                decoded.flatness, decoded.window
            ),
        ),
        (
            "compactions",
            format!(
                "{}, {:.3} ms each, {:.2} % of the time",
                compactions.count,
                compactions.extra_ms,
                compactions.share * 100.0
            ),
        ),
        (
            "read",
            format!(
                "{} of weights and {} of the cache per token",
                bytes(read.weights as f64),
                bytes(read.cache as f64)
            ),
        ),
        (
            "floor",
            format!(
                "{:.3} ms at the {:.1} GB/s of a copy; {:.2} times that were taken",
                decoded.floor_ms, decoded.copy.gb_per_s, decoded.over_floor
            ),
        ),
        (
            "memory",
            format!(
                "{} before, {} after, {} of it keys and values",
                memory(decoded.memory.before),
                memory(decoded.memory.after),
                bytes(decoded.memory.cache as f64)
            ),
        ),
    ]);
    rows
}
