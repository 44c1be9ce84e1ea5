//! `inf_mllm eval ppl`: perplexity per text, policy, budget and chunk size.

use std::path::PathBuf;

use anyhow::{ensure, Result};
use inf_mllm::eval::ppl::{recomputation, PplOptions, PplResult};
use inf_mllm::eval::text::Text;
use serde_json::json;

use super::common::{label, Bench, Common, Variants};
use super::streams::Streams;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Text files, UTF-8.
    #[arg(long, num_args = 1.., required = true)]
    text: Vec<PathBuf>,
    #[command(flatten)]
    variants: Variants,
    /// Tokens per forward pass.
    #[arg(long, num_args = 1.., default_values_t = [64])]
    chunks: Vec<usize>,
    /// Tokens of each text.
    #[arg(long, default_value_t = 20_000)]
    tokens: usize,
    /// Tokens of each text that are left out at its start.
    #[arg(long, default_value_t = 0)]
    start: usize,
    /// Tokens per block of losses.
    #[arg(long, default_value_t = 512)]
    block: usize,
    /// Also recompute a sliding window of each budget's length, in chunks of 64 tokens, on every n-th block; 0: not at all.
    #[arg(long, default_value_t = 0)]
    reference_every: usize,
    /// Streams that go through the model together, in lock-step: one pass over the weights serves all of them. 0: every policy and
    /// budget when a chunk has fewer than 16 tokens, else 1.
    #[arg(long, default_value_t = 0)]
    together: usize,
}

/// A row of the table.
struct Row {
    text: String,
    policy: String,
    budget: usize,
    chunk: usize,
    result: PplResult,
}

pub fn run(args: &Args) -> Result<()> {
    ensure!(
        args.chunks.iter().all(|&chunk| chunk > 0) && args.block > 0,
        "a chunk or a block of 0 tokens, expected at least 1"
    );
    let mut bench = Bench::open(&args.common)?;
    let tokens = if args.common.quick { 512 } else { args.tokens };
    let mut rows = Vec::new();
    for file in &args.text {
        let text = Text::load(file, args.start + tokens, &bench.model)?;
        let ids = text.part(args.start, tokens)?;
        for &chunk in &args.chunks {
            policies(args, &mut bench, (&text, ids), chunk, &mut rows)?;
        }
        if args.reference_every > 0 {
            for &budget in &args.variants.budgets {
                let every = args.reference_every;
                rows.push(reference(args, &mut bench, (&text, ids), budget, every)?);
            }
        }
    }
    bench.bar.finish_and_clear();
    print(&rows);
    Ok(())
}

/// All policies and budgets on one text.
fn policies(
    args: &Args,
    bench: &mut Bench,
    (text, ids): (&Text, &[u32]),
    chunk: usize,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let configs = args
        .variants
        .configs(ids.len().min(bench.model.context()))?;
    let streams = Streams {
        eval: "ppl",
        text,
        ids,
        options: PplOptions {
            chunk,
            block: args.block,
            ages_every: args.block.max(ids.len() / 64),
        },
        also: ("start", json!(args.start)),
        together: match args.together {
            0 if chunk < 16 => configs.len(),
            0 => 1,
            given => given,
        },
    };
    let results = streams.results(bench, &configs)?;
    rows.extend(configs.iter().zip(results).map(|(config, result)| Row {
        text: text.name.clone(),
        policy: label(config),
        budget: config.budget,
        chunk,
        result,
    }));
    Ok(())
}

/// Recomputation of a sliding window as long as the budget.
fn reference(
    args: &Args,
    bench: &mut Bench,
    (text, ids): (&Text, &[u32]),
    length: usize,
    every: usize,
) -> Result<Row> {
    const CHUNK: usize = 64;
    let parameters = json!({
        "length": length, "every": every, "chunk": CHUNK, "block": args.block, "start": args.start,
    });
    let key = bench.key("recomputation", text, ids, parameters);
    let options = PplOptions {
        chunk: CHUNK,
        block: args.block,
        ages_every: 0,
    };
    let what = format!("{}, recomputation of {length}", text.name);
    let result = bench.cell(&key, what, |bench| {
        bench.bar.inc_length(ids.len() as u64);
        let result = bench.measure(|model, progress| {
            recomputation(model, ids, length, every, &options, &progress)
        });
        Ok(result?)
    })?;
    Ok(Row {
        text: text.name.clone(),
        policy: "recomputation".to_string(),
        budget: length,
        chunk: CHUNK,
        result,
    })
}

/// The table; `over ref` is the perplexity over that of recomputation on the blocks that both measured.
fn print(rows: &[Row]) {
    println!(
        "{:<10} {:<40} {:>6} {:>5} {:>7} {:>10} {:>8} {:>6} {:>9}",
        "text",
        "policy",
        "budget",
        "chunk",
        "tokens",
        "perplexity",
        "over ref",
        "stale",
        "ms/token"
    );
    for row in rows {
        let reference = rows.iter().find(|other| {
            other.policy == "recomputation" && other.text == row.text && other.budget == row.budget
        });
        let over = reference.map_or("-".to_string(), |reference| {
            let shared = row.result.blocks.shared(&reference.result.blocks);
            let difference = shared.iter().map(|(_, own, other)| own - other);
            let mean = difference.sum::<f64>() / shared.len().max(1) as f64;
            format!("{:.4}", mean.exp())
        });
        let stale = row.result.ages.last().map_or("-".to_string(), |ages| {
            format!("{:.1} %", 100.0 * ages.stale)
        });
        println!(
            "{:<10} {:<40} {:>6} {:>5} {:>7} {:>10.3} {:>8} {:>6} {:>9.2}",
            row.text,
            row.policy,
            row.budget,
            row.chunk,
            row.result.tokens,
            row.result.perplexity,
            over,
            stale,
            row.result.ms_per_token
        );
    }
}
