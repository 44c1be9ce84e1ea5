//! What a panel consists of: 16 blocks of ggml, one of each row, with the same numbers where the lanes of a register want them.

use candle_core::quantized::GgmlDType;
use half::f16;

use super::input::{Group as Input, GROUP};
use super::lanes::{Lanes, ROWS};
use super::pack::{
    nibble, pack_bytes, pack_nibbles, pack_upper, unpack_bytes, unpack_nibbles, upper, Vector,
};
use crate::model::weights::planes::{integers, scale_and_minimum};

/// The bits of an f16 for each row.
type Scales = [u16; ROWS];

/// A group of 32 weights of each row, ready to be multiplied.
#[derive(Clone, Copy)]
pub struct Unpacked<L: Lanes> {
    halves: [[L::Bytes; 4]; 2],
    /// What an integer is multiplied with.
    scale: L::Floats,
    /// What is added to every weight of a group, where there is such.
    minimum: L::Floats,
    /// What the sums of each half are multiplied with before, where there are such.
    factors: [L::Ints; 2],
}

/// A record of [`ROWS`] blocks.
pub trait Record: Sized + Send + Sync {
    /// Groups of a block.
    const GROUPS: usize;

    /// From one block of each row; those of rows that are not there are none.
    fn pack(kind: GgmlDType, blocks: &[&[u8]]) -> Self;

    /// What the groups have in common: their scale and their minimum.
    fn head<L: Lanes>(&self, lanes: L) -> [L::Floats; 2];

    fn unpack<L: Lanes>(&self, lanes: L, head: [L::Floats; 2], group: usize) -> Unpacked<L>;

    /// `sums` plus the products of a group with `x`.
    fn add<L: Lanes>(lanes: L, weights: &Unpacked<L>, x: &Input, sums: L::Floats) -> L::Floats;

    /// The weights of a row as floats.
    fn widen(&self, row: usize, out: &mut [f32]);
}

/// Blocks of 32 with `QUANTS` vectors of integers (4: nibbles, 8: bytes), a fifth bit if `UPPER`, and a scale; with a minimum too if
/// `SCALES` is 2.
#[derive(Debug, Clone)]
#[repr(C, align(32))]
pub struct Plain<const QUANTS: usize, const UPPER: usize, const SCALES: usize> {
    quants: [Vector; QUANTS],
    upper: [Vector; UPPER],
    scales: [Scales; SCALES],
}

pub type Q4_0 = Plain<4, 0, 1>;
pub type Q4_1 = Plain<4, 0, 2>;
pub type Q5_0 = Plain<4, 1, 1>;
pub type Q5_1 = Plain<4, 1, 2>;
pub type Q8_0 = Plain<8, 0, 1>;

impl<const QUANTS: usize, const UPPER: usize, const SCALES: usize> Plain<QUANTS, UPPER, SCALES> {
    /// What integers without a minimum are stored larger by.
    const OFFSET: i32 = match (QUANTS, UPPER) {
        (8, _) => 128,
        (_, 1) => 16,
        _ => 8,
    };
}

