//! Numbers of a tensor as floats or blocks, band by band on several threads, so that memory never holds a tensor twice.

use candle_core::quantized::k_quants::{self, GgmlType};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{bail, DType, Device, Result, Tensor, WithDType};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::finite;

/// Numbers that a thread converts at a time: as f32 they stay in its cache.
pub(super) const BAND: usize = 1 << 18;

/// A tensor whose numbers are read a band at a time, whatever they are stored as.
pub trait Bands: Sync {
    /// The dimensions of the result; an error if a row is asked for that is not there.
    fn shape(&self) -> Result<Vec<usize>>;

    /// How many numbers a band has.
    fn band(&self) -> usize;

    /// The numbers of the result from the `start`-th on, at the beginning of a band and within it.
    fn read(&self, start: usize, wide: &mut [f32]) -> Result<()>;

    /// Everything has been read.
    fn finish(&self);

    /// As `dtype` on the CPU, each number by way of f32, which holds every float that is read exactly; an error if one is not finite, or
    /// would not be as `dtype`.
    fn dense(&self, dtype: DType) -> Result<Tensor> {
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

    /// As blocks of the kind `to`.
    fn quantised(&self, to: GgmlDType, device: &Device) -> Result<QTensor> {
        let storage = match to {
            GgmlDType::Q8_0 => self.to_blocks::<k_quants::BlockQ8_0>()?,
            GgmlDType::Q5_0 => self.to_blocks::<k_quants::BlockQ5_0>()?,
            GgmlDType::Q4K => self.to_blocks::<k_quants::BlockQ4K>()?,
            other => bail!("weights to blocks {other:?}, expected Q8_0, Q5_0 or Q4K"),
        };
        on(device, QTensor::new(storage, self.shape()?)?)
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
        self.bands(finite::BLOCKS, T::BLCK_SIZE, &mut blocks, T::from_float)?;
        Ok(QStorage::Cpu(Box::new(blocks)))
    }

    /// Fills `out`, of which every element holds `numbers` of the tensor's: band by band, `convert` gets them as f32. An error if one is
    /// not within `range`.
    fn bands<T: Send>(
        &self,
        range: finite::Range,
        numbers: usize,
        out: &mut [T],
        convert: impl Fn(&[f32], &mut [T]) + Sync,
    ) -> Result<()> {
        let band = self.band();
        let bands = out.par_chunks_mut((band / numbers).max(1)).enumerate();
        bands.try_for_each_init(Vec::new, |wide, (i, out)| -> Result<()> {
            wide.clear();
            wide.resize(out.len() * numbers, 0f32);
            self.read(i * band, wide)?;
            range.check(wide)?;
            convert(wide, out);
            Ok(())
        })?;
        self.finish();
        Ok(())
    }
}

/// The tensor on `device`.
pub(super) fn on(device: &Device, tensor: QTensor) -> Result<QTensor> {
    if device.is_cpu() {
        return Ok(tensor);
    }
    let storage = QStorage::from_data(tensor.data()?, device, tensor.dtype())?;
    QTensor::new(storage, tensor.shape())
}

/// `dims` with the first one replaced by the number of `rows`, if they are given; an error if one is asked for that is not there.
pub(super) fn shape_of(dims: &[usize], rows: Option<&[u32]>) -> Result<Vec<usize>> {
    let mut shape = dims.to_vec();
    if let Some(rows) = rows {
        let there = shape.first().copied().unwrap_or(0);
        if let Some(row) = rows.iter().find(|&&row| row as usize >= there) {
            bail!("row {row} of {there}");
        }
        shape[0] = rows.len();
    }
    Ok(shape)
}
