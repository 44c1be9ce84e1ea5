//! Attention of a chunk: tiles of queries over blocks of keys, with a running softmax (FlashAttention, arXiv 2205.14135).

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::stage::{Staged, BLOCK};
use super::{Element, Queries, View};
use crate::simd::tiles::{exp, exp_row, largest, matmul};

/// Queries of a KV head that are worked on together.
const TILE: usize = 32;

/// `[heads, tokens, head_dim]`; `staged` has the values too.
pub fn attend<T: Element>(view: &View<T>, staged: &Staged, queries: &Queries) -> Vec<f32> {
    let width = view.head_dim;
    let rows = queries.rows();
    let mut out = vec![0.0; view.kv_heads * rows * width];
    let tiles = out
        .chunks_mut(rows * width)
        .enumerate()
        .flat_map(|(head, out)| {
            out.chunks_mut(TILE * width)
                .enumerate()
                .map(move |(i, out)| (head, i * TILE, out))
        })
        .collect::<Vec<_>>();
    tiles.into_par_iter().for_each(|(head, first, out)| {
        let rows = first..first + out.len() / width;
        let tile = Tile::new(view, staged, queries, head, rows);
        Arch::new().dispatch(Attend { tile, out });
    });
    out
}

/// Some queries of a KV head, and the keys they look at.
pub struct Tile<'a> {
    /// Of all slots in use.
    positions: &'a [u32],
    pub staged: &'a Staged,
    head: usize,
    /// `[rows, head_dim]`
    q: &'a [f32],
    /// Positions of the queries, `[rows]`.
    seen: Vec<u32>,
    /// head_dim
    width: usize,
}

impl<'a> Tile<'a> {
    /// The queries `rows` of KV head `head`.
    pub fn new<T>(
        view: &View<'a, T>,
        staged: &'a Staged,
        queries: &'a Queries,
        head: usize,
        rows: std::ops::Range<usize>,
    ) -> Self {
        Self {
            positions: view.positions_of(head),
            staged,
            head,
            q: queries.of(head, rows.clone(), view.head_dim),
            seen: rows.map(|row| queries.position(row)).collect(),
            width: view.head_dim,
        }
    }

    pub fn rows(&self) -> usize {
        self.seen.len()
    }

    /// The logits of block `block` of slots into `logits`, `[rows, BLOCK]`.
    #[inline(always)]
    pub fn logits<S: Simd>(&self, simd: S, block: usize, logits: &mut [f32]) {
        let keys = self.staged.keys_of(self.head, block);
        matmul(
            simd,
            (self.q, self.width, self.width),
            keys,
            BLOCK,
            logits,
            false,
        );
        let from = block * BLOCK;
        let to = (from + BLOCK).min(self.positions.len());
        mask(logits, &self.positions[from..to], &self.seen);
    }
}

/// Attention of one tile.
struct Attend<'a> {
    tile: Tile<'a>,
    /// `[rows of the tile, head_dim]`
    out: &'a mut [f32],
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { tile, out } = self;
        let (staged, width, rows) = (tile.staged, tile.width, tile.rows());
        let mut logits = vec![0.0; rows * BLOCK];
        let mut sums = vec![0.0; rows * staged.width];
        let mut most = vec![f32::NEG_INFINITY; rows];
        let mut norm = vec![0.0; rows];
        for block in 0..staged.blocks {
            tile.logits(simd, block, &mut logits);
            for (r, logits) in logits.chunks_exact_mut(BLOCK).enumerate() {
                let new = largest(logits).max(most[r]);
                if new == f32::NEG_INFINITY {
                    logits.fill(0.0);
                    continue;
                }
                let shrink = exp(most[r] - new);
                norm[r] = norm[r] * shrink + exp_row(logits, new);
                most[r] = new;
                let sums = &mut sums[r * staged.width..][..staged.width];
                sums.iter_mut().for_each(|x| *x *= shrink);
            }
            let values = staged.values_of(tile.head, block);
            matmul(
                simd,
                (&logits, BLOCK, BLOCK),
                values,
                staged.width,
                &mut sums,
                true,
            );
        }
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            let scale = 1.0 / norm[r];
            for (out, sum) in out.iter_mut().zip(&sums[r * staged.width..]) {
                *out = sum * scale;
            }
        }
    }
}

/// Sets the logits of the slots that a query may not see, and those past the last slot, to minus infinity.
///
/// `logits` is `[rows, BLOCK]`, `positions` those of the block's slots, `seen` the positions of the rows' queries.
#[inline(always)]
pub fn mask(logits: &mut [f32], positions: &[u32], seen: &[u32]) {
    let newest = positions.iter().copied().max().unwrap_or(0);
    for (logits, &seen) in logits.chunks_exact_mut(BLOCK).zip(seen) {
        logits[positions.len()..].fill(f32::NEG_INFINITY);
        if newest <= seen {
            continue;
        }
        let logits = &mut logits[..positions.len()];
        for i in 0..logits.len() {
            logits[i] = if positions[i] <= seen {
                logits[i]
            } else {
                f32::NEG_INFINITY
            };
        }
    }
}
