//! Integers taken out of their words, and the numbers that they stand for.

use std::ops::Range;

use super::integers::{Integers, Order};
use super::TOGETHER;
use crate::model::weights::mapped::Shard;

/// Columns that are read before the next rows of words: what they are written to stays in the cache.
const STRIP: usize = 128;

/// Where AWQ puts the eight neighbours that share a word: the bits from which each is stored on.
const AWQ_SHIFTS: [u32; TOGETHER] = [0, 16, 4, 20, 8, 24, 12, 28];

/// Zeros of GPTQ's first format are one less than they are: what each word of them lacks.
const fn ones(bits: usize) -> u32 {
    match bits {
        4 => 0x1111_1111,
        _ => 0x0101_0101,
    }
}

impl Integers {
    pub fn open<'a>(&'a self, shards: &'a [Shard]) -> Result<Opened<'a>, String> {
        let bytes = self.words.in_shard(shards);
        Ok(Opened {
            integers: self,
            bytes,
            words: bytes.as_chunks().0,
            scales: self.by_row(self.scales.numbers(shards)?),
            zeros: self.zeros(shards),
            indices: self.indices(shards)?,
        })
    }

    /// One for each group of each row, as they are to be: groups of a row together.
    fn by_row<T: Copy>(&self, stored: Vec<T>) -> Vec<T> {
        let (rows, groups) = (self.dims[0], self.groups);
        match stored.as_slice() {
            [one] => vec![*one; rows * groups],
            _ if self.order.by_group() => (0..rows * groups)
                .map(|at| stored[at % groups * rows + at / groups])
                .collect(),
            _ => stored,
        }
    }

    fn zeros(&self, shards: &[Shard]) -> Vec<u8> {
        let (rows, groups) = (self.dims[0], self.groups);
        let Some(zeros) = &self.zeros else {
            return vec![1 << (self.bits - 1); rows * groups];
        };
        let bytes = zeros.in_shard(shards);
        let words: &[[u8; 4]] = bytes.as_chunks().0;
        let per_word = 32 / self.bits;
        let mask = ((1u32 << self.bits) - 1) as u8;
        let at = |row: usize, group: usize| match self.order {
            Order::Bytes => {
                let at = if bytes.len() == 1 {
                    0
                } else {
                    row * groups + group
                };
                bytes[at] ^ 0x80
            }
            Order::Awq => {
                let word = words[group * (rows / TOGETHER) + row / TOGETHER];
                (u32::from_le_bytes(word) >> AWQ_SHIFTS[row % TOGETHER]) as u8 & mask
            }
            Order::Gptq { one_less } => {
                let word = u32::from_le_bytes(words[group * (rows / per_word) + row / per_word]);
                let word = match one_less {
                    // Whole words, as they were made smaller.
                    true => word.wrapping_add(ones(self.bits)),
                    false => word,
                };
                (word >> (row % per_word * self.bits)) as u8 & mask
            }
            Order::Rows => {
                let word = u32::from_le_bytes(words[row / per_word * groups + group]);
                (word >> (row % per_word * self.bits)) as u8 & mask
            }
        };
        (0..rows * groups)
            .map(|i| at(i / groups, i % groups))
            .collect()
    }

    /// The group of each column; none where they are one after the other.
    fn indices(&self, shards: &[Shard]) -> Result<Option<Vec<usize>>, String> {
        let Some(indices) = &self.indices else {
            return Ok(None);
        };
        let numbers = indices.whole_numbers(shards);
        // compressed-tensors fills it with -1 where it means nothing.
        if numbers.iter().all(|&number| number == -1) {
            return Ok(None);
        }
        let group = |number: &i64| usize::try_from(*number).ok().filter(|&at| at < self.groups);
        let found = numbers.iter().map(|number| {
            group(number).ok_or_else(|| {
                format!(
                    "{} holds {number}, expected 0 to {}",
                    indices.stored,
                    self.groups - 1
                )
            })
        });
        let found = found.collect::<Result<Vec<_>, _>>()?;
        let size = self.dims[1] / self.groups;
        let plain = found
            .iter()
            .enumerate()
            .all(|(at, &group)| group == at / size);
        Ok((!plain).then_some(found))
    }
}

