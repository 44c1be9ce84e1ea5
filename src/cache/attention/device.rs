//! Attention in the kernels of a GPU: one pass over the keys as they are stored.

use std::sync::Arc;

use candle_core::{bail, DType, Result, Tensor};

use super::scored::{self, Asked};
use super::{Past, Sums};
use crate::cache::storage::Storage;
use crate::gpu::{address, Element, Gpu, Launch};

/// Threads of a block.
const BLOCK: u32 = 128;

/// Most elements of a head in any of the kernels.
const MAX_HEAD_DIM: usize = 256;

/// Most parts that a chunk's slots are shared among.
const MAX_SPLITS: usize = 8;

/// Whether there are kernels for such heads and types.
pub fn fits(dtype: DType, storage: Storage, head_dim: usize) -> bool {
    let known = Element::of(dtype).is_ok() && storage.suffix().is_ok();
    known && head_dim <= MAX_HEAD_DIM && head_dim.is_multiple_of(2)
}

/// As [`Past::attend`] says.
pub fn attend(
    past: &Past,
    gpu: &Arc<dyn Gpu>,
    q: &Tensor,
    positions: &[u32],
    sums: Option<Sums>,
) -> Result<Tensor> {
    let (heads, tokens, head_dim) = q.dims3()?;
    let kernels = Kernels::of(past)?;
    let (kv_heads, group) = (kernels.kv_heads, heads / kernels.kv_heads);
    let device = q.device();
    let rows = kernels.rows();
    let tiles = (group * tokens).div_ceil(rows);
    let wanted = (2 * gpu.multiprocessors()).div_ceil(tiles * kv_heads);
    // Of the budget, not of the slots in use, so that neither launches nor bits depend on these.
    let splits = wanted.clamp(1, MAX_SPLITS.min(kernels.budget.div_ceil(rows)));
    let out = Tensor::zeros(q.shape(), q.dtype(), device)?;
    let tops = match sums {
        Some(_) => Some(Tensor::zeros((heads, tokens, 2), DType::F32, device)?),
        None => None,
    };
    let (mut partial, mut arrived) = (None, None);
    if splits > 1 {
        let parts = kv_heads * tiles * splits * rows * (head_dim + 2);
        partial = Some(Tensor::zeros(parts, DType::F32, device)?);
        arrived = Some(Tensor::zeros(kv_heads * tiles, DType::U32, device)?);
    }
    let mut words = positions.to_vec();
    let ranks = words.len();
    push_ranks(past, kernels.budget, &mut words);
    let words = Tensor::from_slice(&words, words.len(), device)?;
    let turns = Turns::of(past)?;
    let launch = kernels
        .launch("attend_chunk", [tiles, kv_heads, splits])
        .tensor(q)?
        .int(Element::of(q.dtype())?.code)
        .tensor(&words)?
        .int(tokens)
        .tensor(past.keys.rows())?
        .tensor(past.values.rows())?
        .pointer(address(&words)? + (ranks * size_of::<u32>()) as u64)
        .int(rank_stride(past, kernels.budget))
        .tensor(&turns.cos)?
        .tensor(&turns.sin)?
        .int(0)
        .int(turns.stride)
        .int(group)
        .int(head_dim)
        .int(kernels.budget)
        .int(past.len())
        .float(kernels.scale())
        .optional(tops.as_ref())?
        .optional(partial.as_ref())?
        .optional(arrived.as_ref())?
        .tensor(&out)?;
    // Safety: the arguments are those of `attend_chunk` in kernels/attend_chunk.cu.
    unsafe { gpu.launch(launch)? };
    if let (Some(Sums { newest, sums }), Some(tops)) = (sums, tops) {
        let from = tokens - newest;
        let queries = q.narrow(1, from, newest)?.contiguous()?;
        let asked = Asked {
            past: past.clone(),
            queries: &queries,
            positions: positions[from..].to_vec(),
        };
        let tops = tops.narrow(1, from, newest)?.contiguous()?;
        let tops = tops.reshape((1, heads, newest, 2))?;
        let found = scored::sums(&[asked], gpu, Some(tops))?;
        for (sum, new) in sums.iter_mut().zip(found.concat()) {
            *sum += new;
        }
    }
    Ok(out)
}

/// The kernels that work on tiles of queries and slots, for what a layer holds.
pub struct Kernels {
    pub kv_heads: usize,
    pub budget: usize,
    pub head_dim: usize,
    suffix: &'static str,
}

impl Kernels {
    pub fn of(past: &Past) -> Result<Self> {
        let (kv_heads, budget, head_dim) = past.keys.dims()?;
        Ok(Self {
            kv_heads,
            budget,
            head_dim,
            suffix: past.keys.storage().suffix()?,
        })
    }

    /// Most elements of a head in the kernels that are used.
    fn cap(&self) -> usize {
        [64, 128, MAX_HEAD_DIM]
            .into_iter()
            .find(|&cap| self.head_dim <= cap)
            .unwrap_or(MAX_HEAD_DIM)
    }

    /// Queries, and slots, that a block takes at a time.
    pub fn rows(&self) -> usize {
        match self.cap() {
            MAX_HEAD_DIM => 16,
            _ => 32,
        }
    }

    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    pub fn launch(&self, kernel: &str, grid: [usize; 3]) -> Launch {
        let name = format!("{kernel}_{}_{}", self.suffix, self.cap());
        Launch::new(name, grid.map(|blocks| blocks as u32), BLOCK)
    }
}

/// What the keys of a layer turn by.
pub struct Turns {
    /// `[rows, head_dim / 2]`, f32.
    pub cos: Tensor,
    pub sin: Tensor,
    /// From one KV head's table to the next, in rows.
    pub stride: usize,
}

impl Turns {
    pub fn of(past: &Past) -> Result<Self> {
        if let Some(turns) = past.turns {
            let rows = turns.cos.dim(0)? - turns.first_row;
            let of_layer = |table: &Tensor| table.narrow(0, turns.first_row, rows);
            return Ok(Self {
                cos: of_layer(turns.cos)?,
                sin: of_layer(turns.sin)?,
                stride: turns.stride,
            });
        }
        let [table] = past.rotary.as_slice() else {
            bail!("rotary tables of several kept sets lie in the memory of the host, expected that of the GPU");
        };
        let [cos, sin] = table.floats()?.clone();
        Ok(Self {
            cos,
            sin,
            stride: 0,
        })
    }
}

/// The ranks of all slots of each kept set of a layer; those of free slots are read by nobody.
pub fn push_ranks(past: &Past, budget: usize, words: &mut Vec<u32>) {
    for set in &past.positions {
        words.extend_from_slice(set);
        words.resize(words.len() + budget - set.len(), 0);
    }
}

/// From one KV head's ranks to the next.
pub fn rank_stride(past: &Past, budget: usize) -> usize {
    match past.positions.len() {
        1 => 0,
        _ => budget,
    }
}
