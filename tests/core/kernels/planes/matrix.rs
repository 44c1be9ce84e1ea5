//! A matrix in planes, read bit by bit as planes.cuh says, and an input as the kernels round it.

use std::ffi::c_void;

use half::f16;

use crate::kernels::products::EPS;
use crate::kernels::{rms_factor, wide, Launch, Random};

/// `Scales` in planes.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    One = 0,
    Pair = 1,
    Super = 2,
    Halves = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub bits: usize,
    pub scales: Scales,
}

const fn format(bits: usize, scales: Scales) -> Format {
    Format { bits, scales }
}

pub const FORMATS: [Format; 8] = [
    format(4, Scales::One),
    format(4, Scales::Pair),
    format(4, Scales::Super),
    format(5, Scales::One),
    format(5, Scales::Pair),
    format(5, Scales::Super),
    format(6, Scales::Halves),
    format(8, Scales::One),
];

impl Format {
    fn code(self) -> usize {
        self.bits + 16 * self.scales as usize
    }

    /// Widths and rows: one group and many, less than a pass of a warp and more.
    pub fn sizes(self) -> &'static [(usize, usize)] {
        match self.scales {
            Scales::One | Scales::Pair => &[(32, 1), (96, 37), (960, 12), (2080, 5), (4128, 3)],
            Scales::Super | Scales::Halves => &[(256, 17), (768, 6), (2304, 5), (4352, 3)],
        }
    }
}

/// A matrix `[rows, width]` in planes.
#[derive(Debug, Clone)]
pub struct Planes {
    pub format: Format,
    pub rows: usize,
    pub width: usize,
    /// In whole cells of 16 bytes.
    cells: Vec<u128>,
    starts: [usize; 4],
}

impl Planes {
    /// Any integers, scales of about the size that trained weights have.
    pub fn random(random: &mut Random, format: Format, rows: usize, width: usize) -> Self {
        let groups = rows * width / 32;
        let supers = rows * width / 256;
        let number = |random: &mut Random, size: f32| {
            let number = f16::from_f32(random.number() * size);
            number.to_le_bytes()
        };
        let any = |random: &mut Random, count: usize| -> Vec<u8> {
            (0..count).map(|_| random.bits() as u8).collect()
        };
        let quants = any(random, 16 * groups);
        let more = any(random, 4 * (format.bits - 4) * groups);
        let size = 1.0 / (1 << format.bits) as f32;
        let (mut scales, mut beside) = (Vec::new(), Vec::new());
        match format.scales {
            Scales::One => (0..groups).for_each(|_| scales.extend(number(random, size))),
            Scales::Pair => (0..2 * groups).for_each(|_| scales.extend(number(random, size))),
            Scales::Super => {
                scales = any(random, groups);
                for _ in 0..supers {
                    beside.extend(number(random, size / 32.0));
                    beside.extend(number(random, size / 8.0));
                    beside.extend(any(random, 4));
                }
            }
            Scales::Halves => {
                scales = any(random, 2 * groups);
                (0..supers).for_each(|_| beside.extend(number(random, size / 64.0)));
            }
        }
        let mut bytes = Vec::new();
        let starts = [quants, more, scales, beside].map(|plane| {
            bytes.resize(bytes.len().next_multiple_of(16), 0);
            let start = bytes.len();
            bytes.extend(plane);
            start
        });
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        let cells = bytes.as_chunks::<16>().0.iter();
        Self {
            format,
            rows,
            width,
            cells: cells.map(|&cell| u128::from_le_bytes(cell)).collect(),
            starts,
        }
    }

    fn byte(&self, plane: usize, index: usize) -> u8 {
        let at = self.starts[plane] + index;
        self.cells[at / 16].to_le_bytes()[at % 16]
    }

    fn half(&self, plane: usize, index: usize) -> f32 {
        f16::from_le_bytes([0, 1].map(|i| self.byte(plane, 2 * index + i))).to_f32()
    }

    fn bit(&self, plane: usize, start: usize, bit: usize) -> u8 {
        self.byte(plane, start + bit / 8) >> (bit % 8) & 1
    }

