//! A step on one state against the same step on another, blocks alternated: does a cache slow down with the stream's length?

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::model::EvalModel;
use super::EvalError;
use crate::cache::BoundedCache;

/// Times of the same steps on a late and an early state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepTimes {
    /// Tokens per step.
    pub tokens: usize,
    /// Median of late over early, pair by pair.
    pub ratio: f64,
    /// Medians, milliseconds per token.
    pub early_ms: f64,
    pub late_ms: f64,
    pub pairs: usize,
}

/// Runs `chunks` on both states (the early one, the late one) by turns, `pairs` times; every second pair begins with the late one.
/// Both are left as they were.
pub fn compare(
    model: &EvalModel,
    states: &mut [BoundedCache; 2],
    chunks: &[&[u32]],
    pairs: usize,
) -> Result<StepTimes, EvalError> {
    let mut times = [Vec::new(), Vec::new()];
    // The first pair warms up and is not counted.
    for pair in 0..=pairs {
        for turn in 0..2 {
            let which = (pair + turn) % 2;
            let seconds = step(model, &mut states[which], chunks)?;
            if pair > 0 {
                times[which].push(seconds);
            }
        }
    }
    let tokens = chunks.iter().map(|chunk| chunk.len()).sum::<usize>().max(1);
    let [early, late] = times;
    let ratios = early.iter().zip(&late).map(|(early, late)| late / early);
    Ok(StepTimes {
        tokens,
        ratio: median(ratios.collect()),
        early_ms: median(early) * 1e3 / tokens as f64,
        late_ms: median(late) * 1e3 / tokens as f64,
        pairs,
    })
}

/// Times the chunks on a state, seconds, and takes them back.
fn step(model: &EvalModel, state: &mut BoundedCache, chunks: &[&[u32]]) -> Result<f64, EvalError> {
    state.mark();
    let start = Instant::now();
    for chunk in chunks {
        model.append(None, chunk, std::slice::from_mut(state))?;
        state.reserve(chunk.len())?;
    }
    let seconds = start.elapsed().as_secs_f64();
    state.put_back()?;
    state.let_go();
    Ok(seconds)
}

/// The middle value; 0 for none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
