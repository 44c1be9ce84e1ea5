//! Attention from candle's own operations, on any device.

use candle_core::{DType, Result, Tensor};

use super::{shares, weighted_sums, Past, Sums};
use crate::cache::rotary::rotate;

/// As [`Past::attend`] says.
pub fn attend(past: &Past, q: &Tensor, positions: &[u32], sums: Option<Sums>) -> Result<Tensor> {
    let (heads, tokens, head_dim) = q.dims3()?;
    let probabilities = probabilities(past, q, positions)?;
    if let Some(Sums { newest, sums }) = sums {
        let counted = probabilities.narrow(2, tokens - newest, newest)?;
        for (sum, new) in sums.iter_mut().zip(slot_sums(&counted)?) {
            *sum += new;
        }
    }
    let (kv_heads, group, _, len) = probabilities.dims4()?;
    let values = past.values.first(len)?.to_dtype(q.dtype())?;
    let probabilities = probabilities.reshape((kv_heads, group * tokens, len))?;
    weighted_sums(&probabilities, &values)?.reshape((heads, tokens, head_dim))
}

/// As [`Past::sums`] says.
pub fn sums(past: &Past, q: &Tensor, positions: &[u32]) -> Result<Vec<f32>> {
    slot_sums(&probabilities(past, q, positions)?)
}

/// Sum over queries of the mean over the group, `[kv_heads * len]`, for `[kv_heads, group, tokens, len]`.
fn slot_sums(probabilities: &Tensor) -> Result<Vec<f32>> {
    probabilities.sum(2)?.mean(1)?.flatten_all()?.to_vec1()
}

/// `[kv_heads, group, tokens, len]`, f32.
fn probabilities(past: &Past, q: &Tensor, positions: &[u32]) -> Result<Tensor> {
    let (heads, tokens, head_dim) = q.dims3()?;
    let (kv_heads, ..) = past.keys.dims()?;
    let (group, len) = (heads / kv_heads, past.len());
    let keys = past.keys.first(len)?.to_dtype(q.dtype())?.contiguous()?;
    let keys = rotate(&past.rotary, &keys, &past.positions)?;
    let q = (rotate(&past.rotary, q, &[positions])? / (head_dim as f64).sqrt())?;
    let logits = q
        .reshape((kv_heads, group * tokens, head_dim))?
        .matmul(&keys.t()?)?
        .to_dtype(DType::F32)?
        .reshape((kv_heads, group, tokens, len))?;
    match sees_everything(past, positions) {
        true => shares(&logits),
        false => shares(&logits.broadcast_add(&causal_mask(past, positions)?)?),
    }
}

/// Whether there is but one query, and no slot is later than it: decoding, which needs no mask.
fn sees_everything(past: &Past, positions: &[u32]) -> bool {
    let [query] = positions else {
        return false;
    };
    let keys = past.positions.iter().flat_map(|set| set.iter());
    keys.max().is_none_or(|newest| newest <= query)
}

/// `[sets, 1, tokens, len]`: zero where a query may see a slot, minus infinity where not.
fn causal_mask(past: &Past, positions: &[u32]) -> Result<Tensor> {
    let sets = past.positions.iter();
    let mask = sets
        .flat_map(|set| {
            positions.iter().flat_map(|&query| {
                set.iter().map(move |&key| {
                    if key <= query {
                        0f32
                    } else {
                        f32::NEG_INFINITY
                    }
                })
            })
        })
        .collect::<Vec<_>>();
    let shape = (past.positions.len(), 1, positions.len(), past.len());
    Tensor::from_vec(mask, shape, past.keys.device())
}
