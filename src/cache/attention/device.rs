//! Attention in the kernels of a GPU: one pass over the keys as they are stored.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::Past;
use crate::cache::host;
use crate::gpu::{address, Element, Gpu, Launch};

/// Threads of a block.
const BLOCK: u32 = 128;

/// Most elements of a head in any of the kernels.
const MAX_HEAD_DIM: usize = 256;

/// Most parts that a chunk's slots are shared among.
const MAX_SPLITS: usize = 8;

/// Whether there are kernels for such heads and types.
pub fn fits(past: &Past, q: &Tensor) -> bool {
    let known = |x: &Tensor| Element::of(x.dtype()).is_ok();
    let head_dim = q.dims().last().copied().unwrap_or(0);
    known(q) && known(past.keys) && head_dim <= MAX_HEAD_DIM && head_dim.is_multiple_of(2)
}

/// As [`Past::attend`] says.
pub fn attend(
    past: &Past,
    gpu: &Arc<dyn Gpu>,
    q: &Tensor,
    positions: &[u32],
    sums: Option<&mut [f32]>,
) -> Result<Tensor> {
    let (heads, tokens, head_dim) = q.dims3()?;
    let at_work = AtWork::new(past, gpu, q, positions)?;
    let (kv_heads, group) = (at_work.kv_heads, heads / at_work.kv_heads);
    let device = q.device();
    let rows = at_work.rows();
    let tiles = (group * tokens).div_ceil(rows);
    let wanted = (2 * gpu.multiprocessors()).div_ceil(tiles * kv_heads);
    // Of the budget, not of the slots in use, so that neither launches nor bits depend on these.
    let splits = wanted.clamp(1, MAX_SPLITS.min(at_work.budget.div_ceil(rows)));
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
    let grid = [tiles, kv_heads, splits];
    let launch = at_work
        .launch("attend_chunk", grid)?
        .tensor(q)?
        .int(Element::of(q.dtype())?.code)
        .tensor(&at_work.positions)?
        .int(tokens)
        .tensor(past.keys)?
        .tensor(past.values)?
        .tensor(&at_work.ranks)?
        .int(at_work.rank_stride)
        .tensor(&at_work.cos)?
        .tensor(&at_work.sin)?
        .int(0)
        .int(at_work.row_stride)
        .int(group)
        .int(head_dim)
        .int(at_work.budget)
        .int(past.len())
        .float(at_work.scale())
        .optional(tops.as_ref())?
        .optional(partial.as_ref())?
        .optional(arrived.as_ref())?
        .tensor(&out)?;
    // Safety: the arguments are those of `attend_chunk` in kernels/attend_chunk.cu.
    unsafe { gpu.launch(launch)? };
    if let (Some(sums), Some(tops)) = (sums, &tops) {
        for (sum, new) in sums.iter_mut().zip(at_work.slot_sums(q, tops)?) {
            *sum += new;
        }
    }
    Ok(out)
}

/// As [`Past::sums`] says.
pub fn sums(past: &Past, gpu: &Arc<dyn Gpu>, q: &Tensor, positions: &[u32]) -> Result<Vec<f32>> {
    let (heads, count, _) = q.dims3()?;
    let at_work = AtWork::new(past, gpu, q, positions)?;
    let tops = Tensor::zeros((heads, count, 2), DType::F32, q.device())?;
    let group = heads / at_work.kv_heads;
    let tiles = (group * count).div_ceil(at_work.rows());
    let launch = at_work
        .scores("score_tops", [tiles, at_work.kv_heads, 1], q)?
        .tensor(&tops)?;
    // Safety: the arguments are those of `score_tops` in kernels/scores.cu.
    unsafe { gpu.launch(launch)? };
    at_work.slot_sums(q, &tops)
}

/// What the kernels are told of a layer and of queries.
struct AtWork<'a> {
    past: &'a Past<'a>,
    gpu: &'a Arc<dyn Gpu>,
    kv_heads: usize,
    budget: usize,
    head_dim: usize,
    /// Of the queries, u32.
    positions: Tensor,
    /// `[sets, budget]`, u32.
    ranks: Tensor,
    /// From one KV head's ranks to the next.
    rank_stride: usize,
    /// `[rows, head_dim / 2]`, f32.
    cos: Tensor,
    sin: Tensor,
    /// From one KV head's table to the next, in rows.
    row_stride: usize,
}

