//! `inf_mllm replay`: a bag and a script through the stream, in lock-step.

use std::path::PathBuf;

use anyhow::{ensure, Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use inf_mllm::model::precision::Precision;
use inf_mllm::model::weights::Quantization;
use inf_mllm::stream::bag::Bag;
use inf_mllm::stream::gate::{FRAME_RATES, MIN_CHANGES};
use inf_mllm::stream::replay::{replay, timings_file, ReplayOptions, Summary, Tally};
use inf_mllm::stream::script::Script;
use inf_mllm::stream::{GateConfig, Session, SessionConfig};

use crate::args::{CacheArgs, DeviceArgs};

#[derive(clap::Args)]
pub struct Args {
    /// Bag directory, or one file of it (mcap, sqlite3).
    #[arg(long)]
    bag: PathBuf,
    /// Image topic; the first one with colour images if not given.
    #[arg(long)]
    topic: Option<String>,
    /// Instructions with their times, YAML.
    #[arg(long)]
    instructions: PathBuf,
    /// Model directory.
    #[arg(long)]
    model: PathBuf,
    /// Answers, JSON lines; timings go to a file beside it.
    #[arg(long)]
    out: PathBuf,
    /// Times the bag is played, end to end.
    #[arg(long, default_value_t = 1)]
    repeat: u64,
    /// Replace every frame by a black one: what can be guessed without seeing.
    #[arg(long)]
    black: bool,
    /// System prompt; that of the instructions file if not given.
    #[arg(long)]
    system: Option<String>,
    /// Standing instruction: an example of what inf_mllm_plus is to keep.
    #[arg(long)]
    standing: Option<String>,
    /// Longest answer where an instruction does not say, tokens.
    #[arg(long)]
    max_new_tokens: Option<usize>,
    /// Threads of the model; 0: as many as suit its size. The answers do not depend on it.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// 0: greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    cache: CacheArgs,
    /// Most frames used per second of their stamps; 0: all
    #[arg(long, default_value_t = 0.0)]
    frame_rate: f64,
    /// Picture difference from the last frame used, 0 to 1, from which a frame is used; 0: any
    #[arg(long, default_value_t = 0.0)]
    min_change: f64,
    /// What becomes of the decoder's matrices: auto, none, q8_0, q4_k.
    #[arg(long, default_value_t)]
    quantization: Quantization,
    /// Type of the arithmetic: auto, f32, f16, bf16.
    #[arg(long, default_value_t)]
    dtype: Precision,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args) -> Result<()> {
    ensure!(args.repeat > 0, "--repeat is 0, expected at least 1");
    ensure!(
        FRAME_RATES.contains(&args.frame_rate),
        "--frame-rate is {}, expected 0 to 1000",
        args.frame_rate
    );
    ensure!(
        MIN_CHANGES.contains(&args.min_change),
        "--min-change is {}, expected 0 to 1",
        args.min_change
    );
    let script = Script::load(&args.instructions)?;
    let bag = Bag::open(&args.bag, args.topic.as_deref())?;
    let defaults = SessionConfig::default();
    let mut session = Session::new(SessionConfig {
        model_dir: args.model.clone(),
        device: args.device.device,
        quantization: args.quantization,
        dtype: args.dtype,
        cache: args.cache.over(defaults.cache),
        system_prompt: args
            .system
            .clone()
            .or_else(|| script.system_prompt.clone())
            .unwrap_or(defaults.system_prompt),
        standing_instruction: args.standing.clone().unwrap_or_default(),
        max_new_tokens: args.max_new_tokens.unwrap_or(defaults.max_new_tokens),
        temperature: args.temperature,
        seed: args.seed,
        queue_size: defaults.queue_size,
        gate: GateConfig {
            frame_rate: args.frame_rate,
            min_change: args.min_change,
            ..defaults.gate
        },
        threads: args.threads,
    })?;
    let frames = bag.count() as u64 * args.repeat;
    let bar = ProgressBar::new(frames).with_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} frames, {per_sec}, {eta} left")
            .context("progress bar")?,
    );
    let options = ReplayOptions {
        repeat: args.repeat,
        black: args.black,
        out: args.out.clone(),
    };
    let summary = session.pool().install(|| {
        let mut progress = |played| bar.set_position(played);
        replay(&mut session, &bag, &script, &options, &mut progress)
    })?;
    bar.finish_and_clear();
    print(&summary);
    println!(
        "answers: {}, timings: {}",
        args.out.display(),
        timings_file(&args.out).display()
    );
    ensure!(
        summary.frames > 0,
        "no frame was used: of {} images of {}, {} were rejected{} and {} skipped",
        bag.count(),
        bag.topic(),
        summary.frames_rejected,
        reasons(&summary),
        summary.frames_skipped
    );
    Ok(())
}

/// Why images were rejected, in words.
fn reasons(summary: &Summary) -> String {
    let reasons = summary.rejected_by_reason.iter();
    let reasons = reasons.map(|(reason, count)| format!("{reason}: {count}"));
    match reasons.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => none,
        list => format!(" ({list})"),
    }
}

fn print(summary: &Summary) {
    println!(
        "{} frames ({} rejected, {} skipped), {} tokens, cache at most {} of {} slots, {} evicted in {} compactions",
        summary.frames,
        summary.frames_rejected,
        summary.frames_skipped,
        summary.tokens,
        summary.most_used,
        summary.budget,
        summary.tokens_evicted,
        summary.compactions
    );
    println!("{} answers, {} errors", summary.answers, summary.errors);
    let row = |name: &str, tally: &Tally| {
        let percent = 100.0 * tally.right as f64 / tally.of.max(1) as f64;
        println!(
            "  {name:<12} {:>4} of {:>4}  {percent:5.1} %",
            tally.right, tally.of
        );
    };
    for (name, tally) in summary.by_type.iter().chain(&summary.by_memory) {
        row(name, tally);
    }
    row("all", &summary.all);
}
