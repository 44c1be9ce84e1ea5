//! Rows of 8-bit numbers, 8.5 bits each with their scales: how a row lies in memory, and the way there and back.
//!
//! A row of `head_dim` numbers is `head_dim` signed bytes, then a scale for each [`GROUP`] of them (the last group may be shorter), as bf16,
//! then zeros up to a multiple of 4 bytes: `x = byte * scale`. A row stays in one piece, so that whatever moves, saves and puts back rows
//! need not know what they hold. `kernels/q8.cuh` has the same for a GPU, to the bit.
//!
//! Scales are bf16 because they have f32's range, so that no key is too large or too small for one, and because 127 times one is exact
//! in f32, so that numbers which have been stored once are stored again as they are.

use half::bf16;

/// Numbers that share a scale.
pub const GROUP: usize = 32;

/// The largest byte, and with a minus the smallest: the range is symmetric.
const MOST: f32 = 127.0;

/// Bytes of a row of so many numbers.
pub fn row_bytes(head_dim: usize) -> usize {
    (head_dim + head_dim.div_ceil(GROUP) * size_of::<bf16>()).next_multiple_of(4)
}

/// Writes `numbers` (`[head_dim]`) as a row of [`row_bytes`].
///
/// A group's scale is its largest magnitude / 127, rounded to bf16; each number becomes the nearest multiple of it, of two equally near ones
/// the even one. It is off by half a scale at most. A group of zeros has scale 0, as has one of magnitudes below 1.5e-36.
pub fn pack_row(numbers: &[f32], row: &mut [u8]) {
    let (bytes, rest) = row.split_at_mut(numbers.len());
    rest.fill(0);
    let groups = numbers.chunks(GROUP).zip(bytes.chunks_mut(GROUP));
    for ((numbers, bytes), to) in groups.zip(rest.chunks_exact_mut(2)) {
        let most = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
        let rounded = bf16::from_f32(most * (1.0 / MOST));
        // The reciprocal of a number that is not normal may be infinite.
        let scale = if rounded.is_normal() {
            rounded
        } else {
            bf16::ZERO
        };
        to.copy_from_slice(&scale.to_le_bytes());
        let by = match scale.to_f32() {
            0.0 => 0.0,
            scale => 1.0 / scale,
        };
        for (byte, x) in bytes.iter_mut().zip(numbers) {
            *byte = (x * by).round_ties_even().clamp(-MOST, MOST) as i8 as u8;
        }
    }
}

/// The numbers of a row, `[head_dim]`.
#[inline(always)]
pub fn unpack_row(row: &[u8], numbers: &mut [f32]) {
    let (bytes, scales) = row.split_at(numbers.len());
    let groups = numbers.chunks_mut(GROUP).zip(bytes.chunks(GROUP));
    for ((numbers, bytes), scale) in groups.zip(scales.as_chunks::<2>().0) {
        let scale = bf16::from_le_bytes(*scale).to_f32();
        for (x, &byte) in numbers.iter_mut().zip(bytes) {
            *x = f32::from(byte as i8) * scale;
        }
    }
}
