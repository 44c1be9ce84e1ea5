//! Blocks of small integers that are stored in a mapped file.

use candle_core::quantized::k_quants::GgmlType;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{bail, Device, Result};

use super::bands::{on, Bands, BAND};
use super::finite;
use super::stored::Stored;

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

/// The bytes of `blocks`, to be filled with blocks.
pub(super) fn as_bytes<T: GgmlType>(blocks: &mut [T]) -> &mut [u8] {
    // SAFETY: blocks are plain integers and half floats in C layout without padding, for which any bytes are values.
    unsafe { blocks.align_to_mut().1 }
}
