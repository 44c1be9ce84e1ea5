//! The perplexity of a text under one or more policies, and the reference lines: recomputation of a sliding window.

use serde::{Deserialize, Serialize};

use super::ages::Ages;
use super::feed::{Blocks, Feed};
use super::loss::token_losses;
use super::model::EvalModel;
use super::{parameter, EvalError, Progress};
use crate::cache::{CacheConfig, PolicyKind, MIN_BUDGET};

/// What is measured on a text.
#[derive(Debug, Clone, Copy)]
pub struct PplOptions {
    /// Tokens per forward pass.
    pub chunk: usize,
    /// Tokens per block of losses.
    pub block: usize,
    /// Tokens from one look at the ages to the next; 0: only at the end.
    pub ages_every: usize,
}

/// One policy on one text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PplResult {
    pub tokens: usize,
    /// Nats per token.
    pub loss: f64,
    pub perplexity: f64,
    pub blocks: Blocks,
    /// Time of model and cache, without the losses, milliseconds per token; that of all streams where they ran in lock-step.
    pub ms_per_token: f64,
    pub ages: Vec<Ages>,
    pub compactions: u64,
}

/// Streams `ids` through every policy of `configs`, in lock-step, and scores each token by what was kept before it.
pub fn perplexity(
    model: &EvalModel,
    ids: &[u32],
    configs: &[CacheConfig],
    options: &PplOptions,
    progress: Progress,
) -> Result<Vec<PplResult>, EvalError> {
    check(options)?;
    let caches = configs
        .iter()
        .map(|config| model.cache(config))
        .collect::<Result<_, _>>()?;
    let mut feed = Feed::new(model, caches, options.block);
    let mut ages = vec![Vec::new(); configs.len()];
    let mut look = options.ages_every;
    for chunk in ids.chunks(options.chunk) {
        feed.chunk(chunk, ids.get(feed.fed + chunk.len()).copied())?;
        let due = options.ages_every > 0 && feed.fed >= look;
        if due || feed.fed == ids.len() {
            look += options.ages_every;
            for (ages, cache) in ages.iter_mut().zip(&feed.caches) {
                ages.extend(Ages::of(cache));
            }
        }
        progress(chunk.len());
    }
    let ms_per_token = feed.seconds * 1e3 / ids.len() as f64;
    let results = feed.blocks.into_iter().zip(&feed.caches).zip(ages);
    Ok(results
        .map(|((blocks, cache), ages)| PplResult {
            tokens: ids.len(),
            loss: blocks.mean(),
            perplexity: blocks.perplexity(),
            blocks,
            ms_per_token,
            ages,
            compactions: cache.usage().compactions,
        })
        .collect())
}

/// Sliding-window recomputation: before each chunk of a measured block, the last `length` tokens up to the chunk's end are
/// prefilled afresh under full attention. Every `every`-th block is measured (1: all of them).
pub fn recomputation(
    model: &EvalModel,
    ids: &[u32],
    length: usize,
    every: usize,
    options: &PplOptions,
    progress: Progress,
) -> Result<PplResult, EvalError> {
    check(options)?;
    let (chunk, block) = (options.chunk, options.block);
    if length <= chunk {
        return Err(parameter(
            "budget",
            length,
            format!("more than a chunk of {chunk} tokens"),
        ));
    }
    let config = CacheConfig {
        policy: PolicyKind::Full,
        budget: length.max(MIN_BUDGET),
        ..CacheConfig::default()
    };
    let mut caches = [model.cache(&config)?];
    let mut blocks = Blocks::new(block);
    let start = std::time::Instant::now();
    let mut measured = 0;
    for from in (0..ids.len()).step_by(chunk) {
        let to = (from + chunk).min(ids.len());
        progress(to - from);
        if !(from / block).is_multiple_of(every.max(1)) {
            continue;
        }
        let window = to.saturating_sub(length);
        caches[0].reset(0)?;
        let hidden = model.append(None, &ids[window..to], &mut caches)?;
        // Token i is predicted at i - 1; the very first token is not predicted at all.
        let first = from.max(1);
        if first < to {
            let rows = hidden.narrow(0, first - 1 - window, to - first)?;
            blocks.add(
                first,
                &token_losses(&model.decoder, &rows, &ids[first..to])?,
            );
        }
        measured += to - from;
    }
    Ok(PplResult {
        tokens: ids.len(),
        loss: blocks.mean(),
        perplexity: blocks.perplexity(),
        blocks,
        ms_per_token: start.elapsed().as_secs_f64() * 1e3 / measured.max(1) as f64,
        ages: Vec::new(),
        compactions: 0,
    })
}

fn check(options: &PplOptions) -> Result<(), EvalError> {
    for (name, value) in [("chunk", options.chunk), ("block", options.block)] {
        if value == 0 {
            return Err(parameter(name, value, "at least 1 token"));
        }
    }
    Ok(())
}
