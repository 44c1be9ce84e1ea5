//! `inf_mllm eval sweep`: inf_mllm's parameters, chosen on part A of each text and reported on part B.

use std::path::PathBuf;

use anyhow::{ensure, Result};
use inf_mllm::cache::policy::BiasForm;
use inf_mllm::cache::{CacheConfig, PolicyKind, Scope};
use inf_mllm::eval::ppl::PplOptions;
use inf_mllm::eval::text::Text;
use inf_mllm::eval::variant::describe;
use serde_json::json;

use super::common::{label, Bench, Common};
use super::streams::Streams;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Text files, UTF-8.
    #[arg(long, num_args = 1.., required = true)]
    text: Vec<PathBuf>,
    /// Slots per layer, tokens.
    #[arg(long, default_value_t = 512)]
    budget: usize,
    /// Tokens of each part.
    #[arg(long, default_value_t = 20_000)]
    tokens: usize,
    /// Tokens per forward pass.
    #[arg(long, default_value_t = 64)]
    chunk: usize,
    /// Biases per token of age (form slope), in units of the mean score; 0 is always among them.
    #[arg(long, num_args = 1.., default_values_t = [0.0005, 0.002, 0.02])]
    slopes: Vec<f64>,
    /// Biases over the whole range of ages (form range), in units of the mean score.
    #[arg(long, num_args = 1.., default_values_t = [0.5, 2.0, 20.0])]
    ranges: Vec<f64>,
    /// Shares of what is kept above the prefix that are always the newest tokens.
    #[arg(long, num_args = 1.., default_values_t = [0.25, 0.5, 0.75])]
    recent: Vec<f64>,
    /// Queries that score.
    #[arg(long, num_args = 1.., default_values_t = [8, 32, 64])]
    windows: Vec<usize>,
    /// Every combination instead of one parameter at a time.
    #[arg(long)]
    all: bool,
}

/// Streams in lock-step.
const TOGETHER: usize = 8;

/// The two parts of every text.
const PARTS: [&str; 2] = ["A", "B"];

struct Row {
    config: CacheConfig,
    /// Mean loss over the texts, nats per token, per part.
    loss: [f64; 2],
    /// Share of kept tokens older than 8 budgets, mean over the texts of part B: in the middle, at the end.
    stale: [f64; 2],
}

pub fn run(args: &Args) -> Result<()> {
    ensure!(args.chunk > 0, "--chunk is 0, expected at least 1");
    let mut bench = Bench::open(&args.common)?;
    let tokens = if args.common.quick { 512 } else { args.tokens };
    let texts = args
        .text
        .iter()
        .map(|file| Text::load(file, PARTS.len() * tokens, &bench.model))
        .collect::<Result<Vec<_>, _>>()?;
    let configs = configs(args);
    let mut rows = configs
        .iter()
        .map(|config| Row {
            config: config.clone(),
            loss: [0.0; 2],
            stale: [0.0; 2],
        })
        .collect::<Vec<_>>();
    let share = 1.0 / texts.len() as f64;
    for text in &texts {
        for (part, name) in PARTS.into_iter().enumerate() {
            let streams = Streams {
                eval: "sweep",
                text,
                ids: text.part(part * tokens, tokens)?,
                options: PplOptions {
                    chunk: args.chunk,
                    block: 512,
                    ages_every: (tokens / 32).max(args.chunk),
                },
                also: ("part", json!(name)),
                together: TOGETHER,
            };
            for (row, result) in rows.iter_mut().zip(streams.results(&mut bench, &configs)?) {
                row.loss[part] += result.loss * share;
                if part == 1 {
                    let stale = |at: usize| result.ages.get(at).map_or(0.0, |ages| ages.stale);
                    let last = result.ages.len().saturating_sub(1);
                    row.stale[0] += stale(last / 2) * share;
                    row.stale[1] += stale(last) * share;
                }
            }
        }
    }
    bench.bar.finish_and_clear();
    print(rows);
    Ok(())
}

/// Around the default: every bias in both forms, then n_recent, window and scope one at a time - or all combinations.
fn configs(args: &Args) -> Vec<CacheConfig> {
    let base = CacheConfig {
        policy: PolicyKind::InfMllm,
        budget: args.budget,
        ..CacheConfig::default()
    };
    let kept = base.budget - base.budget / 8 - base.sinks;
    let mut biases = vec![(BiasForm::Slope, 0.0)];
    biases.extend(args.slopes.iter().map(|&bias| (BiasForm::Slope, bias)));
    biases.extend(args.ranges.iter().map(|&bias| (BiasForm::Range, bias)));
    let recent = args
        .recent
        .iter()
        .map(|share| (kept as f64 * share) as usize);
    let recent = recent.collect::<Vec<_>>();
    let scopes = [Scope::KvHead, Scope::Model];
    let mut configs = Vec::new();
    if args.all {
        for &(bias_form, bias) in &biases {
            for &n_recent in &recent {
                for &query_window in &args.windows {
                    configs.extend(scopes.map(|scope| CacheConfig {
                        bias,
                        bias_form,
                        n_recent,
                        query_window,
                        scope,
                        ..base.clone()
                    }));
                }
            }
        }
        return configs;
    }
    configs.extend(biases.iter().map(|&(bias_form, bias)| CacheConfig {
        bias,
        bias_form,
        ..base.clone()
    }));
    configs.extend(recent.iter().map(|&n_recent| CacheConfig {
        n_recent,
        ..base.clone()
    }));
    configs.extend(args.windows.iter().map(|&query_window| CacheConfig {
        query_window,
        ..base.clone()
    }));
    configs.extend(scopes.map(|scope| CacheConfig {
        scope,
        ..base.clone()
    }));
    let mut seen = Vec::new();
    configs.retain(|config| {
        let key = describe(config);
        let new = !seen.contains(&key);
        seen.push(key);
        new
    });
    configs
}

/// Best on part A first.
fn print(mut rows: Vec<Row>) {
    rows.sort_by(|a, b| a.loss[0].total_cmp(&b.loss[0]));
    println!(
        "{:<56} {:>12} {:>12} {:>13} {:>10}",
        "parameters (best on A first)",
        "perplexity A",
        "perplexity B",
        "stale, middle",
        "stale, end"
    );
    for row in rows {
        println!(
            "{:<56} {:>12.3} {:>12.3} {:>11.1} % {:>8.1} %",
            label(&row.config),
            row.loss[0].exp(),
            row.loss[1].exp(),
            100.0 * row.stale[0],
            100.0 * row.stale[1]
        );
    }
}
