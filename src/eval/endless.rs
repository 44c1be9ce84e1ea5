//! A long stream through one policy: loss, time, memory and ages along it, and a step at its end against one at its start.

use serde::{Deserialize, Serialize};

use super::ages::Ages;
use super::feed::Feed;
use super::model::EvalModel;
use super::timing::{compare, StepTimes};
use super::{parameter, EvalError, Progress};
use crate::cache::{BoundedCache, CacheConfig};

/// What is measured along the stream.
#[derive(Debug, Clone, Copy)]
pub struct EndlessOptions {
    /// Tokens of the whole stream; the text is repeated where it is shorter.
    pub tokens: usize,
    /// Tokens per forward pass.
    pub chunk: usize,
    /// Tokens per block.
    pub block: usize,
    /// Pairs of steps that are timed at the end; 0: none.
    pub pairs: usize,
}

/// One block of the stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// Tokens of the stream at its end.
    pub at: u64,
    /// Nats per token.
    pub loss: f64,
    /// Time of model and cache, without the losses.
    pub ms_per_token: f64,
    /// Keys and values, allocated.
    pub bytes: usize,
    /// Keys that a token attended to, per layer.
    pub attended_per_token: f64,
    /// Rows that compactions have moved so far.
    pub rows_moved: u64,
    pub compactions: u64,
    pub evicted: u64,
    pub ages: Option<Ages>,
}

/// One policy on one stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndlessResult {
    pub tokens: usize,
    /// Nats per token over the whole stream.
    pub loss: f64,
    pub blocks: Vec<Block>,
    /// From one compaction to the next, in chunks of the stream; then token by token. Absent where nothing was compacted.
    pub chunk_step: Option<StepTimes>,
    pub decode_step: Option<StepTimes>,
}

/// Streams `ids`, again and again, through one policy.
pub fn endless(
    model: &EvalModel,
    ids: &[u32],
    config: &CacheConfig,
    options: &EndlessOptions,
    progress: Progress,
) -> Result<EndlessResult, EvalError> {
    let chunk = options.chunk;
    if chunk == 0 || !options.block.is_multiple_of(chunk) || options.block == 0 || ids.is_empty() {
        return Err(parameter(
            "block",
            options.block,
            format!("a multiple of the chunk ({chunk}), which is at least 1 token"),
        ));
    }
    let mut feed = Feed::new(model, vec![model.cache(config)?], options.block);
    let mut stream = ids.iter().copied().cycle();
    let mut next = stream.next();
    let mut take = |count: usize| -> (Vec<u32>, Option<u32>) {
        let taken = next
            .into_iter()
            .chain(stream.by_ref())
            .take(count)
            .collect();
        next = stream.next();
        (taken, next)
    };
    let layers = model.shape.layers;
    let mut blocks = Vec::new();
    let (mut keys, mut seconds) = (0, 0.0);
    while feed.fed < options.tokens {
        let (piece, next) = take(chunk.min(options.tokens - feed.fed));
        feed.chunk(&piece, next)?;
        progress(piece.len());
        if feed.fed.is_multiple_of(options.block) || feed.fed == options.tokens {
            feed.settle()?;
            let usage = feed.caches[0].usage();
            let tokens = (feed.fed - 1) % options.block + 1;
            blocks.push(Block {
                at: feed.fed as u64,
                loss: 0.0,
                ms_per_token: (feed.seconds - seconds) * 1e3 / tokens as f64,
                bytes: usage.bytes,
                attended_per_token: (usage.keys_attended - keys) as f64 / (tokens * layers) as f64,
                rows_moved: usage.rows_moved,
                compactions: usage.compactions,
                evicted: usage.tokens_evicted,
                ages: Ages::of(&feed.caches[0]),
            });
            seconds = feed.seconds;
            keys = usage.keys_attended;
        }
    }
    let losses = &feed.blocks[0];
    for (i, block) in blocks.iter_mut().enumerate() {
        block.loss = losses.sums[i] / f64::from(losses.counts[i].max(1));
    }
    let mut result = EndlessResult {
        tokens: feed.fed,
        loss: losses.mean(),
        blocks,
        chunk_step: None,
        decode_step: None,
    };
    if options.pairs == 0 || feed.caches[0].usage().compactions == 0 {
        return Ok(result);
    }
    let early = first_full(model, ids, config, chunk)?;
    // Both states are to be equally full: the late one is taken right after a compaction too.
    let full = feed.caches[0].usage().compactions;
    while feed.caches[0].usage().compactions == full {
        let (piece, next) = take(chunk);
        feed.chunk(&piece, next)?;
    }
    let plan = *feed.caches[0].plan();
    let (piece, _) = take(plan.slack.max(chunk));
    let late = feed
        .caches
        .pop()
        .ok_or_else(|| parameter("policies", 0, "one"))?;
    let mut states = [early, late];
    let chunks = piece.chunks(chunk).collect::<Vec<_>>();
    let mut time = |chunks: &[&[u32]]| compare(model, &mut states, chunks, options.pairs).map(Some);
    result.chunk_step = time(&chunks)?;
    result.decode_step = time(&piece.chunks(1).collect::<Vec<_>>())?;
    Ok(result)
}

/// The cache as it was at the stream's first compaction.
fn first_full(
    model: &EvalModel,
    ids: &[u32],
    config: &CacheConfig,
    chunk: usize,
) -> Result<BoundedCache, EvalError> {
    let mut caches = [model.cache(config)?];
    let mut stream = ids.iter().copied().cycle();
    let mut before = None;
    while caches[0].usage().compactions == 0 {
        let piece = stream.by_ref().take(chunk).collect::<Vec<_>>();
        model.append(before, &piece, &mut caches)?;
        caches[0].reserve(chunk)?;
        before = piece.last().copied();
    }
    let [cache] = caches;
    Ok(cache)
}