impl<const QUANTS: usize, const UPPER: usize, const SCALES: usize> Record
    for Plain<QUANTS, UPPER, SCALES>
{
    const GROUPS: usize = 1;

    fn pack(kind: GgmlDType, blocks: &[&[u8]]) -> Self {
        let mut packed = Self {
            quants: [[0; 64]; QUANTS],
            upper: [[0; 64]; UPPER],
            scales: [[0; ROWS]; SCALES],
        };
        for (row, block) in blocks.iter().enumerate() {
            let mut q = [0; GROUP];
            integers(kind, block, &mut q);
            match QUANTS {
                8 => pack_bytes(row, &q, &mut packed.quants),
                _ => pack_nibbles(row, &q, &mut packed.quants),
            }
            pack_upper::<1>(row, &q, &mut packed.upper);
            for (scale, bytes) in packed.scales.iter_mut().zip(block.as_chunks().0) {
                scale[row] = u16::from_le_bytes(*bytes);
            }
        }
        packed
    }

    #[inline(always)]
    fn head<L: Lanes>(&self, lanes: L) -> [L::Floats; 2] {
        [lanes.splat_float(0.0); 2]
    }

    #[inline(always)]
    fn unpack<L: Lanes>(&self, lanes: L, head: [L::Floats; 2], _: usize) -> Unpacked<L> {
        let halves = match QUANTS {
            8 => unpack_bytes(lanes, &self.quants),
            _ => unpack_nibbles(lanes, &self.quants, &self.upper, 1),
        };
        Unpacked {
            halves,
            scale: lanes.halves(&self.scales[0]),
            minimum: match SCALES {
                2 => lanes.halves(&self.scales[1]),
                _ => head[1],
            },
            factors: [lanes.splat(1); 2],
        }
    }

    #[inline(always)]
    fn add<L: Lanes>(lanes: L, weights: &Unpacked<L>, x: &Input, sums: L::Floats) -> L::Floats {
        let offset = match (SCALES, QUANTS) {
            (2, _) => 0,
            (_, 8) => L::BIAS,
            _ => Self::OFFSET,
        };
        let mut dot = lanes.splat(-offset * (x.sums[0] + x.sums[1]));
        for half in 0..2 {
            dot = match QUANTS {
                8 => lanes.dot_8(dot, weights.halves[half], &x.integers[half]),
                _ => lanes.dot_5(dot, weights.halves[half], &x.integers[half]),
            };
        }
        let scale = lanes.mul(weights.scale, lanes.splat_float(x.scale));
        let sums = lanes.add(sums, lanes.mul(lanes.floats(dot), scale));
        match SCALES {
            2 => lanes.add(sums, lanes.mul(weights.minimum, lanes.splat_float(x.total))),
            _ => sums,
        }
    }

    fn widen(&self, row: usize, out: &mut [f32]) {
        let scale = float(self.scales[0][row]);
        for (i, out) in out.iter_mut().enumerate() {
            let q = match QUANTS {
                8 => i32::from(self.quants[i / 4][4 * row + i % 4]),
                _ => i32::from(nibble(&self.quants, row, i)) | upper(&self.upper, 1, row, i) << 4,
            };
            *out = match SCALES {
                2 => q as f32 * scale + float(self.scales[1][row]),
                _ => (q - Self::OFFSET) as f32 * scale,
            };
        }
    }
}

/// Groups of 32 in a block of 256.
const GROUPS: usize = 8;

/// Q4_K, and Q5_K if `UPPER`. The 6-bit scales and minima take a byte each here.
#[derive(Debug, Clone)]
#[repr(C, align(32))]
pub struct Super<const UPPER: usize> {
    /// What scales and what minima are multiplied with.
    scales: [Scales; 2],
    groups: [SuperGroup<UPPER>; GROUPS],
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
struct SuperGroup<const UPPER: usize> {
    quants: [Vector; 4],
    upper: [Vector; UPPER],
    scales: [u8; ROWS],
    minima: [u8; ROWS],
}

pub type Q4K = Super<0>;
pub type Q5K = Super<1>;

impl<const UPPER: usize> Record for Super<UPPER> {
    const GROUPS: usize = GROUPS;

    fn pack(kind: GgmlDType, blocks: &[&[u8]]) -> Self {
        let mut packed = Self {
            scales: [[0; ROWS]; 2],
            groups: [SuperGroup {
                quants: [[0; 64]; 4],
                upper: [[0; 64]; UPPER],
                scales: [0; ROWS],
                minima: [0; ROWS],
            }; GROUPS],
        };
        for (row, block) in blocks.iter().enumerate() {
            let mut q = [0; GROUPS * GROUP];
            integers(kind, block, &mut q);
            for (scale, bytes) in packed.scales.iter_mut().zip(block.as_chunks().0) {
                scale[row] = u16::from_le_bytes(*bytes);
            }
            let groups = packed.groups.iter_mut().zip(q.as_chunks().0);
            for (g, (group, q)) in groups.enumerate() {
                pack_nibbles(row, q, &mut group.quants);
                pack_upper::<1>(row, q, &mut group.upper);
                (group.scales[row], group.minima[row]) = scale_and_minimum(&block[4..16], g);
            }
        }
        packed
    }

    #[inline(always)]
    fn head<L: Lanes>(&self, lanes: L) -> [L::Floats; 2] {
        let minus = lanes.splat_float(-1.0);
        [
            lanes.halves(&self.scales[0]),
            lanes.mul(lanes.halves(&self.scales[1]), minus),
        ]
    }

    #[inline(always)]
    fn unpack<L: Lanes>(&self, lanes: L, head: [L::Floats; 2], group: usize) -> Unpacked<L> {
        let group = &self.groups[group];
        Unpacked {
            halves: unpack_nibbles(lanes, &group.quants, &group.upper, 1),
            scale: lanes.mul(head[0], lanes.unsigned(&group.scales)),
            minimum: lanes.mul(head[1], lanes.unsigned(&group.minima)),
            factors: [lanes.splat(1); 2],
        }
    }