impl<'a> AtWork<'a> {
    fn new(
        past: &'a Past<'a>,
        gpu: &'a Arc<dyn Gpu>,
        q: &Tensor,
        positions: &[u32],
    ) -> Result<Self> {
        let device = q.device();
        let (kv_heads, budget, head_dim) = past.keys.dims3()?;
        let mut ranks = Vec::with_capacity(past.positions.len() * budget);
        for set in &past.positions {
            ranks.extend_from_slice(set);
            ranks.resize(ranks.len().next_multiple_of(budget), 0);
        }
        let tables = past.rotary.iter().map(|table| table.floats());
        let tables = tables.collect::<Result<Vec<_>>>()?;
        let [cos, sin] = [0, 1].map(|half| match tables.as_slice() {
            [one] => Ok(one[half].clone()),
            several => Tensor::cat(
                &several.iter().map(|table| &table[half]).collect::<Vec<_>>(),
                0,
            ),
        });
        Ok(Self {
            past,
            gpu,
            kv_heads,
            budget,
            head_dim,
            positions: Tensor::from_slice(positions, positions.len(), device)?,
            ranks: Tensor::from_vec(ranks, (past.positions.len(), budget), device)?,
            rank_stride: if past.positions.len() > 1 { budget } else { 0 },
            row_stride: match tables.as_slice() {
                [_] => 0,
                several => several[0][0].dim(0)?,
            },
            cos: cos?,
            sin: sin?,
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
    fn rows(&self) -> usize {
        match self.cap() {
            MAX_HEAD_DIM => 16,
            _ => 32,
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn launch(&self, kernel: &str, grid: [usize; 3]) -> Result<Launch> {
        let suffix = Element::of(self.past.keys.dtype())?.suffix;
        let name = format!("{kernel}_{suffix}_{}", self.cap());
        Ok(Launch::new(name, grid.map(|blocks| blocks as u32), BLOCK))
    }

    /// What both kernels of scores begin with, for the queries `q` (`[heads, count, head_dim]`).
    fn scores(&self, kernel: &str, grid: [usize; 3], q: &Tensor) -> Result<Launch> {
        let (heads, count, head_dim) = q.dims3()?;
        // `ScoredLayer` in kernels/scores.cu.
        let pointers = [q, self.past.keys, &self.ranks, &self.positions];
        let mut words = Vec::with_capacity(12);
        for tensor in pointers {
            let at = address(tensor)?;
            words.extend([at as u32, (at >> 32) as u32]);
        }
        words.extend([count as u32, self.past.len() as u32, 0, 0]);
        let layer = Tensor::from_vec(words, 12, q.device())?;
        Ok(self
            .launch(kernel, grid)?
            .tensor(&layer)?
            .int(Element::of(q.dtype())?.code)
            .int(count)
            .int(self.rank_stride)
            .tensor(&self.cos)?
            .tensor(&self.sin)?
            .int(self.row_stride)
            .int(heads / self.kv_heads)
            .int(head_dim)
            .int(self.budget)
            .float(self.scale()))
    }

    /// The probability that each slot gets, `[kv_heads, len]`, from the queries `q` with these `tops` (`[heads, count, 2]`).
    fn slot_sums(&self, q: &Tensor, tops: &Tensor) -> Result<Vec<f32>> {
        let len = self.past.len();
        let sums = Tensor::zeros((self.kv_heads, self.budget), DType::F32, q.device())?;
        let grid = [len.div_ceil(self.rows()), self.kv_heads, 1];
        let launch = self
            .scores("score_sums", grid, q)?
            .tensor(tops)?
            .tensor(&sums)?;
        // Safety: the arguments are those of `score_sums` in kernels/scores.cu.
        unsafe { self.gpu.launch(launch)? };
        host::floats(&sums.narrow(1, 0, len)?)
    }
}
