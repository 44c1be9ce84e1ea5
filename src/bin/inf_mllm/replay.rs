//! `inf_mllm replay`: a bag and a script through the stream, in lock-step.

use std::path::PathBuf;

use anyhow::{ensure, Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use inf_mllm::stream::bag::Bag;
use inf_mllm::stream::replay::{replay, timings_file, ReplayOptions, Summary, Tally};
use inf_mllm::stream::script::Script;
use inf_mllm::stream::{Session, SessionConfig};

use crate::args::{Given, Replayed};

#[derive(clap::Args)]
pub struct Args {
    /// Bag directory, or one file of it (mcap, sqlite3).
    #[arg(long)]
    bag: PathBuf,
    /// Image topic; the first one with colour images if not given.
    #[arg(long)]
    topic: Option<String>,
    /// Several cameras: the label of one and its image topic, once for each.
    #[arg(long, value_name = "LABEL=TOPIC", value_parser = camera, conflicts_with = "topic")]
    camera: Vec<(String, String)>,
    /// Instructions with their times, YAML; their system prompt holds unless one is given.
    #[arg(long)]
    instructions: PathBuf,
    /// Model directory, the .gguf file of a decoder, or a name on the hub (ORG/NAME) that is in the local cache.
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
    /// Recall for every instruction the frames that show its answer, by the script's `shown`, instead of those that match.
    #[arg(long)]
    oracle: bool,
    #[command(flatten)]
    given: Given<Replayed>,
}

pub fn run(args: &Args) -> Result<()> {
    ensure!(args.repeat > 0, "--repeat is 0, expected at least 1");
    let script = Script::load(&args.instructions)?;
    let bag = open(args)?;
    let mut defaults = SessionConfig {
        model_dir: args.model.clone(),
        ..SessionConfig::default()
    };
    // Nobody looks at them here.
    defaults.evidence.thumbnail_side = 0;
    if let Some(system_prompt) = &script.system_prompt {
        defaults.system_prompt.clone_from(system_prompt);
    }
    let labels = args.camera.iter().map(|(label, _)| label.clone());
    defaults.cameras.labels = labels.collect();
    let mut session = Session::new(args.given.over(defaults)?)?;
    let frames = bag.count() as u64 * args.repeat;
    let bar = ProgressBar::new(frames).with_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} frames, {per_sec}, {eta} left")
            .context("progress bar")?,
    );
    let options = ReplayOptions {
        repeat: args.repeat,
        black: args.black,
        oracle: args.oracle,
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

/// What `--camera` is given.
fn camera(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((label, topic)) if !topic.is_empty() => Ok((label.to_string(), topic.to_string())),
        _ => Err(format!("{text:?}, expected LABEL=TOPIC")),
    }
}

fn open(args: &Args) -> Result<Bag> {
    if args.camera.is_empty() {
        return Ok(Bag::open(&args.bag, args.topic.as_deref())?);
    }
    let topics = args.camera.iter().map(|(_, topic)| topic.as_str());
    let topics = topics.collect::<Vec<_>>();
    for (i, topic) in topics.iter().enumerate() {
        ensure!(
            !topics[..i].contains(topic),
            "--camera has the topic {topic} twice, expected one of its own for each camera"
        );
    }
    Ok(Bag::of_cameras(&args.bag, &topics)?)
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
        let percent = 100.0 * tally.right as f64 / tally.of as f64;
        println!(
            "  {name:<12} {:>4} of {:>4}  {percent:5.1} %",
            tally.right, tally.of
        );
    };
    // Where no true answer is known, none is wrong.
    if summary.all.of == 0 {
        return;
    }
    let groups = [&summary.by_type, &summary.by_memory, &summary.by_cell];
    for (name, tally) in groups.into_iter().flatten() {
        row(name, tally);
    }
    row("all", &summary.all);
}
