//! `inf_mllm eval stream`: a long stream through one policy after the other.

use std::path::PathBuf;

use anyhow::{ensure, Result};
use inf_mllm::cache::PolicyKind;
use inf_mllm::eval::endless::{endless, EndlessOptions, EndlessResult};
use inf_mllm::eval::text::Text;
use inf_mllm::eval::timing::StepTimes;
use inf_mllm::eval::variant::describe;
use serde_json::json;

use super::common::{label, Bench, Common, Variants};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Text file, UTF-8; repeated where it is shorter than the stream.
    #[arg(long)]
    text: PathBuf,
    #[command(flatten)]
    variants: Variants,
    /// Tokens of the stream.
    #[arg(long, default_value_t = 200_000)]
    tokens: usize,
    /// Tokens per forward pass.
    #[arg(long, default_value_t = 64)]
    chunk: usize,
    /// Tokens per block of the results; 0: a hundredth of the stream in whole chunks.
    #[arg(long, default_value_t = 0)]
    block: usize,
    /// Times that a step on the state at the end is compared with one on the state when first full; 0: not at all.
    #[arg(long, default_value_t = 31)]
    pairs: usize,
}

pub fn run(args: &Args) -> Result<()> {
    ensure!(args.chunk > 0, "--chunk is 0, expected at least 1");
    let mut bench = Bench::open(&args.common)?;
    let (tokens, pairs) = match args.common.quick {
        true => (1024, 3),
        false => (args.tokens, args.pairs),
    };
    let block = match args.block {
        0 => (tokens / 100).div_ceil(args.chunk).max(1) * args.chunk,
        given => given,
    };
    let options = EndlessOptions {
        tokens,
        chunk: args.chunk,
        block,
        pairs,
    };
    let text = Text::load(&args.text, tokens, &bench.model)?;
    let mut rows = Vec::new();
    for config in args.variants.configs(bench.model.context())? {
        if config.policy == PolicyKind::Full && tokens > config.budget {
            bench
                .bar
                .println("full attention cannot take the stream: left out");
            continue;
        }
        let parameters = json!({
            "cache": describe(&config), "stream": tokens, "chunk": args.chunk, "block": block, "pairs": pairs,
        });
        let key = bench.key("stream", &text, &text.ids, parameters);
        let what = format!("{} at {}", label(&config), config.budget);
        let result = bench.cell(&key, what, |bench| {
            bench.bar.inc_length(tokens as u64);
            let result = bench
                .measure(|model, progress| endless(model, &text.ids, &config, &options, &progress));
            Ok(result?)
        })?;
        rows.push((label(&config), config.budget, result));
    }
    bench.bar.finish_and_clear();
    print(&rows);
    Ok(())
}

/// Start and end of each stream: the second block, which is the first with a full cache in most runs, and the last.
fn print(rows: &[(String, usize, EndlessResult)]) {
    println!(
        "{:<40} {:>6} {:>8} {:>15} {:>15} {:>15} {:>15} {:>17} {:>12} {:>12}",
        "policy (second block, last block)",
        "budget",
        "tokens",
        "loss",
        "ms/token",
        "MB",
        "keys/token",
        "stale %",
        "chunk step",
        "decode step"
    );
    for (policy, budget, result) in rows {
        let (Some(first), Some(last)) = (
            result.blocks.get(1).or(result.blocks.first()),
            result.blocks.last(),
        ) else {
            continue;
        };
        let both = |digits: usize, value: &dyn Fn(&inf_mllm::eval::endless::Block) -> f64| {
            format!("{:.digits$} {:.digits$}", value(first), value(last))
        };
        let ratio = |times: &Option<StepTimes>| {
            times
                .as_ref()
                .map_or("-".to_string(), |times| format!("{:.3}", times.ratio))
        };
        println!(
            "{policy:<40} {budget:>6} {:>8} {:>15} {:>15} {:>15} {:>15} {:>17} {:>12} {:>12}",
            result.tokens,
            both(3, &|block| block.loss),
            both(3, &|block| block.ms_per_token),
            both(1, &|block| block.bytes as f64 / 1e6),
            both(1, &|block| block.attended_per_token),
            both(1, &|block| 100.0
                * block.ages.as_ref().map_or(0.0, |ages| ages.stale)),
            ratio(&result.chunk_step),
            ratio(&result.decode_step),
        );
    }
}
