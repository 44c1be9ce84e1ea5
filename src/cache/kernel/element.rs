//! What keys and values are stored as: numbers, or quantised rows.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::cache::quantised::{row_bytes, unpack_row};

/// What stored rows are made of, which widen to f32 without loss.
pub trait Element: Copy + Send + Sync {
    /// Elements of a row of `head_dim` numbers.
    fn row(head_dim: usize) -> usize {
        head_dim
    }

    /// The numbers of whole rows as f32: themselves, or widened into `scratch`.
    fn widen<'a>(stored: &'a [Self], head_dim: usize, scratch: &'a mut Vec<f32>) -> &'a [f32];
}

impl Element for f32 {
    fn widen<'a>(stored: &'a [Self], _: usize, _scratch: &'a mut Vec<f32>) -> &'a [f32] {
        stored
    }
}

impl Element for f16 {
    fn widen<'a>(stored: &'a [Self], _: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.resize(stored.len(), 0.0);
        stored.convert_to_f32_slice(scratch);
        scratch
    }
}

impl Element for bf16 {
    fn widen<'a>(stored: &'a [Self], _: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.resize(stored.len(), 0.0);
        stored.convert_to_f32_slice(scratch);
        scratch
    }
}

/// Bytes of quantised rows.
impl Element for u8 {
    fn row(head_dim: usize) -> usize {
        row_bytes(head_dim)
    }

    #[inline(always)]
    fn widen<'a>(stored: &'a [Self], head_dim: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let rows = stored.chunks_exact(row_bytes(head_dim));
        scratch.resize(rows.len() * head_dim, 0.0);
        for (row, numbers) in rows.zip(scratch.chunks_exact_mut(head_dim)) {
            unpack_row(row, numbers);
        }
        scratch
    }
}