    /// A weight as a float, in the order of operations that candle has for such blocks.
    fn weight(&self, row: usize, column: usize) -> f32 {
        let (group, i) = (row * self.width / 32 + column / 32, column % 32);
        let Format { bits, scales } = self.format;
        let low = self.byte(0, 16 * group + i % 16) >> (i / 16 * 4) & 15;
        let q = match bits {
            8 => self.byte(i / 16, 16 * group + i % 16) as i8 as i32,
            4 => low.into(),
            5 => i32::from(low | self.bit(1, 4 * group, i % 4 * 8 + i / 4) << 4),
            _ => {
                let (start, i) = (8 * group + i / 16 * 4, i % 16);
                let upper = [0, 1].map(|n| self.bit(1, start, i % 4 * 8 + i / 4 * 2 + n));
                i32::from(low | (upper[0] | upper[1] << 1) << 4)
            }
        };
        match scales {
            Scales::One => {
                let offset = if bits == 8 { 0 } else { 1 << (bits - 1) };
                self.half(2, group) * (q - offset) as f32
            }
            Scales::Pair => self.half(2, 2 * group) * q as f32 + self.half(2, 2 * group + 1),
            Scales::Super => {
                let start = 4 * (group / 8);
                let bits = |from: usize| {
                    let bit = |n| self.bit(3, 2 * start + 4, group % 8 * 4 + from + n);
                    bit(0) | bit(1) << 1
                };
                let byte = self.byte(2, group);
                let (s, m) = ((byte & 15) | bits(0) << 4, byte >> 4 | bits(2) << 4);
                let added = self.half(3, start + 1) * f32::from(m);
                self.half(3, start) * f32::from(s) * q as f32 - added
            }
            Scales::Halves => {
                let s = self.byte(2, 2 * group + i / 16) as i8;
                self.half(3, group / 8) * f32::from(s) * (q - 32) as f32
            }
        }
    }

    pub fn weights(&self) -> Vec<f32> {
        let rows = (0..self.rows).flat_map(|row| (0..self.width).map(move |i| (row, i)));
        rows.map(|(row, i)| self.weight(row, i)).collect()
    }

    fn pointer(&mut self) -> *mut c_void {
        self.cells.as_mut_ptr().cast()
    }

    pub fn give(&mut self, launch: Launch) -> Launch {
        let code = self.format.code();
        launch.pointer(self.pointer()).number(code)
    }

    /// The products with what an input has become, and how far they may be from those with the input itself: rounded to 8 bits, a number
    /// is off by at most half a step.
    pub fn products(&self, input: &Rounded) -> Vec<(f64, f64)> {
        let weights = self.weights();
        let rows = weights.chunks_exact(self.width);
        rows.map(|row| {
            let terms = row.iter().zip(&input.numbers).zip(&input.steps);
            terms.fold((0.0, 0.0), |(sum, bound), ((&w, x), step)| {
                let w = f64::from(w);
                (sum + w * x, bound + w.abs() * step / 2.0)
            })
        })
        .collect()
    }
}

/// An input as the kernels round it: 32 numbers share a scale.
pub struct Rounded {
    numbers: Vec<f64>,
    /// Of each number, the step that it is rounded to.
    steps: Vec<f64>,
}

impl Rounded {
    pub fn of(x: &[f32], gain: Option<&[f32]>) -> Self {
        let by = gain.map_or(1.0, |_| rms_factor(&wide(x), EPS));
        let scaled = |i: usize| gain.map_or(x[i], |gain| x[i] * gain[i]);
        let scaled = (0..x.len()).map(scaled).collect::<Vec<_>>();
        let (mut numbers, mut steps) = (Vec::new(), Vec::new());
        for group in scaled.chunks(32) {
            let most = group.iter().fold(0f32, |most, x| most.max(x.abs()));
            let step = f64::from(most / 127.0) * by;
            let rounded = group.iter().map(|x| (x * (127.0 / most)).round_ties_even());
            numbers.extend(rounded.map(|q| f64::from(q) * step));
            steps.extend(group.iter().map(|_| step));
        }
        Self { numbers, steps }
    }
}
