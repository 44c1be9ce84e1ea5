//! Numbers in a mapped file that lie there as floats or blocks.

use std::ops::Range;

use candle_core::quantized::k_quants::GgmlType;
use candle_core::quantized::GgmlDType;
use candle_core::Result;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};

use super::bands::{shape_of, Bands, BAND};
use super::blocks::{as_blocks, with_block};

/// With a page that is read the system maps those around it that are in memory as one piece: at most so many bytes.
const AROUND: usize = 2 << 20;

/// A tensor in a mapped file, its rows contiguous. `bytes` has been checked to be as long as `format` and `dims` need.
#[derive(Debug, Clone)]
pub struct Stored<'a> {
    pub map: &'a Mmap,
    pub bytes: Range<usize>,
    pub format: GgmlDType,
    pub dims: &'a [usize],
    /// Which entries of the first dimension the tensor is to have, in this order; all of them, if none are given.
    pub rows: Option<Vec<u32>>,
}

impl Bands for Stored<'_> {
    fn shape(&self) -> Result<Vec<usize>> {
        shape_of(self.dims, self.rows.as_deref())
    }

    fn band(&self) -> usize {
        let row = self.row();
        match self.rows {
            // Whole rows, for each is somewhere else.
            Some(_) => row * (BAND / row).max(1),
            None => BAND,
        }
    }

    fn read(&self, start: usize, wide: &mut [f32]) -> Result<()> {
        match &self.rows {
            None => {
                let bytes = self.widen(start, wide)?;
                self.give_back(bytes);
            }
            Some(rows) => {
                let row = self.row();
                for (wide, &from) in wide.chunks_mut(row).zip(&rows[start / row..]) {
                    self.widen(from as usize * row, wide)?;
                }
            }
        }
        Ok(())
    }

    fn finish(&self) {
        self.give_back_all();
    }
}

impl Stored<'_> {
    /// Whether both hold the same numbers in the same form; `rows` does not count.
    pub fn same(&self, other: &Self) -> bool {
        if self.format != other.format || self.dims != other.dims {
            return false;
        }
        let band = BAND * size_of::<f32>();
        let bytes = (self.bytes.clone().step_by(band)).zip(other.bytes.clone().step_by(band));
        let same = bytes.into_iter().all(|(a, b)| {
            let a = a..(a + band).min(self.bytes.end);
            let b = b..(b + band).min(other.bytes.end);
            let same = self.map[a.clone()] == other.map[b.clone()];
            self.give_back(a);
            other.give_back(b);
            same
        });
        self.give_back_all();
        other.give_back_all();
        same
    }

    /// Numbers of a row, at least one.
    fn row(&self) -> usize {
        self.dims.iter().skip(1).product::<usize>().max(1)
    }

    /// The numbers from the `start`-th on, into `wide`. Returns which bytes of the file they took.
    pub(super) fn widen(&self, start: usize, wide: &mut [f32]) -> Result<Range<usize>> {
        let (block, size) = (self.format.block_size(), self.format.type_size());
        let from = self.bytes.start + start / block * size;
        let range = from..from + wide.len() / block * size;
        let bytes = &self.map[range.clone()];
        match self.format {
            GgmlDType::F32 => {
                for (wide, &bytes) in wide.iter_mut().zip(bytes.as_chunks().0) {
                    *wide = f32::from_le_bytes(bytes);
                }
            }
            GgmlDType::BF16 => {
                for (wide, &bytes) in wide.iter_mut().zip(bytes.as_chunks().0) {
                    *wide = bf16::from_le_bytes(bytes).to_f32();
                }
            }
            GgmlDType::F16 => {
                // A few at a time: the conversion has instructions of its own, but only for numbers that lie aligned.
                let mut aligned = [f16::ZERO; 64];
                for (wide, bytes) in wide.chunks_mut(64).zip(bytes.chunks(128)) {
                    for (number, &bytes) in aligned.iter_mut().zip(bytes.as_chunks().0) {
                        *number = f16::from_le_bytes(bytes);
                    }
                    aligned[..wide.len()].convert_to_f32_slice(wide);
                }
            }
            blocks => with_block!(blocks, Block => {
                Block::to_float(as_blocks::<Block>(bytes)?, wide);
                Ok(())
            })?,
        }
        Ok(range)
    }

    /// Lets the system drop the tensor's pages, with those around it.
    pub(super) fn give_back_all(&self) {
        give_back_around(self.map, &self.bytes);
    }

    /// Lets the system drop pages of the file that have been read.
    pub(super) fn give_back(&self, bytes: Range<usize>) {
        give_back(self.map, bytes);
    }
}

/// Lets the system drop pages of `map` that have been read, with those around them.
pub(super) fn give_back_around(map: &Mmap, bytes: &Range<usize>) {
    let start = bytes.start.saturating_sub(AROUND);
    let end = bytes.end.saturating_add(AROUND);
    give_back(map, start..end.min(map.len()));
}

fn give_back(map: &Mmap, bytes: Range<usize>) {
    // SAFETY: the mapping is read-only, so that what is dropped from memory is read from the file again if need be.
    let advised =
        unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
    if let Err(error) = advised {
        tracing::debug!("mapped pages cannot be given back: {error}");
    }
}

#[cfg(test)]
mod tests;
