//! `inf_mllm eval ppl`: perplexity per text, policy, budget and chunk size.

use std::path::PathBuf;

use anyhow::{ensure, Result};
use inf_mllm::cache::{CacheConfig, PolicyKind};
use inf_mllm::eval::ppl::{perplexity, recomputation, PplOptions, PplResult};
use inf_mllm::eval::text::Text;
use inf_mllm::eval::variant::describe;
use serde_json::{json, Value};

use super::common::{label, Bench, Common, Variants};

/// Streams in chunks of fewer tokens go through the model together: one pass over the weights serves all of them.
const LOCK_STEP: usize = 16;

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

/// All policies and budgets on one text; those of small chunks in lock-step.
fn policies(
    args: &Args,
    bench: &mut Bench,
    (text, ids): (&Text, &[u32]),
    chunk: usize,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let longest = ids.len().min(bench.model.context());
    let options = PplOptions {
        chunk,
        block: args.block,
        ages_every: args.block.max(ids.len() / 64),
    };
    let mut missing: Vec<(CacheConfig, Value)> = Vec::new();
    for config in args.variants.configs(longest)? {
        let part = part(ids, &config);
        let parameters = json!({
            "cache": describe(&config), "chunk": chunk, "block": args.block, "start": args.start,
        });
        let key = bench.key("ppl", text, part, parameters);
        match bench.find(&key)? {
            Some(result) => rows.push(row(text, &config, chunk, result)),
            None => missing.push((config, key)),
        }
    }
    let together = if chunk < LOCK_STEP { missing.len() } else { 1 };
    // Streams of one length only can go together.
    missing.sort_by_key(|(config, _)| part(ids, config).len());
    let total = missing
        .iter()
        .map(|(config, _)| part(ids, config).len())
        .sum::<usize>();
    bench.bar.inc_length(total as u64);
    while !missing.is_empty() {
        let ids = part(ids, &missing[0].0);
        let same = missing
            .iter()
            .take(together)
            .take_while(|(config, _)| part(ids, config).len() == ids.len())
            .count();
        let group = missing.drain(..same).collect::<Vec<_>>();
        let configs = group.iter().map(|(config, _)| config.clone());
        let configs = configs.collect::<Vec<_>>();
        let what = match configs.as_slice() {
            [one] => format!("{}, {} at {}", text.name, label(one), one.budget),
            several => format!("{}, {} in lock-step", text.name, several.len()),
        };
        bench.begin(format!("{what}, chunk {chunk}"));
        let results = bench.measure(|model, progress| {
            let progress = |done: usize| progress(done * configs.len());
            perplexity(model, ids, &configs, &options, &progress)
        })?;
        for ((config, key), result) in group.into_iter().zip(results) {
            bench.add(&key, &result)?;
            rows.push(row(text, &config, chunk, result));
        }
    }
    Ok(())
}

/// What of the text a policy can take: full attention no more than the model's context.
fn part<'a>(ids: &'a [u32], config: &CacheConfig) -> &'a [u32] {
    match config.policy {
        PolicyKind::Full => &ids[..ids.len().min(config.budget)],
        _ => ids,
    }
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
    let result = match bench.find(&key)? {
        Some(result) => result,
        None => {
            let options = PplOptions {
                chunk: CHUNK,
                block: args.block,
                ages_every: 0,
            };
            bench.bar.inc_length(ids.len() as u64);
            bench.begin(format!("{}, recomputation of {length}", text.name));
            let result = bench.measure(|model, progress| {
                recomputation(model, ids, length, every, &options, &progress)
            })?;
            bench.add(&key, &result)?;
            result
        }
    };
    Ok(Row {
        text: text.name.clone(),
        policy: "recomputation".to_string(),
        budget: length,
        chunk: CHUNK,
        result,
    })
}

fn row(text: &Text, config: &CacheConfig, chunk: usize, result: PplResult) -> Row {
    Row {
        text: text.name.clone(),
        policy: label(config),
        budget: config.budget,
        chunk,
        result,
    }
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