/// Integers whose scales, zeros and order have been read.
pub struct Opened<'a> {
    pub integers: &'a Integers,
    bytes: &'a [u8],
    words: &'a [[u8; 4]],
    /// `[rows, groups]`
    pub scales: Vec<f32>,
    /// `[rows, groups]`
    pub zeros: Vec<u8>,
    pub indices: Option<Vec<usize>>,
}

impl Opened<'_> {
    /// The integers of these rows, one row after the other.
    pub fn unpack(&self, rows: Range<usize>, out: &mut [u8]) {
        let [all, width] = self.integers.dims;
        let bits = self.integers.bits;
        let per_word = 32 / bits;
        let mask = ((1u32 << bits) - 1) as u8;
        match self.integers.order {
            Order::Bytes => {
                let bytes = &self.bytes[rows.start * width..rows.end * width];
                for (out, byte) in out.iter_mut().zip(bytes) {
                    *out = byte ^ 0x80;
                }
            }
            Order::Rows => {
                let across = width.div_ceil(per_word);
                for (row, out) in rows.zip(out.chunks_mut(width)) {
                    let words = &self.words[row * across..][..across];
                    for (out, &word) in out.chunks_mut(per_word).zip(words) {
                        let word = u32::from_le_bytes(word);
                        for (i, out) in out.iter_mut().enumerate() {
                            *out = (word >> (i * bits)) as u8 & mask;
                        }
                    }
                }
            }
            Order::Gptq { .. } => {
                for (at, words) in self.words.chunks(all).enumerate() {
                    for (&word, out) in words[rows.clone()].iter().zip(out.chunks_mut(width)) {
                        let word = u32::from_le_bytes(word);
                        let out = &mut out[at * per_word..][..per_word];
                        for (i, out) in out.iter_mut().enumerate() {
                            *out = (word >> (i * bits)) as u8 & mask;
                        }
                    }
                }
            }
            Order::Awq => self.unpack_awq(rows, out),
        }
    }

    fn unpack_awq(&self, rows: Range<usize>, out: &mut [u8]) {
        let [all, width] = self.integers.dims;
        let across = all / TOGETHER;
        for start in (0..width).step_by(STRIP) {
            let columns = start..(start + STRIP).min(width);
            for (row, out) in rows.clone().zip(out.chunks_mut(width)) {
                let shift = AWQ_SHIFTS[row % TOGETHER];
                let words = self.words[columns.start * across + row / TOGETHER..].iter();
                let words = words.step_by(across);
                for (out, &word) in out[columns.clone()].iter_mut().zip(words) {
                    *out = (u32::from_le_bytes(word) >> shift) as u8 & 0xf;
                }
            }
        }
    }

    /// The numbers of these rows, one row after the other.
    pub fn widen(&self, rows: Range<usize>, wide: &mut [f32]) {
        let (width, groups) = (self.integers.dims[1], self.integers.groups);
        let mut integers = vec![0u8; wide.len()];
        self.unpack(rows.clone(), &mut integers);
        let integers = integers.chunks(width);
        for ((row, wide), integers) in rows.zip(wide.chunks_mut(width)).zip(integers) {
            let scales = &self.scales[row * groups..][..groups];
            let zeros = &self.zeros[row * groups..][..groups];
            let number = |q: u8, group: usize| {
                f32::from(i16::from(q) - i16::from(zeros[group])) * scales[group]
            };
            match &self.indices {
                Some(indices) => {
                    for ((wide, &q), &group) in wide.iter_mut().zip(integers).zip(indices) {
                        *wide = number(q, group);
                    }
                }
                None => {
                    let size = width / groups;
                    let parts = wide.chunks_mut(size).zip(integers.chunks(size));
                    for (group, (wide, integers)) in parts.enumerate() {
                        for (wide, &q) in wide.iter_mut().zip(integers) {
                            *wide = number(q, group);
                        }
                    }
                }
            }
        }
    }

    /// Scale and zero of the block of 32 columns from `column` on of a row.
    pub fn of_block(&self, row: usize, column: usize) -> (f32, u8) {
        let groups = self.integers.groups;
        let group = column / (self.integers.dims[1] / groups);
        let at = row * groups + group;
        (self.scales[at], self.zeros[at])
    }
}
