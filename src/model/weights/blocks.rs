//! Numbers in a mapped file as blocks of small integers: those that are stored, or made from floats.

use candle_core::quantized::k_quants::{self, GgmlType};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{bail, Device, Result};

use super::finite;
use super::stored::{Stored, BAND};

/// `$run` with the type of the blocks that `$format` means.
macro_rules! with_block {
    ($format:expr, $block:ident => $run:expr) => {
        with_block!($format, $block => $run, Q4_0 BlockQ4_0, Q4_1 BlockQ4_1, Q5_0 BlockQ5_0, Q5_1 BlockQ5_1, Q8_0 BlockQ8_0,
            Q2K BlockQ2K, Q3K BlockQ3K, Q4K BlockQ4K, Q5K BlockQ5K, Q6K BlockQ6K)
    };
    ($format:expr, $block:ident => $run:expr, $($name:ident $type:ident),*) => {
        match $format {
            $(GgmlDType::$name => {
                type $block = candle_core::quantized::k_quants::$type;
                $run
            })*
            other => Err(candle_core::Error::msg(format!("weights of type {other:?} are no blocks"))),
        }
    };
}
pub(super) use with_block;

impl Stored<'_> {
    /// The stored blocks as they are; an error if a scale is not finite.
    pub fn blocks(&self, device: &Device) -> Result<QTensor> {
        let storage = with_block!(self.format, Block => self.copied::<Block>())?;
        self.give_back_all();
        on(device, QTensor::new(storage, self.shape()?)?)
    }

    fn copied<T: GgmlType + 'static>(&self) -> Result<QStorage> {
        let count = self.shape()?.iter().product::<usize>() / T::BLCK_SIZE;
        let mut blocks = Vec::<T>::with_capacity(count);
        match &self.rows {
            None => {
                let band = BAND / T::BLCK_SIZE * size_of::<T>();
                for start in self.bytes.clone().step_by(band) {
                    let range = start..(start + band).min(self.bytes.end);
                    finite::check_blocks(self.format, &self.map[range.clone()])?;
                    blocks.extend_from_slice(as_blocks(&self.map[range.clone()])?);
                    self.give_back(range);
                }
            }
            Some(rows) => {
                let row = self.bytes.len() / self.dims[0].max(1);
                for &from in rows {
                    let start = self.bytes.start + from as usize * row;
                    let row = &self.map[start..start + row];
                    finite::check_blocks(self.format, row)?;
                    blocks.extend_from_slice(as_blocks(row)?);
                }
            }
        }
        Ok(QStorage::Cpu(Box::new(blocks)))
    }

    /// As blocks of the kind `to`.
    pub fn quantised(&self, to: GgmlDType, device: &Device) -> Result<QTensor> {
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
}

/// The tensor on `device`.
fn on(device: &Device, tensor: QTensor) -> Result<QTensor> {
    if device.is_cpu() {
        return Ok(tensor);
    }
    let storage = QStorage::from_data(tensor.data()?, device, tensor.dtype())?;
    QTensor::new(storage, tensor.shape())
}

/// The blocks in `bytes`.
pub(super) fn as_blocks<T: GgmlType>(bytes: &[u8]) -> Result<&[T]> {
    // SAFETY: blocks are plain integers and half floats in C layout, for which any bytes are values.
    let (before, blocks, after) = unsafe { bytes.align_to::<T>() };
    if !before.is_empty() || !after.is_empty() {
        bail!("blocks of {:?} that lie unaligned or are cut", T::DTYPE);
    }
    Ok(blocks)
}
