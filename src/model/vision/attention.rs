//! Attention of a tower: every row to every row of its window, without the window's square of logits in memory.
//!
//! - this file: on the CPU
//! - `strips`: on a GPU
//!
//! On the CPU a tile of queries goes over blocks of keys with a running softmax (FlashAttention, arXiv 2205.14135). Keys are turned over and values
//! filled up to whole vectors once. Sums are in f32 whatever the rows are; which thread works on a tile never changes a result.

mod strips;

use candle_core::{bail, CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::simd::tiles::{exp, exp_row, largest, matmul, COLUMNS};

/// Queries that are worked on together.
const TILE: usize = 32;

/// Keys whose logits are in memory together.
const BLOCK: usize = 128;

/// Rows that attend to one another.
#[derive(Clone, Copy)]
pub struct Windows<'a> {
    pub heads: usize,
    /// Rows of each window; they follow one another.
    pub lengths: &'a [usize],
    /// Cosines and sines that queries and keys are turned by, `[rows, head_dim / 2]` each, f32; none: they are not turned.
    pub turns: Option<[&'a Tensor; 2]>,
}

/// Queries, keys and values are `[rows, heads * head_dim]`, and so is what comes of them.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, windows: Windows) -> Result<Tensor> {
    let (rows, hidden) = q.dims2()?;
    let Windows { heads, lengths, .. } = windows;
    if heads == 0 || !hidden.is_multiple_of(heads) || lengths.iter().sum::<usize>() != rows {
        bail!("attention of {rows} rows of {hidden} with {heads} heads in windows of {lengths:?}");
    }
    match q.device().is_cpu() {
        true => in_tiles(q, k, v, windows),
        false => strips::attend(q, k, v, windows),
    }
}

fn in_tiles(q: &Tensor, k: &Tensor, v: &Tensor, windows: Windows) -> Result<Tensor> {
    let wide = |x: &Tensor| x.to_dtype(DType::F32);
    let turns = match windows.turns {
        Some([cos, sin]) => Some([values(cos)?, values(sin)?]),
        None => None,
    };
    let op = Attend { windows, turns };
    wide(q)?
        .apply_op3_no_bwd(&wide(k)?, &wide(v)?, &op)?
        .to_dtype(q.dtype())
}

fn values(table: &Tensor) -> Result<Vec<f32>> {
    table.flatten_all()?.to_vec1()
}

struct Attend<'a> {
    windows: Windows<'a>,
    turns: Option<[Vec<f32>; 2]>,
}

impl CustomOp3 for Attend<'_> {
    fn name(&self) -> &'static str {
        "tower-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, hidden) = q_layout.shape().dims2()?;
        let head_dim = hidden / self.windows.heads;
        let turns = self
            .turns
            .as_ref()
            .map(|[cos, sin]| [cos.as_slice(), sin.as_slice()]);
        if turns.is_some_and(|tables| tables.iter().any(|t| t.len() != rows * (head_dim / 2))) {
            bail!("attention of {rows} rows turned by tables of another size");
        }
        let source = Source {
            q: Rows::of(q, q_layout)?,
            k: Rows::of(k, k_layout)?,
            v: Rows::of(v, v_layout)?,
            head_dim,
            turns,
        };
        for (name, rows_of) in [("keys", k_layout), ("values", v_layout)] {
            if rows_of.dims() != [rows, hidden] {
                bail!(
                    "attention of [{rows}, {hidden}]: {name} of {:?}",
                    rows_of.dims()
                );
            }
        }
        let mut out = vec![0.0f32; rows * hidden];
        source.attend(self.windows, &mut out);
        Ok((CpuStorage::F32(out), Shape::from((rows, hidden))))
    }
}

/// Rows of numbers, some way apart.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
}

impl<'a> Rows<'a> {
    fn of(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        match (layout.stride(), layout.dims()) {
            (&[stride, 1], &[_, width]) if stride >= width => Ok(Self {
                data: &storage.as_slice::<f32>()?[layout.start_offset()..],
                stride,
            }),
            (&[stride, _], &[_, 1]) => Ok(Self {
                data: &storage.as_slice::<f32>()?[layout.start_offset()..],
                stride,
            }),
            _ => bail!("attention of rows whose numbers do not lie side by side"),
        }
    }

    fn part(&self, row: usize, from: usize, count: usize) -> &'a [f32] {
        &self.data[row * self.stride + from..][..count]
    }
}

/// What is attended with and to.
struct Source<'a> {
    q: Rows<'a>,
    k: Rows<'a>,
    v: Rows<'a>,
    head_dim: usize,
    turns: Option<[&'a [f32]; 2]>,
}

/// A window of a head.
#[derive(Clone, Copy)]
struct Place {
    head: usize,
    first: usize,
    length: usize,
}

/// A window of a head, ready to be multiplied with.
struct Staged {
    place: Place,
    /// Of each block `[head_dim, its width]`, see [`width_of`].
    keys: Vec<f32>,
    /// `[length, width]`
    values: Vec<f32>,
    /// head_dim, filled up to whole tiles.
    width: usize,
}

/// Keys of the block of a window of `length` rows that begins at `from`, filled up to whole tiles.
fn width_of(length: usize, from: usize) -> usize {
    (length - from).min(BLOCK).next_multiple_of(COLUMNS)
}

