//! The integers of a group of weights where the lanes of a register want them.
//!
//! Of a group of 32 weights the integers lie four by four: byte `4 r + i` of vector `j` belongs to row `r` and holds weight `4 j + i`. With
//! fewer than 8 bits the lower nibbles are the first half of a group and the upper ones the second; what a weight has above 4 bits lies apart.

use super::input::GROUP;
use super::lanes::Lanes;

/// 64 bytes, four for each row.
pub type Vector = [u8; 64];

/// Signed bytes with the sign turned over.
pub fn pack_bytes(row: usize, q: &[u8; GROUP], vectors: &mut [Vector]) {
    for (vector, q) in vectors.iter_mut().zip(q.as_chunks::<4>().0) {
        vector[4 * row..][..4].copy_from_slice(&q.map(|q| q ^ 0x80));
    }
}

pub fn pack_nibbles(row: usize, q: &[u8; GROUP], vectors: &mut [Vector]) {
    for (i, &q) in q.iter().enumerate() {
        let shift = i / (GROUP / 2) * 4;
        let k = i % (GROUP / 2);
        vectors[k / 4][4 * row + k % 4] |= (q & 15) << shift;
    }
}

/// The `BITS` bits above the fourth: those of weight `4 c + i` in byte `4 row + i`, one vector having room for `8 / BITS` values of `c`.
pub fn pack_upper<const BITS: usize>(row: usize, q: &[u8; GROUP], vectors: &mut [Vector]) {
    let of_vector = 8 / BITS;
    for (i, &q) in q.iter().enumerate() {
        let c = i / 4;
        if let Some(vector) = vectors.get_mut(c / of_vector) {
            vector[4 * row + i % 4] |= (q >> 4) << (c % of_vector * BITS);
        }
    }
}

pub fn nibble(vectors: &[Vector], row: usize, i: usize) -> u8 {
    let k = i % (GROUP / 2);
    vectors[k / 4][4 * row + k % 4] >> (i / (GROUP / 2) * 4) & 15
}

pub fn upper(vectors: &[Vector], bits: usize, row: usize, i: usize) -> i32 {
    let of_vector = 8 / bits;
    let c = i / 4;
    vectors.get(c / of_vector).map_or(0, |vector| {
        let byte = i32::from(vector[4 * row + i % 4]);
        byte >> (c % of_vector * bits) & ((1 << bits) - 1)
    })
}

#[inline(always)]
pub fn unpack_bytes<L: Lanes>(lanes: L, vectors: &[Vector]) -> [[L::Bytes; 4]; 2] {
    let mut halves = [[lanes.bytes(&vectors[0]); 4]; 2];
    for (bytes, vector) in halves.as_flattened_mut().iter_mut().zip(vectors) {
        *bytes = lanes.bytes(vector);
    }
    halves
}

#[inline(always)]
pub fn unpack_nibbles<L: Lanes>(
    lanes: L,
    vectors: &[Vector],
    above: &[Vector],
    bits: usize,
) -> [[L::Bytes; 4]; 2] {
    let mut halves = [[lanes.bytes(&vectors[0]); 4]; 2];
    for i in 0..4 {
        let both = lanes.bytes(&vectors[i]);
        halves[0][i] = lanes.low_nibbles(both);
        halves[1][i] = lanes.high_nibbles(both);
    }
    if above.is_empty() {
        return halves;
    }
    let of_vector = 8 / bits;
    let mask = (1u8 << bits) - 1;
    for (c, bytes) in halves.as_flattened_mut().iter_mut().enumerate() {
        let from = lanes.bytes(&above[c / of_vector]);
        *bytes = lanes.with_upper(*bytes, from, c % of_vector * bits, mask);
    }
    halves
}
