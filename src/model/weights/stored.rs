//! Numbers in a mapped file as tensors: converted band by band on several threads, so that memory never holds a tensor twice.

use std::ops::Range;

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::k_quants::{self, GgmlType};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{bail, DType, Device, Result, Tensor, WithDType};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};
use rayon::prelude::*;

/// Numbers that a thread converts at a time: as f32 they stay in its cache.
const BAND: usize = 1 << 18;

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
    /// As `dtype` on the CPU, each number by way of f32, which holds every float that is read exactly.
    pub fn dense(&self, dtype: DType) -> Result<Tensor> {
        let count = self.shape()?.iter().product::<usize>();
        // Zeros that nothing has written to yet take no memory, but only integers and f32 come that way.
        match dtype {
            DType::F32 => self.floats(vec![0f32; count], |from, to| to.copy_from_slice(from)),
            DType::F16 => self.floats(vec![0u16; count].reinterpret_into::<f16>(), |from, to| {
                to.convert_from_f32_slice(from)
            }),
            DType::BF16 => self.floats(vec![0u16; count].reinterpret_into::<bf16>(), |from, to| {
                to.convert_from_f32_slice(from)
            }),
            other => bail!("weights as {other:?}, expected f32, f16 or bf16"),
        }
    }

    fn floats<T: WithDType>(
        &self,
        mut zeros: Vec<T>,
        narrow: fn(&[f32], &mut [T]),
    ) -> Result<Tensor> {
        self.bands(1, &mut zeros, narrow)?;
        Tensor::from_vec(zeros, self.shape()?, &Device::Cpu)
    }

    /// The stored blocks as they are.
    pub fn blocks(&self, device: &Device) -> Result<QTensor> {
        let bytes = &self.map[self.bytes.clone()];
        let tensor = match &self.rows {
            None => blocks_of(self.format, bytes, self.shape()?, device)?,
            Some(rows) => {
                let row = bytes.len() / self.dims[0].max(1);
                let mut words = vec![0u64; (rows.len() * row).div_ceil(size_of::<u64>())];
                // SAFETY: bytes are part of numbers and numbers are made of bytes, whatever these are.
                let (_, buffer, _) = unsafe { words.align_to_mut::<u8>() };
                for (to, &from) in buffer.chunks_exact_mut(row.max(1)).zip(rows) {
                    to.copy_from_slice(&bytes[from as usize * row..][..row]);
                }
                blocks_of(
                    self.format,
                    &buffer[..rows.len() * row],
                    self.shape()?,
                    device,
                )?
            }
        };
        self.give_back(self.bytes.clone());
        Ok(tensor)
    }

    /// As blocks of the kind `to`.
    pub fn quantised(&self, to: GgmlDType, device: &Device) -> Result<QTensor> {
        let storage = match to {
            GgmlDType::Q8_0 => self.to_blocks::<k_quants::BlockQ8_0>()?,
            GgmlDType::Q5_0 => self.to_blocks::<k_quants::BlockQ5_0>()?,
            GgmlDType::Q4K => self.to_blocks::<k_quants::BlockQ4K>()?,
            other => bail!("weights to blocks {other:?}, expected Q8_0, Q5_0 or Q4K"),
        };
        let tensor = QTensor::new(storage, self.shape()?)?;
        if device.is_cpu() {
            return Ok(tensor);
        }
        let storage = QStorage::from_data(tensor.data()?, device, to)?;
        QTensor::new(storage, self.shape()?)
    }

    fn to_blocks<T: GgmlType + 'static>(&self) -> Result<QStorage> {
        let shape = self.shape()?;
        if !shape
            .last()
            .is_some_and(|width| width.is_multiple_of(T::BLCK_SIZE))
        {
            bail!("rows of {shape:?} in blocks of {}", T::BLCK_SIZE);
        }
        let mut blocks = vec![T::zeros(); shape.iter().product::<usize>() / T::BLCK_SIZE];
        self.bands(T::BLCK_SIZE, &mut blocks, T::from_float)?;
        Ok(QStorage::Cpu(Box::new(blocks)))
    }

    /// The dimensions of the result; an error if a row is asked for that is not there.
    fn shape(&self) -> Result<Vec<usize>> {
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

    /// Fills `out`, of which every element holds `numbers` of the tensor's: band by band, `convert` gets them as f32.
    fn bands<T: Send>(
        &self,
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
            convert(wide, out);
            Ok(())
        })?;
        if self.rows.is_some() {
            self.give_back(self.bytes.clone());
        }
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
            GgmlDType::Q4_0 => from_blocks::<k_quants::BlockQ4_0>(bytes, wide)?,
            GgmlDType::Q4_1 => from_blocks::<k_quants::BlockQ4_1>(bytes, wide)?,
            GgmlDType::Q5_0 => from_blocks::<k_quants::BlockQ5_0>(bytes, wide)?,
            GgmlDType::Q5_1 => from_blocks::<k_quants::BlockQ5_1>(bytes, wide)?,
            GgmlDType::Q8_0 => from_blocks::<k_quants::BlockQ8_0>(bytes, wide)?,
            GgmlDType::Q2K => from_blocks::<k_quants::BlockQ2K>(bytes, wide)?,
            GgmlDType::Q3K => from_blocks::<k_quants::BlockQ3K>(bytes, wide)?,
            GgmlDType::Q4K => from_blocks::<k_quants::BlockQ4K>(bytes, wide)?,
            GgmlDType::Q5K => from_blocks::<k_quants::BlockQ5K>(bytes, wide)?,
            GgmlDType::Q6K => from_blocks::<k_quants::BlockQ6K>(bytes, wide)?,
            other => bail!("weights of type {other:?} cannot be widened"),
        }
        Ok(range)
    }

    /// Lets the system drop pages of the file that have been read.
    fn give_back(&self, bytes: Range<usize>) {
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

/// candle's copy of blocks; it takes their alignment for granted.
fn blocks_of(
    format: GgmlDType,
    bytes: &[u8],
    shape: Vec<usize>,
    device: &Device,
) -> Result<QTensor> {
    if !bytes.as_ptr().cast::<u64>().is_aligned() {
        bail!("blocks at an address that is no multiple of 8");
    }
    qtensor_from_ggml(format, bytes, shape, device)
}

fn from_blocks<T: GgmlType>(bytes: &[u8], wide: &mut [f32]) -> Result<()> {
    // SAFETY: blocks are plain integers and half floats in C layout, for which any bytes are values.
    let (before, blocks, after) = unsafe { bytes.align_to::<T>() };
    if !before.is_empty() || !after.is_empty() {
        bail!("blocks of {:?} that lie unaligned or are cut", T::DTYPE);
    }
    T::to_float(blocks, wide);
    Ok(())
}