    #[inline(always)]
    fn add<L: Lanes>(lanes: L, weights: &Unpacked<L>, x: &Input, sums: L::Floats) -> L::Floats {
        let dot = lanes.dot_5(lanes.splat(0), weights.halves[0], &x.integers[0]);
        let dot = lanes.dot_5(dot, weights.halves[1], &x.integers[1]);
        let scale = lanes.mul(weights.scale, lanes.splat_float(x.scale));
        let sums = lanes.add(sums, lanes.mul(lanes.floats(dot), scale));
        lanes.add(sums, lanes.mul(weights.minimum, lanes.splat_float(x.total)))
    }

    fn widen(&self, row: usize, out: &mut [f32]) {
        let [scale, minimum] = self.scales.map(|scales| float(scales[row]));
        for (group, out) in self.groups.iter().zip(out.chunks_exact_mut(GROUP)) {
            let scale = scale * f32::from(group.scales[row]);
            let minimum = minimum * f32::from(group.minima[row]);
            for (i, out) in out.iter_mut().enumerate() {
                let q =
                    i32::from(nibble(&group.quants, row, i)) | upper(&group.upper, 1, row, i) << 4;
                *out = scale * q as f32 - minimum;
            }
        }
    }
}

/// Q6_K.
#[derive(Debug, Clone)]
#[repr(C, align(32))]
pub struct Q6K {
    scales: Scales,
    groups: [HalvesGroup; GROUPS],
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
struct HalvesGroup {
    quants: [Vector; 4],
    upper: [Vector; 2],
    /// Of each half.
    scales: [[i8; ROWS]; 2],
}

impl Q6K {
    const OFFSET: i32 = 32;
}

impl Record for Q6K {
    const GROUPS: usize = GROUPS;

    fn pack(kind: GgmlDType, blocks: &[&[u8]]) -> Self {
        let mut packed = Self {
            scales: [0; ROWS],
            groups: [HalvesGroup {
                quants: [[0; 64]; 4],
                upper: [[0; 64]; 2],
                scales: [[0; ROWS]; 2],
            }; GROUPS],
        };
        for (row, block) in blocks.iter().enumerate() {
            let mut q = [0; GROUPS * GROUP];
            integers(kind, block, &mut q);
            packed.scales[row] = u16::from_le_bytes([block[208], block[209]]);
            let groups = packed.groups.iter_mut().zip(q.as_chunks().0);
            for (g, (group, q)) in groups.enumerate() {
                pack_nibbles(row, q, &mut group.quants);
                pack_upper::<2>(row, q, &mut group.upper);
                for half in 0..2 {
                    group.scales[half][row] = block[192 + 2 * g + half] as i8;
                }
            }
        }
        packed
    }

    #[inline(always)]
    fn head<L: Lanes>(&self, lanes: L) -> [L::Floats; 2] {
        [lanes.halves(&self.scales), lanes.splat_float(0.0)]
    }

    #[inline(always)]
    fn unpack<L: Lanes>(&self, lanes: L, head: [L::Floats; 2], group: usize) -> Unpacked<L> {
        let group = &self.groups[group];
        Unpacked {
            halves: unpack_nibbles(lanes, &group.quants, &group.upper, 2),
            scale: head[0],
            minimum: head[1],
            factors: [
                lanes.signed(&group.scales[0]),
                lanes.signed(&group.scales[1]),
            ],
        }
    }

    #[inline(always)]
    fn add<L: Lanes>(lanes: L, weights: &Unpacked<L>, x: &Input, sums: L::Floats) -> L::Floats {
        // Below 2^31: 2 * 128 * 16 * 127 * 63.
        let mut dot = lanes.splat(0);
        for half in 0..2 {
            let from = lanes.splat(-Self::OFFSET * x.sums[half]);
            let of_half = lanes.dot_6(from, weights.halves[half], &x.integers[half]);
            dot = lanes.add_ints(dot, lanes.mul_ints(of_half, weights.factors[half]));
        }
        let scale = lanes.mul(weights.scale, lanes.splat_float(x.scale));
        lanes.add(sums, lanes.mul(lanes.floats(dot), scale))
    }

    fn widen(&self, row: usize, out: &mut [f32]) {
        let scale = float(self.scales[row]);
        for (group, out) in self.groups.iter().zip(out.chunks_exact_mut(GROUP)) {
            for (i, out) in out.iter_mut().enumerate() {
                let q =
                    i32::from(nibble(&group.quants, row, i)) | upper(&group.upper, 2, row, i) << 4;
                let scale = scale * f32::from(group.scales[i / (GROUP / 2)][row]);
                *out = scale * (q - Self::OFFSET) as f32;
            }
        }
    }
}

fn float(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}
