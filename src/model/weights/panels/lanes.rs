//! What the products with panels need of vector instructions, and the same without any.

/// Rows of a panel: as many 32-bit numbers as the widest registers hold.
pub const ROWS: usize = 16;

/// One row of weights in each of [`ROWS`] lanes. Every implementation gives the same bits: sums of integers are exact, and floats are
/// multiplied and added one after the other, never fused.
pub trait Lanes: Copy + Send + Sync {
    /// Four bytes in each lane.
    type Bytes: Copy;
    type Ints: Copy;
    type Floats: Copy;

    /// What [`Self::dot_8`] takes a byte for less what it means.
    const BIAS: i32;

    /// Rows of an input that are multiplied while weights are in registers, at most 8.
    const TILE: usize;

    fn bytes(self, from: &[u8; 64]) -> Self::Bytes;
    fn low_nibbles(self, bytes: Self::Bytes) -> Self::Bytes;
    fn high_nibbles(self, bytes: Self::Bytes) -> Self::Bytes;

    /// `low` with the bits `mask << from` of `upper` from bit 4 on; `mask` has one bit or two.
    fn with_upper(self, low: Self::Bytes, upper: Self::Bytes, from: usize, mask: u8)
        -> Self::Bytes;

    /// `sums` plus the products of 16 weights in each lane, of at most 5 bits, with `x`.
    fn dot_5(self, sums: Self::Ints, weights: [Self::Bytes; 4], x: &[i8; 16]) -> Self::Ints;
    /// The same for weights of at most 6 bits.
    fn dot_6(self, sums: Self::Ints, weights: [Self::Bytes; 4], x: &[i8; 16]) -> Self::Ints;
    /// The same for weights of 8 bits from -128 on, stored with their sign turned over. They count [`Self::BIAS`] more than they mean;
    /// `x` has no -128.
    fn dot_8(self, sums: Self::Ints, weights: [Self::Bytes; 4], x: &[i8; 16]) -> Self::Ints;

    fn splat(self, x: i32) -> Self::Ints;
    fn signed(self, from: &[i8; ROWS]) -> Self::Ints;
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn mul_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;

    fn floats(self, from: Self::Ints) -> Self::Floats;
    /// Of the bits of f16.
    fn halves(self, from: &[u16; ROWS]) -> Self::Floats;
    fn unsigned(self, from: &[u8; ROWS]) -> Self::Floats;
    fn splat_float(self, x: f32) -> Self::Floats;
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn store(self, floats: Self::Floats) -> [f32; ROWS];
}

/// Arrays, which the compiler makes of what the target has at the least: on aarch64 NEON.
#[derive(Debug, Clone, Copy)]
pub struct Portable;

macro_rules! each {
    ($lane:ident => $value:expr) => {{
        let mut out = [Default::default(); ROWS];
        for $lane in 0..ROWS {
            out[$lane] = $value;
        }
        out
    }};
}

macro_rules! each_byte {
    ($i:ident => $value:expr) => {{
        let mut out = [0u8; 64];
        for $i in 0..64 {
            out[$i] = $value;
        }
        out
    }};
}

impl Portable {
    #[inline(always)]
    fn dot(sums: [i32; ROWS], weights: [[u8; 64]; 4], x: &[i8; 16], bias: i16) -> [i32; ROWS] {
        let mut sums = sums;
        for (weights, &x) in weights.iter().zip(x.as_chunks::<4>().0) {
            // In 16 bits, of two neighbours at the most: 2 * 127 * 128.
            let x = x.map(i16::from);
            let mut products = [0i16; 64];
            for i in 0..64 {
                products[i] = (i16::from(weights[i]) - bias) * x[i % 4];
            }
            let mut pairs = [0i16; 32];
            for i in 0..32 {
                pairs[i] = products[2 * i] + products[2 * i + 1];
            }
            for i in 0..ROWS {
                sums[i] += i32::from(pairs[2 * i]) + i32::from(pairs[2 * i + 1]);
            }
        }
        sums
    }
}

impl Lanes for Portable {
    type Bytes = [u8; 64];
    type Ints = [i32; ROWS];
    type Floats = [f32; ROWS];

    const BIAS: i32 = 0;
    const TILE: usize = 4;

    #[inline(always)]
    fn bytes(self, from: &[u8; 64]) -> [u8; 64] {
        *from
    }

    #[inline(always)]
    fn low_nibbles(self, bytes: [u8; 64]) -> [u8; 64] {
        each_byte!(i => bytes[i] & 15)
    }

    #[inline(always)]
    fn high_nibbles(self, bytes: [u8; 64]) -> [u8; 64] {
        each_byte!(i => bytes[i] >> 4)
    }

    #[inline(always)]
    fn with_upper(self, low: [u8; 64], upper: [u8; 64], from: usize, mask: u8) -> [u8; 64] {
        each_byte!(i => low[i] | (upper[i] >> from & mask) << 4)
    }

    #[inline(always)]
    fn dot_5(self, sums: [i32; ROWS], weights: [[u8; 64]; 4], x: &[i8; 16]) -> [i32; ROWS] {
        Self::dot(sums, weights, x, 0)
    }

    #[inline(always)]
    fn dot_6(self, sums: [i32; ROWS], weights: [[u8; 64]; 4], x: &[i8; 16]) -> [i32; ROWS] {
        Self::dot(sums, weights, x, 0)
    }

    #[inline(always)]
    fn dot_8(self, sums: [i32; ROWS], weights: [[u8; 64]; 4], x: &[i8; 16]) -> [i32; ROWS] {
        Self::dot(sums, weights, x, 128)
    }

    #[inline(always)]
    fn splat(self, x: i32) -> [i32; ROWS] {
        [x; ROWS]
    }

    #[inline(always)]
    fn signed(self, from: &[i8; ROWS]) -> [i32; ROWS] {
        each!(i => i32::from(from[i]))
    }

    #[inline(always)]
    fn add_ints(self, a: [i32; ROWS], b: [i32; ROWS]) -> [i32; ROWS] {
        each!(i => a[i] + b[i])
    }

    #[inline(always)]
    fn mul_ints(self, a: [i32; ROWS], b: [i32; ROWS]) -> [i32; ROWS] {
        each!(i => a[i] * b[i])
    }

    #[inline(always)]
    fn floats(self, from: [i32; ROWS]) -> [f32; ROWS] {
        each!(i => from[i] as f32)
    }

    #[inline(always)]
    fn halves(self, from: &[u16; ROWS]) -> [f32; ROWS] {
        each!(i => half::f16::from_bits(from[i]).to_f32())
    }

    #[inline(always)]
    fn unsigned(self, from: &[u8; ROWS]) -> [f32; ROWS] {
        each!(i => f32::from(from[i]))
    }

    #[inline(always)]
    fn splat_float(self, x: f32) -> [f32; ROWS] {
        [x; ROWS]
    }

    #[inline(always)]
    fn add(self, a: [f32; ROWS], b: [f32; ROWS]) -> [f32; ROWS] {
        each!(i => a[i] + b[i])
    }

    #[inline(always)]
    fn mul(self, a: [f32; ROWS], b: [f32; ROWS]) -> [f32; ROWS] {
        each!(i => a[i] * b[i])
    }

    #[inline(always)]
    fn store(self, floats: [f32; ROWS]) -> [f32; ROWS] {
        floats
    }
}