impl Source<'_> {
    /// `out` is `[rows, heads * head_dim]`.
    fn attend(&self, windows: Windows, out: &mut [f32]) {
        let hidden = windows.heads * self.head_dim;
        let mut first = 0;
        let mut places = Vec::new();
        for &length in windows.lengths {
            let heads = 0..windows.heads;
            places.extend(heads.map(|head| Place {
                head,
                first,
                length,
            }));
            first += length;
        }
        let staged = places.into_par_iter().map(|place| self.stage(place));
        let staged = staged.collect::<Vec<_>>();
        // [rows][heads] pieces of the output, each taken once.
        let mut pieces = out
            .chunks_exact_mut(self.head_dim)
            .map(Some)
            .collect::<Vec<_>>();
        let heads = hidden / self.head_dim;
        let mut tiles = Vec::new();
        for staged in &staged {
            let Place {
                head,
                first,
                length,
            } = staged.place;
            for from in (0..length).step_by(TILE) {
                let rows = first + from..first + (from + TILE).min(length);
                let outs = rows
                    .clone()
                    .filter_map(|row| pieces[row * heads + head].take());
                tiles.push((staged, rows.start, outs.collect::<Vec<_>>()));
            }
        }
        tiles.into_par_iter().for_each(|(staged, first, outs)| {
            Arch::new().dispatch(Tile {
                source: self,
                staged,
                first,
                outs,
            });
        });
    }

    /// The head's part of a row of queries or keys, turned.
    #[inline(always)]
    fn turned(&self, rows: Rows, row: usize, head: usize, out: &mut [f32]) {
        let part = rows.part(row, head * self.head_dim, self.head_dim);
        let Some([cos, sin]) = self.turns else {
            out.copy_from_slice(part);
            return;
        };
        let half = self.head_dim / 2;
        let cos = &cos[row * half..][..half];
        let sin = &sin[row * half..][..half];
        let (a, b) = part.split_at(half);
        let (out_a, out_b) = out[..2 * half].split_at_mut(half);
        for i in 0..half {
            out_a[i] = a[i] * cos[i] - b[i] * sin[i];
            out_b[i] = b[i] * cos[i] + a[i] * sin[i];
        }
    }

    fn stage(&self, place: Place) -> Staged {
        /// Keys that are turned over together, so that whole cache lines are written.
        const STRIP: usize = 16;
        let Place {
            head,
            first,
            length,
        } = place;
        let head_dim = self.head_dim;
        let width = head_dim.next_multiple_of(COLUMNS);
        let mut values = vec![0.0; length * width];
        for (row, out) in values.chunks_exact_mut(width).enumerate() {
            let part = self.v.part(first + row, head * head_dim, head_dim);
            out[..head_dim].copy_from_slice(part);
        }
        let mut keys = vec![0.0; length.next_multiple_of(COLUMNS) * head_dim];
        let mut strip = vec![0.0; STRIP * head_dim];
        for from in (0..length).step_by(BLOCK) {
            let wide = width_of(length, from);
            let block = &mut keys[from * head_dim..][..wide * head_dim];
            let to = (from + BLOCK).min(length);
            for at in (from..to).step_by(STRIP) {
                let count = STRIP.min(to - at);
                for (i, out) in strip.chunks_exact_mut(head_dim).take(count).enumerate() {
                    self.turned(self.k, first + at + i, head, out);
                }
                for (d, column) in block.chunks_exact_mut(wide).enumerate() {
                    for (i, out) in column[at - from..][..count].iter_mut().enumerate() {
                        *out = strip[i * head_dim + d];
                    }
                }
            }
        }
        Staged {
            place,
            keys,
            values,
            width,
        }
    }
}

/// Some queries of a window of a head.
struct Tile<'a, 'b> {
    source: &'a Source<'a>,
    staged: &'a Staged,
    /// Row of the first query.
    first: usize,
    /// For each query, `[head_dim]`.
    outs: Vec<&'b mut [f32]>,
}

impl WithSimd for Tile<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            source,
            staged,
            first,
            outs,
        } = self;
        let (rows, head_dim, width) = (outs.len(), source.head_dim, staged.width);
        let Place { head, length, .. } = staged.place;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut queries = vec![0.0; rows * head_dim];
        for (i, query) in queries.chunks_exact_mut(head_dim).enumerate() {
            source.turned(source.q, first + i, head, query);
            query.iter_mut().for_each(|x| *x *= scale);
        }
        let mut logits = vec![0.0; rows * BLOCK.min(length.next_multiple_of(COLUMNS))];
        let mut sums = vec![0.0; rows * width];
        let mut most = vec![f32::NEG_INFINITY; rows];
        let mut norm = vec![0.0; rows];
        for from in (0..length).step_by(BLOCK) {
            let wide = width_of(length, from);
            let count = (length - from).min(BLOCK);
            let keys = &staged.keys[from * head_dim..][..wide * head_dim];
            let logits = &mut logits[..rows * wide];
            matmul(
                simd,
                (&queries, head_dim, head_dim),
                keys,
                wide,
                logits,
                false,
            );
            for (r, logits) in logits.chunks_exact_mut(wide).enumerate() {
                let logits = &mut logits[..count];
                let new = largest(logits).max(most[r]);
                let shrink = exp(most[r] - new);
                norm[r] = norm[r] * shrink + exp_row(logits, new);
                most[r] = new;
                let sums = &mut sums[r * width..][..width];
                sums.iter_mut().for_each(|x| *x *= shrink);
            }
            let values = &staged.values[from * width..][..count * width];
            matmul(simd, (logits, wide, count), values, width, &mut sums, true);
        }
        for (r, out) in outs.into_iter().enumerate() {
            let scale = 1.0 / norm[r];
            for (out, sum) in out.iter_mut().zip(&sums[r * width..]) {
                *out = sum * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests;
