//! Numbers in a mapped file as tensors: converted band by band on several threads, so that memory never holds a tensor twice.

use std::ops::Range;

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

/// With a page that is read the system maps those around it that are in memory as one piece: at most so many bytes.
const AROUND: usize = 2 << 20;

/// `$run` with the type of the blocks that `$format` means.
macro_rules! with_block {
    ($format:expr, $block:ident => $run:expr) => {
        with_block!($format, $block => $run, Q4_0 BlockQ4_0, Q4_1 BlockQ4_1, Q5_0 BlockQ5_0, Q5_1 BlockQ5_1, Q8_0 BlockQ8_0,
            Q2K BlockQ2K, Q3K BlockQ3K, Q4K BlockQ4K, Q5K BlockQ5K, Q6K BlockQ6K)
    };
    ($format:expr, $block:ident => $run:expr, $($name:ident $type:ident),*) => {
        match $format {
            $(GgmlDType::$name => {
                type $block = k_quants::$type;
                $run
            })*
            other => Err(candle_core::Error::msg(format!("weights of type {other:?} are no blocks"))),
        }
    };
}

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
                    blocks.extend_from_slice(as_blocks(&self.map[range.clone()])?);
                    self.give_back(range);
                }
            }
            Some(rows) => {
                let row = self.bytes.len() / self.dims[0].max(1);
                for &from in rows {
                    let start = self.bytes.start + from as usize * row;
                    blocks.extend_from_slice(as_blocks(&self.map[start..start + row])?);
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
    fn give_back_all(&self) {
        let start = self.bytes.start.saturating_sub(AROUND);
        let end = self.bytes.end.saturating_add(AROUND);
        self.give_back(start..end.min(self.map.len()));
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

/// The tensor on `device`.
fn on(device: &Device, tensor: QTensor) -> Result<QTensor> {
    if device.is_cpu() {
        return Ok(tensor);
    }
    let storage = QStorage::from_data(tensor.data()?, device, tensor.dtype())?;
    QTensor::new(storage, tensor.shape())
}

/// The blocks in `bytes`.
fn as_blocks<T: GgmlType>(bytes: &[u8]) -> Result<&[T]> {
    // SAFETY: blocks are plain integers and half floats in C layout, for which any bytes are values.
    let (before, blocks, after) = unsafe { bytes.align_to::<T>() };
    if !before.is_empty() || !after.is_empty() {
        bail!("blocks of {:?} that lie unaligned or are cut", T::DTYPE);
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const DIMS: [usize; 2] = [6, 512];
    const BLOCKS: [GgmlDType; 10] = [
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];

    fn numbers() -> Tensor {
        let values = (0..DIMS[0] * DIMS[1]).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0);
        let tensor = Tensor::from_iter(values, &Device::Cpu).unwrap();
        tensor.reshape(&DIMS).unwrap()
    }

    fn map(bytes: &[u8]) -> Mmap {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        // SAFETY: nothing else has the file.
        unsafe { Mmap::map(&file) }.unwrap()
    }

    fn stored<'a>(map: &'a Mmap, format: GgmlDType, rows: Option<&[u32]>) -> Stored<'a> {
        Stored {
            map,
            bytes: 0..map.len(),
            format,
            dims: &DIMS,
            rows: rows.map(<[u32]>::to_vec),
        }
    }

    fn same(a: &Tensor, b: &Tensor) -> bool {
        let values = |x: &Tensor| {
            let wide = x.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
            (x.dims().to_vec(), wide.to_vec1::<f32>().unwrap())
        };
        values(a) == values(b)
    }

    fn select(x: &Tensor, rows: &[u32]) -> Tensor {
        let rows = Tensor::new(rows, &Device::Cpu).unwrap();
        x.index_select(&rows, 0).unwrap()
    }

    const ORDER: [u32; 4] = [5, 0, 3, 3];

    #[test]
    fn blocks_of_every_kind_are_candles_whole_and_in_another_order() {
        for format in BLOCKS {
            let blocks = QTensor::quantize(&numbers(), format).unwrap();
            let map = map(&blocks.data().unwrap());
            let whole = blocks.dequantize(&Device::Cpu).unwrap();
            for (rows, wanted) in [
                (None, whole.clone()),
                (Some(&ORDER[..]), select(&whole, &ORDER)),
            ] {
                let stored = stored(&map, format, rows);
                assert!(
                    same(&stored.dense(DType::F32).unwrap(), &wanted),
                    "{format:?}"
                );
                let kept = stored.blocks(&Device::Cpu).unwrap();
                assert_eq!(kept.dtype(), format);
                assert!(
                    same(&kept.dequantize(&Device::Cpu).unwrap(), &wanted),
                    "{format:?}"
                );
                // The rows of an embedding, of which others than are there are an error.
                let ids = |ids: &[u32]| Tensor::new(ids, &Device::Cpu).unwrap();
                let last = wanted.dims()[0] as u32 - 1;
                let rows = kept.embedding(&ids(&[last, 1])).unwrap();
                assert!(same(&rows, &select(&wanted, &[last, 1])), "{format:?}");
                assert!(kept.embedding(&ids(&[1, last + 1])).is_err(), "{format:?}");
            }
        }
    }

    #[test]
    fn floats_become_floats_and_blocks_of_every_kind() {
        for (format, dtype) in [
            (GgmlDType::F32, DType::F32),
            (GgmlDType::F16, DType::F16),
            (GgmlDType::BF16, DType::BF16),
        ] {
            let exact = numbers().to_dtype(dtype).unwrap();
            let map = map(&QTensor::quantize(&numbers(), format)
                .unwrap()
                .data()
                .unwrap());
            for (rows, exact) in [
                (None, exact.clone()),
                (Some(&ORDER[..]), select(&exact, &ORDER)),
            ] {
                let stored = stored(&map, format, rows);
                for to in [DType::F32, DType::F16, DType::BF16] {
                    let got = stored.dense(to).unwrap();
                    let wide = exact.to_dtype(DType::F32).unwrap();
                    assert!(
                        same(&got, &wide.to_dtype(to).unwrap()),
                        "{format:?} as {to:?}"
                    );
                }
                for to in [GgmlDType::Q8_0, GgmlDType::Q5_0, GgmlDType::Q4K] {
                    let got = stored.quantised(to, &Device::Cpu).unwrap();
                    let wanted = QTensor::quantize(&exact, to).unwrap();
                    assert_eq!(
                        got.data().unwrap(),
                        wanted.data().unwrap(),
                        "{format:?} as {to:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn tensors_longer_than_a_band_are_whole() {
        let count = 3 * BAND + 77;
        let values = (0..count).map(|i| i as f32).collect::<Vec<_>>();
        let bytes = values
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect::<Vec<_>>();
        // An odd start, as headers of safetensors files may leave it.
        let map = map(&[&[0; 3][..], &bytes].concat());
        let stored = Stored {
            map: &map,
            bytes: 3..map.len(),
            format: GgmlDType::F32,
            dims: &[count],
            rows: None,
        };
        let got = stored.dense(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(got, values);
    }

    #[test]
    fn rows_that_are_not_there_and_numbers_that_are_not_floats_are_errors() {
        let map = map(&[0; 6 * 512 * 4]);
        let beyond = stored(&map, GgmlDType::F32, Some(&[0, 6]));
        for error in [
            beyond.dense(DType::F32).err(),
            beyond.quantised(GgmlDType::Q8_0, &Device::Cpu).err(),
        ] {
            assert!(error.unwrap().to_string().contains("row 6 of 6"));
        }
        let whole = stored(&map, GgmlDType::F32, None);
        assert!(whole.dense(DType::U8).is_err());
        assert!(whole.quantised(GgmlDType::Q2K, &Device::Cpu).is_err());
        assert!(whole.blocks(&Device::Cpu).is_err());
    }
}
