//! Numbers in a mapped file as tensors: converted band by band on several threads, so that memory never holds a tensor twice.

use std::ops::Range;

use candle_core::quantized::k_quants::GgmlType;
use candle_core::quantized::GgmlDType;
use candle_core::{bail, DType, Device, Result, Tensor, WithDType};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};
use rayon::prelude::*;

use super::blocks::{as_blocks, with_block};
use super::finite;

/// Numbers that a thread converts at a time: as f32 they stay in its cache.
pub(super) const BAND: usize = 1 << 18;

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

impl Stored<'_> {
    /// As `dtype` on the CPU, each number by way of f32, which holds every float that is read exactly; an error if one is not finite, or
    /// would not be as `dtype`.
    pub fn dense(&self, dtype: DType) -> Result<Tensor> {
        let count = self.shape()?.iter().product::<usize>();
        // Zeros that nothing has written to yet take no memory, but only integers and f32 come that way.
        match dtype {
            DType::F32 => self.floats(finite::F32, vec![0f32; count], |from, to| {
                to.copy_from_slice(from)
            }),
            DType::F16 => {
                let zeros = vec![0u16; count].reinterpret_into::<f16>();
                self.floats(finite::F16, zeros, |from, to| {
                    to.convert_from_f32_slice(from)
                })
            }
            DType::BF16 => {
                let zeros = vec![0u16; count].reinterpret_into::<bf16>();
                self.floats(finite::BF16, zeros, |from, to| {
                    to.convert_from_f32_slice(from)
                })
            }
            other => bail!("weights as {other:?}, expected f32, f16 or bf16"),
        }
    }

    fn floats<T: WithDType>(
        &self,
        range: finite::Range,
        mut zeros: Vec<T>,
        narrow: fn(&[f32], &mut [T]),
    ) -> Result<Tensor> {
        self.bands(range, 1, &mut zeros, narrow)?;
        Tensor::from_vec(zeros, self.shape()?, &Device::Cpu)
    }

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

    /// The dimensions of the result; an error if a row is asked for that is not there.
    pub(super) fn shape(&self) -> Result<Vec<usize>> {
        let mut shape = self.dims.to_vec();
        if let Some(rows) = &self.rows {
            let there = shape.first().copied().unwrap_or(0);
            if let Some(row) = rows.iter().find(|&&row| row as usize >= there) {
                bail!("row {row} of {there}");
            }
            shape[0] = rows.len();
        }
        Ok(shape)
    }

    /// Fills `out`, of which every element holds `numbers` of the tensor's: band by band, `convert` gets them as f32. An error if one is
    /// not within `range`.
    pub(super) fn bands<T: Send>(
        &self,
        range: finite::Range,
        numbers: usize,
        out: &mut [T],
        convert: impl Fn(&[f32], &mut [T]) + Sync,
    ) -> Result<()> {
        let row = self.dims.iter().skip(1).product::<usize>();
        let band = match self.rows {
            // Whole rows, for each is somewhere else.
            Some(_) => row * (BAND / row.max(1)).max(1),
            None => BAND,
        };
        let bands = out.par_chunks_mut((band / numbers).max(1)).enumerate();
        bands.try_for_each_init(Vec::new, |wide, (i, out)| -> Result<()> {
            wide.clear();
            wide.resize(out.len() * numbers, 0f32);
            self.read(i * band, row.max(1), wide)?;
            range.check(wide)?;
            convert(wide, out);
            Ok(())
        })?;
        self.give_back_all();
        Ok(())
    }

    /// The numbers of the result from the `start`-th on, which begins a row of `row` numbers if the rows have an order.
    fn read(&self, start: usize, row: usize, wide: &mut [f32]) -> Result<()> {
        match &self.rows {
            None => {
                let bytes = self.widen(start, wide)?;
                self.give_back(bytes);
            }
            Some(rows) => {
                for (wide, &from) in wide.chunks_mut(row).zip(&rows[start / row..]) {
                    self.widen(from as usize * row, wide)?;
                }
            }
        }
        Ok(())
    }

    /// The numbers from the `start`-th on, into `wide`. Returns which bytes of the file they took.
    fn widen(&self, start: usize, wide: &mut [f32]) -> Result<Range<usize>> {
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
        let start = self.bytes.start.saturating_sub(AROUND);
        let end = self.bytes.end.saturating_add(AROUND);
        self.give_back(start..end.min(self.map.len()));
    }

    /// Lets the system drop pages of the file that have been read.
    pub(super) fn give_back(&self, bytes: Range<usize>) {
        // SAFETY: the mapping is read-only, so that what is dropped from memory is read from the file again if need be.
        let advised = unsafe {
            self.map
                .unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, bytes.len())
        };
        if let Err(error) = advised {
            tracing::debug!("mapped pages cannot be given back: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
