//! The attention that slots get, in the kernels of a GPU: of any number of layers in the same launches.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::device::{push_ranks, rank_stride, Kernels, Turns};
use super::Past;
use crate::cache::host;
use crate::gpu::{address_words, Element, Gpu, Launch};

/// A layer whose slots are scored, and by which queries.
pub struct Asked<'a> {
    pub past: Past<'a>,
    /// Not rotated, `[heads, capacity, head_dim]`: the first of each head are those that count.
    pub queries: &'a Tensor,
    /// Where these stand.
    pub positions: Vec<u32>,
}

/// Words of `ScoredLayer` in kernels/scores.cu.
const LAYER_WORDS: usize = 12;

/// The probability that each slot of each layer gets, `[kv_heads, len]`: the sum over the queries of the mean over the heads that share
/// the KV head.
///
/// All layers have the same shape. `tops` are those of the queries (`[layers, heads, capacity, 2]`) where they are known.
pub fn sums(layers: &[Asked], gpu: &Arc<dyn Gpu>, tops: Option<Tensor>) -> Result<Vec<Vec<f32>>> {
    let Some(first) = layers.first() else {
        return Ok(Vec::new());
    };
    let (heads, capacity, _) = first.queries.dims3()?;
    let kernels = Kernels::of(&first.past)?;
    let device = first.queries.device();
    let turns = layers.iter().map(|asked| Turns::of(&asked.past));
    let turns = turns.collect::<Result<Vec<_>>>()?;
    let words = described(layers, &turns, kernels.budget)?;
    let words = Tensor::from_slice(&words, words.len(), device)?;
    let group = heads / kernels.kv_heads;
    let launch = |kernel: &str, blocks: usize, tops: &Tensor| -> Result<Launch> {
        kernels
            .launch(kernel, [blocks, kernels.kv_heads, layers.len()])
            .tensor(&words)?
            .int(Element::of(first.queries.dtype())?.code)
            .int(capacity)
            .int(rank_stride(&first.past, kernels.budget))
            .int(turns[0].stride)
            .int(group)
            .int(kernels.head_dim)
            .int(kernels.budget)
            .float(kernels.scale())
            .tensor(tops)
    };
    let largest = |of: fn(&Asked) -> usize| layers.iter().map(of).max().unwrap_or(0);
    let tops = match tops {
        Some(tops) => tops,
        None => {
            let tops = Tensor::zeros((layers.len(), heads, capacity, 2), DType::F32, device)?;
            let rows = group * largest(|asked| asked.positions.len());
            let launch = launch("score_tops", rows.div_ceil(kernels.rows()), &tops)?;
            // Safety: the arguments are those of `score_tops` in kernels/scores.cu.
            unsafe { gpu.launch(launch)? };
            tops
        }
    };
    let len = largest(|asked| asked.past.len());
    let shape = (layers.len(), kernels.kv_heads, kernels.budget);
    let sums = Tensor::zeros(shape, DType::F32, device)?;
    let launch = launch("score_sums", len.div_ceil(kernels.rows()), &tops)?.tensor(&sums)?;
    // Safety: the arguments are those of `score_sums` in kernels/scores.cu.
    unsafe { gpu.launch(launch)? };
    let sums = host::floats(&sums)?;
    let of_layers = sums.chunks_exact(kernels.kv_heads * kernels.budget);
    let of_layers = of_layers.zip(layers).map(|(sums, asked)| {
        let rows = sums.chunks_exact(kernels.budget);
        rows.flat_map(|row| &row[..asked.past.len()])
            .copied()
            .collect()
    });
    Ok(of_layers.collect())
}

/// What the kernels are told: `ScoredLayer` of each layer in kernels/scores.cu, then the words that they point to.
fn described(layers: &[Asked], turns: &[Turns], budget: usize) -> Result<Vec<u32>> {
    let (mut table, mut behind) = (Vec::new(), Vec::new());
    let first = layers.len() * LAYER_WORDS;
    for (asked, turns) in layers.iter().zip(turns) {
        for tensor in [
            asked.queries,
            asked.past.keys.rows(),
            &turns.cos,
            &turns.sin,
        ] {
            table.extend(address_words(tensor)?);
        }
        let ranks = first + behind.len();
        push_ranks(&asked.past, budget, &mut behind);
        let positions = first + behind.len();
        behind.extend_from_slice(&asked.positions);
        let numbers = [asked.positions.len(), asked.past.len(), ranks, positions];
        table.extend(numbers.map(|number| number as u32));
    }
    table.append(&mut behind);
    Ok(table)
}
