//! A KV head's keys rotated and turned over, and its values widened, so that many queries can be multiplied with them.

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::{Element, View};
use crate::simd::tiles::COLUMNS;

/// Slots that are staged and multiplied together.
pub const BLOCK: usize = 128;

/// The keys and values of all KV heads in blocks of [`BLOCK`] slots, filled up with zeros.
#[derive(Debug, Default)]
pub struct Staged {
    /// Rotated keys, `[kv_heads, blocks, head_dim, BLOCK]`.
    pub keys: Vec<f32>,
    /// `[kv_heads, blocks, BLOCK, width]`; empty if only keys were wanted.
    pub values: Vec<f32>,
    /// Length of a value's row: head_dim, filled up to whole tiles.
    pub width: usize,
    pub blocks: usize,
    head_dim: usize,
}

impl Staged {
    /// Stages all slots in use, with the values if `values`.
    pub fn new<T: Element>(view: &View<T>, values: bool) -> Self {
        let blocks = view.len.div_ceil(BLOCK);
        let width = view.head_dim.next_multiple_of(COLUMNS);
        let mut keys = vec![0.0; view.kv_heads * blocks * view.head_dim * BLOCK];
        keys.par_chunks_mut(view.head_dim * BLOCK)
            .enumerate()
            .for_each(|(i, out)| {
                Arch::new().dispatch(TurnOver {
                    view,
                    head: i / blocks,
                    from: i % blocks * BLOCK,
                    out,
                });
            });
        let mut widened = Vec::new();
        if values {
            widened.resize(view.kv_heads * blocks * BLOCK * width, 0.0);
            widened
                .par_chunks_mut(BLOCK * width)
                .enumerate()
                .for_each(|(i, out)| copy_values(view, i / blocks, i % blocks * BLOCK, width, out));
        }
        Self {
            keys,
            values: widened,
            width,
            blocks,
            head_dim: view.head_dim,
        }
    }

    /// Memory of keys and values of `len` slots, bytes.
    pub fn bytes((kv_heads, head_dim): (usize, usize), len: usize) -> u64 {
        let slots = (kv_heads as u64).saturating_mul(len.next_multiple_of(BLOCK) as u64);
        let numbers = head_dim + head_dim.next_multiple_of(COLUMNS);
        slots.saturating_mul((numbers * size_of::<f32>()) as u64)
    }

    /// `[head_dim, BLOCK]`
    pub fn keys_of(&self, head: usize, block: usize) -> &[f32] {
        let size = self.head_dim * BLOCK;
        &self.keys[(head * self.blocks + block) * size..][..size]
    }

    /// `[BLOCK, width]`
    pub fn values_of(&self, head: usize, block: usize) -> &[f32] {
        let size = BLOCK * self.width;
        &self.values[(head * self.blocks + block) * size..][..size]
    }
}

fn copy_values<T: Element>(
    view: &View<T>,
    head: usize,
    from: usize,
    width: usize,
    out: &mut [f32],
) {
    let slots = from..(from + BLOCK).min(view.len);
    let mut scratch = Vec::new();
    let values = T::widen(
        view.head(view.values, head, slots),
        view.head_dim,
        &mut scratch,
    );
    pad_rows(values, view.head_dim, out, width);
}

/// Copies rows of `from_width` numbers to the beginnings of rows of `to_width`.
pub fn pad_rows(from: &[f32], from_width: usize, to: &mut [f32], to_width: usize) {
    let rows = to.chunks_exact_mut(to_width);
    for (to, from) in rows.zip(from.chunks_exact(from_width)) {
        to[..from_width].copy_from_slice(from);
    }
}

/// Rotates the keys of one block and writes them as columns.
struct TurnOver<'a, 'b, T> {
    view: &'a View<'a, T>,
    head: usize,
    from: usize,
    /// `[head_dim, BLOCK]`
    out: &'b mut [f32],
}

/// Keys that are turned over together, so that whole cache lines are written.
const STRIP: usize = 16;

impl<T: Element> NullaryFnOnce for TurnOver<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self {
            view,
            head,
            from,
            out,
        } = self;
        let width = view.head_dim;
        let slots = from..(from + BLOCK).min(view.len);
        let positions = &view.positions_of(head)[slots.clone()];
        let turns = view.turns_of(head);
        let mut scratch = Vec::new();
        let keys = T::widen(view.head(view.keys, head, slots), width, &mut scratch);
        let mut strip = vec![0.0; STRIP * width];
        for (s, keys) in keys.chunks(STRIP * width).enumerate() {
            for (i, key) in keys.chunks_exact(width).enumerate() {
                let row = &mut strip[i * width..][..width];
                turns.rotate(key, positions[s * STRIP + i], row);
            }
            let count = keys.len() / width;
            for (d, column) in out.chunks_exact_mut(BLOCK).enumerate() {
                let column = &mut column[s * STRIP..][..STRIP];
                for i in 0..STRIP {
                    column[i] = strip[i * width + d];
                }
                column[count..].fill(0.0);
            }
        }
    }
}
