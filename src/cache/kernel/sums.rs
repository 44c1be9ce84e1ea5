//! The probability that each key gets, summed over queries: what the scores of the policies are made of.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::many::Tile;
use super::stage::{Staged, BLOCK};
use super::{Element, Queries, View};
use crate::simd::tiles::{exp_row, largest};

/// Queries of a KV head that are worked on together: their logits over the whole cache fit into a core's own cache.
const TILE: usize = 16;

/// Adds `sum over queries of the mean over the group's heads` of each slot's probability to `sums`, `[kv_heads, len]`.
pub fn add<T: Element>(view: &View<T>, staged: &Staged, queries: &Queries, sums: &mut [f32]) {
    let tiles = queries.rows().div_ceil(TILE);
    let mut parts = vec![0.0; view.kv_heads * tiles * view.len];
    parts
        .par_chunks_mut(view.len)
        .enumerate()
        .for_each(|(i, out)| {
            let first = i % tiles * TILE;
            let rows = first..(first + TILE).min(queries.rows());
            let tile = Tile::new(view, staged, queries, i / tiles, rows);
            Arch::new().dispatch(Sum { tile, out });
        });
    let share = 1.0 / queries.group as f32;
    for (i, part) in parts.chunks_exact(view.len).enumerate() {
        let sums = &mut sums[i / tiles * view.len..][..view.len];
        for (sum, part) in sums.iter_mut().zip(part) {
            *sum += part * share;
        }
    }
}

/// The sums of one tile.
struct Sum<'a> {
    tile: Tile<'a>,
    /// `[len]`
    out: &'a mut [f32],
}

impl WithSimd for Sum<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { tile, out } = self;
        let rows = tile.rows();
        // [blocks, rows, BLOCK]
        let mut logits = vec![0.0; tile.staged.blocks * rows * BLOCK];
        let mut most = vec![f32::NEG_INFINITY; rows];
        let mut norm = vec![0.0; rows];
        for (block, logits) in logits.chunks_exact_mut(rows * BLOCK).enumerate() {
            tile.logits(simd, block, logits);
            for (most, logits) in most.iter_mut().zip(logits.chunks_exact(BLOCK)) {
                *most = most.max(largest(logits));
            }
        }
        for logits in logits.chunks_exact_mut(rows * BLOCK) {
            for (r, logits) in logits.chunks_exact_mut(BLOCK).enumerate() {
                norm[r] += exp_row(logits, most[r]);
            }
        }
        for (out, logits) in out.chunks_mut(BLOCK).zip(logits.chunks_exact(rows * BLOCK)) {
            for (r, logits) in logits.chunks_exact(BLOCK).enumerate() {
                let scale = 1.0 / norm[r];
                for (out, p) in out.iter_mut().zip(logits) {
                    *out += p * scale;
                }
            }
        }
    }
}
