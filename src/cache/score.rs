//! The attention that each cached key gets from the query window.

use candle_core::{DType, Result, Tensor, D};

use super::config::Scope;
use super::queries::QueryRing;
use super::rotary::RotaryTable;

/// Mean attention per slot, one list of `[len]` for each kept set.
///
/// With A the causal softmax over all cached keys, `S[j] = (1 / n_j) * sum_i mean_h A[h, i, j]` over the window's queries i
/// that may see slot j (n_j of them) and over the layer's heads, or those of one KV group (Inf-MLLM, arXiv 2409.09086;
/// averaged after the softmax). `keys` are the rotated keys, `[kv_heads, len, head_dim]`.
pub fn window_scores(
    queries: &QueryRing,
    keys: &Tensor,
    rotary: &RotaryTable,
    scope: Scope,
) -> Result<Vec<Vec<f32>>> {
    let (kv_heads, len, head_dim) = keys.dims3()?;
    let raw = queries.raw()?;
    let (heads, count, _) = raw.dims3()?;
    let group = heads / kv_heads;
    let positions = queries.positions(len);
    let index = Tensor::from_slice(&positions, count, keys.device())?;
    let q = rotary
        .rotate_to(&raw, &index)?
        .reshape((kv_heads, group * count, head_dim))?;
    let logits = (q.matmul(&keys.t()?)? / (head_dim as f64).sqrt())?
        .to_dtype(DType::F32)?
        .reshape((kv_heads, group, count, len))?;
    let probabilities = candle_nn::ops::softmax_last_dim(
        &logits.broadcast_add(&causal_mask(&positions, len, keys)?)?,
    )?;
    let sums = match scope {
        Scope::Layer => (probabilities.sum((0, 1, 2))?.unsqueeze(0)? / heads as f64)?,
        Scope::KvHead => (probabilities.sum((1, 2))? / group as f64)?,
    };
    let mut scores = sums.to_vec2::<f32>()?;
    let seen = queries_that_see(&positions, len);
    for row in &mut scores {
        for (score, &n) in row.iter_mut().zip(&seen) {
            *score /= n as f32;
        }
    }
    Ok(scores)
}

/// `[queries, len]`: zero where the query at `positions` may see a slot, minus infinity where not.
fn causal_mask(positions: &[u32], len: usize, like: &Tensor) -> Result<Tensor> {
    let mask = positions
        .iter()
        .flat_map(|&p| (0..len as u32).map(move |j| if j <= p { 0f32 } else { f32::NEG_INFINITY }))
        .collect::<Vec<_>>();
    Tensor::from_vec(mask, (positions.len(), len), like.device())
}

/// For each slot, how many of the queries at `positions` may see it.
fn queries_that_see(positions: &[u32], len: usize) -> Vec<u32> {
    (0..len as u32)
        .map(|j| positions.iter().filter(|&&p| p >= j).count() as u32)
        .collect()
}

/// Causal attention of a chunk over all cached keys.
///
/// `q` (`[heads, tokens, head_dim]`, rotated) belongs to the newest `tokens` of the `len` keys and values
/// (`[kv_heads, len, head_dim]`, keys rotated). Returns `[tokens, heads * head_dim]`. Softmax in f32.
pub fn attention(q: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
    let (heads, tokens, head_dim) = q.dims3()?;
    let (kv_heads, len, _) = keys.dims3()?;
    let group = heads / kv_heads;
    let scale = 1.0 / (head_dim as f64).sqrt();
    let grouped = (q * scale)?.reshape((kv_heads, group * tokens, head_dim))?;
    let mut logits = grouped.matmul(&keys.t()?)?.to_dtype(DType::F32)?;
    if tokens > 1 {
        let positions = (len - tokens..len).map(|p| p as u32).collect::<Vec<_>>();
        logits = logits
            .reshape((kv_heads, group, tokens, len))?
            .broadcast_add(&causal_mask(&positions, len, keys)?)?
            .reshape((kv_heads, group * tokens, len))?;
    }
    candle_nn::ops::softmax_last_dim(&logits)?
        .to_dtype(values.dtype())?
        .matmul(values)?
        .reshape((heads, tokens, head_dim))?
        .transpose(0, 1)?
        .flatten_from(D::Minus2)
}
