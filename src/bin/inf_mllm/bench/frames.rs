//! `inf_mllm bench frames`: frames per second into the cache while tokens are decoded.

use std::time::Duration;

use anyhow::{ensure, Result};
use inf_mllm::eval::speed::frames::{Fed, Load};

use super::{about, bytes, ms, table, What};
use crate::print;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    what: What,
    /// Size of a picture, pixels.
    #[arg(long, default_value = "512x512", value_parser = size)]
    size: (usize, usize),
    /// Tokens that are decoded per second meanwhile; 0: none.
    #[arg(long, default_value_t = 20.0)]
    tokens_per_second: f64,
    /// How long.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

/// A width and a height as in 640x480.
fn size(text: &str) -> Result<(usize, usize), String> {
    let sides = text.split_once('x');
    let sides = sides.and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    let possible = |(w, h): &(usize, usize)| [w, h].iter().all(|side| (1..=16384).contains(*side));
    sides
        .filter(possible)
        .ok_or_else(|| format!("{text} is no size, expected one from 1x1 to 16384x16384"))
}

pub fn run(args: &Args) -> Result<()> {
    let (rate, seconds) = (args.tokens_per_second, args.seconds);
    ensure!(
        (0.0..=1e6).contains(&rate),
        "--tokens-per-second is {rate}, expected 0 to 1000000"
    );
    ensure!(
        (0.0..=86400.0).contains(&seconds),
        "--seconds is {seconds}, expected 0 to 86400"
    );
    let fed = args.what.bench()?.frames(Load {
        picture: args.size,
        tokens_per_s: rate,
        time: Duration::from_secs_f64(seconds),
    })?;
    print(&match args.what.json {
        true => format!("{}\n", serde_json::to_string(&fed)?),
        false => table(rows(&fed)),
    })
}

fn rows(fed: &Fed) -> Vec<(&'static str, String)> {
    let mut rows = about(&fed.about);
    let (width, height) = fed.picture;
    rows.extend([
        (
            "frames",
            format!(
                "{} of {width}x{height} in {:.1} s, {} tokens each",
                fed.frames, fed.seconds, fed.tokens_per_frame
            ),
        ),
        ("per second", format!("{:.1} frames", fed.frames_per_s)),
        ("per frame", ms(&fed.frame_ms)),
        (
            "tokens",
            format!(
                "{:.1} per second of {} due, {:.3} ms each, late by {:.3} (median)",
                fed.tokens_per_s, fed.asked_tokens_per_s, fed.token_ms.median, fed.late_ms.median
            ),
        ),
        (
            "memory",
            fed.memory
                .map_or("unknown".to_string(), |used| bytes(used as f64)),
        ),
    ]);
    rows
}
