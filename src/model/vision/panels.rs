//! Matrices as the CPU multiplies many rows with them: the weights of 64 outputs side by side, of 16 bits, or as 8-bit integers with a scale
//! for every 32, where they are stored so.
//!
//! A band of rows meets 128 inputs of a panel at a time, which are widened to f32 once for it and stay in a core's nearest cache. Sums are in
//! f32 and in the order of the inputs, whatever the number of rows and threads.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{bail, DType, Device, Result, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::model::activation::Activation;
use crate::simd::tiles::{matmul, COLUMNS};

/// Outputs that lie side by side; the last panel has fewer, filled up to whole tiles.
const WIDTH: usize = 64;

/// Inputs that are widened together.
const DEPTH: usize = 128;

/// Rows that are multiplied with what was widened.
const BAND: usize = 256;

/// `[panels][inputs][width]`
#[derive(Debug, Clone)]
enum Numbers {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    Q8 {
        integers: Vec<i8>,
        /// `[panels][inputs / BLOCK][width]`
        scales: Vec<f16>,
    },
}

/// Inputs that have a scale in common.
const BLOCK: usize = 32;
const _: () = assert!(DEPTH.is_multiple_of(BLOCK));

/// A matrix `[outputs, inputs]`.
#[derive(Debug, Clone)]
pub struct Panels {
    numbers: Numbers,
    outputs: usize,
    inputs: usize,
}

/// What becomes of a product.
#[derive(Debug, Clone, Copy, Default)]
pub struct Then<'a> {
    /// Added to every row, `[outputs]`.
    pub bias: Option<&'a [f32]>,
    pub activation: Option<Activation>,
    /// Added at last, `[rows, outputs]`.
    pub past: Option<&'a [f32]>,
}

/// The width of the panel whose first output is `from`.
fn width_of(outputs: usize, from: usize) -> usize {
    (outputs - from).min(WIDTH).next_multiple_of(COLUMNS)
}

impl Panels {
    /// `weight` is `[outputs, inputs]`, of floats.
    pub fn of(weight: &Tensor) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let flat = weight.to_device(&Device::Cpu)?.flatten_all()?;
        let numbers = match flat.dtype() {
            DType::F32 => Numbers::F32(packed(&flat.to_vec1()?, outputs, inputs)),
            DType::F16 => Numbers::F16(packed(&flat.to_vec1()?, outputs, inputs)),
            DType::BF16 => Numbers::BF16(packed(&flat.to_vec1()?, outputs, inputs)),
            other => bail!("panels of {other:?}, expected f32, f16 or bf16"),
        };
        Ok(Self {
            numbers,
            outputs,
            inputs,
        })
    }

    /// `weight` is `[outputs, inputs]`, of the blocks Q8_0: a scale as f16, then 32 integers.
    pub fn of_blocks(weight: &QTensor) -> Result<Self> {
        let (outputs, inputs) = weight.shape().dims2()?;
        if weight.dtype() != GgmlDType::Q8_0 {
            bail!("panels of blocks {:?}, expected Q8_0", weight.dtype());
        }
        let bytes = weight.data()?;
        let (blocks, _) = bytes.as_chunks::<{ 2 + BLOCK }>();
        let scales = blocks
            .iter()
            .map(|&[low, high, ..]| f16::from_le_bytes([low, high]));
        let integers = blocks.iter().flat_map(|block| &block[2..]);
        let integers = integers.map(|&byte| byte as i8).collect::<Vec<_>>();
        let scales = scales.collect::<Vec<_>>();
        Ok(Self {
            numbers: Numbers::Q8 {
                integers: packed(&integers, outputs, inputs),
                scales: packed(&scales, outputs, inputs / BLOCK),
            },
            outputs,
            inputs,
        })
    }

    /// `[outputs, inputs]`
    pub fn dims2(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }

    /// The product of the rows `x` (`[rows, inputs]`) with the transposed matrix, and what becomes of it: `[rows, outputs]`.
    pub fn product(&self, x: &[f32], then: Then) -> Vec<f32> {
        let rows = x.len().checked_div(self.inputs).unwrap_or(0);
        assert!(x.len() == rows * self.inputs, "rows of another length");
        let mut out = vec![0.0; rows * self.outputs];
        if out.is_empty() {
            return out;
        }
        let mut tasks = Vec::new();
        for (band, out) in out.chunks_mut(BAND * self.outputs).enumerate() {
            let mut rows = out
                .chunks_exact_mut(self.outputs)
                .map(|row| row.chunks_mut(WIDTH))
                .collect::<Vec<_>>();
            for from in (0..self.outputs).step_by(WIDTH) {
                tasks.push(Task {
                    panels: self,
                    x: &x[band * BAND * self.inputs..][..rows.len() * self.inputs],
                    first: band * BAND,
                    from,
                    then,
                    outs: rows.iter_mut().filter_map(Iterator::next).collect(),
                });
            }
        }
        tasks
            .into_par_iter()
            .with_max_len(1)
            .for_each(|task| Arch::new().dispatch(task));
        out
    }
}

fn packed<T: Copy + Default>(weight: &[T], outputs: usize, inputs: usize) -> Vec<T> {
    let mut numbers = vec![T::default(); outputs.next_multiple_of(COLUMNS) * inputs];
    for from in (0..outputs).step_by(WIDTH) {
        let width = width_of(outputs, from);
        let panel = &mut numbers[from * inputs..][..width * inputs];
        let rows = weight[from * inputs..].chunks_exact(inputs.max(1));
        for (column, row) in rows.take(WIDTH).enumerate() {
            for (numbers, &number) in panel.chunks_exact_mut(width).zip(row) {
                numbers[column] = number;
            }
        }
    }
    numbers
}

/// Integers (`[inputs, width]`) times their scales (`[inputs / BLOCK, width]`).
#[inline(always)]
fn widen(integers: &[i8], scales: &[f16], width: usize, wide: &mut [f32]) {
    let mut factors = [0.0; WIDTH];
    let factors = &mut factors[..width];
    let blocks = integers.chunks_exact(BLOCK * width);
    let blocks = blocks.zip(wide.chunks_exact_mut(BLOCK * width));
    for ((integers, wide), scales) in blocks.zip(scales.chunks_exact(width)) {
        scales.convert_to_f32_slice(factors);
        let rows = integers
            .chunks_exact(width)
            .zip(wide.chunks_exact_mut(width));
        for (integers, wide) in rows {
            for ((wide, &integer), factor) in wide.iter_mut().zip(integers).zip(&*factors) {
                *wide = f32::from(integer) * factor;
            }
        }
    }
}

/// A band of rows times a panel.
struct Task<'a, 'b> {
    panels: &'a Panels,
    /// `[rows of the band, inputs]`
    x: &'a [f32],
    /// The first row of the band.
    first: usize,
    /// The first output of the panel.
    from: usize,
    then: Then<'a>,
    /// For each row, the panel's outputs.
    outs: Vec<&'b mut [f32]>,
}

impl WithSimd for Task<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (inputs, width) = (self.panels.inputs, width_of(self.panels.outputs, self.from));
        let numbers = self.from * inputs..(self.from + width) * inputs;
        let mut sums = vec![0.0; self.outs.len() * width];
        let mut wide = vec![0.0; DEPTH.min(inputs) * width];
        for at in (0..inputs).step_by(DEPTH) {
            let depth = DEPTH.min(inputs - at);
            let part = numbers.start + at * width..numbers.start + (at + depth) * width;
            let wide = &mut wide[..depth * width];
            let block = match &self.panels.numbers {
                Numbers::F32(numbers) => &numbers[part],
                Numbers::F16(numbers) => {
                    numbers[part].convert_to_f32_slice(wide);
                    wide
                }
                Numbers::BF16(numbers) => {
                    numbers[part].convert_to_f32_slice(wide);
                    wide
                }
                Numbers::Q8 { integers, scales } => {
                    let scales = &scales[part.start / BLOCK..part.end / BLOCK];
                    widen(&integers[part], scales, width, wide);
                    wide
                }
            };
            let x = (&self.x[at..], inputs, depth);
            matmul(simd, x, block, width, &mut sums, at > 0);
        }
        self.write(&mut sums, width);
    }
}

impl Task<'_, '_> {
    /// `sums` is `[rows of the band, width]`.
    #[inline(always)]
    fn write(self, sums: &mut [f32], width: usize) {
        let Then {
            bias,
            activation,
            past,
        } = self.then;
        let outputs = self.panels.outputs;
        let bias = bias.map(|bias| &bias[self.from..]);
        for (r, (sums, out)) in sums.chunks_exact_mut(width).zip(self.outs).enumerate() {
            let sums = &mut sums[..out.len()];
            if let Some(bias) = bias {
                for (sum, bias) in sums.iter_mut().zip(bias) {
                    *sum += bias;
                }
            }
            if let Some(activation) = activation {
                activation.apply(sums);
            }
            match past {
                Some(past) => {
                    let past = &past[(self.first + r) * outputs + self.from..];
                    for ((out, sum), past) in out.iter_mut().zip(sums).zip(past) {
                        *out = *sum + past;
                    }
                }
                None => out.copy_from_slice(sums),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rayon::ThreadPoolBuilder;

    use super::*;

    fn in_pool<R: Send>(threads: usize, run: impl FnOnce() -> R + Send) -> R {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(run)
    }

    #[test]
    fn products_are_those_of_the_widened_matrix_for_any_shape_type_and_number_of_threads(
    ) -> Result<()> {
        for (rows, inputs, outputs) in [(1, 1, 1), (5, 129, 70), (300, 48, 33), (257, 300, 128)] {
            let random = |shape| Tensor::randn(0f32, 1., shape, &Device::Cpu);
            let (x, past) = (random((rows, inputs))?, random((rows, outputs))?);
            let bias = Tensor::randn(0f32, 1., outputs, &Device::Cpu)?;
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let weight = random((outputs, inputs))?.to_dtype(dtype)?;
                let panels = Panels::of(&weight)?;
                let plain = x.matmul(&weight.to_dtype(DType::F32)?.t()?)?;
                let flat = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
                let (bias, past, x) = (flat(&bias)?, flat(&past)?, flat(&x)?);
                let then = Then {
                    bias: Some(&bias),
                    activation: None,
                    past: Some(&past),
                };
                let got = in_pool(1, || panels.product(&x, then));
                let bare = panels.product(&x, Then::default());
                for (i, want) in flat(&plain)?.into_iter().enumerate() {
                    let off = (bare[i] - want).abs();
                    assert!(
                        off < 1e-4,
                        "{dtype:?} {rows} {inputs} {outputs}: off by {off:e}"
                    );
                    assert_eq!(got[i], bare[i] + bias[i % outputs] + past[i]);
                }
                assert_eq!(in_pool(3, || panels.product(&x, then)), got);
            }
        }
        Ok(())
    }

    #[test]
    fn products_with_8_bit_integers_are_those_with_the_floats_that_they_stand_for() -> Result<()> {
        for (rows, inputs, outputs) in [(1, 32, 1), (5, 160, 70), (300, 256, 33)] {
            let random = |shape| Tensor::randn(0f32, 1., shape, &Device::Cpu);
            let blocks = QTensor::quantize(&random((outputs, inputs))?, GgmlDType::Q8_0)?;
            let floats = Panels::of(&blocks.dequantize(&Device::Cpu)?)?;
            let x = random((rows, inputs))?.flatten_all()?.to_vec1::<f32>()?;
            let got = Panels::of_blocks(&blocks)?.product(&x, Then::default());
            assert_eq!(got, floats.product(&x, Then::default()));
        }
        let other = Tensor::zeros((3, 32), DType::F32, &Device::Cpu)?;
        let other = QTensor::quantize(&other, GgmlDType::Q4_0)?;
        assert!(Panels::of_blocks(&other).is_err());
        Ok(())
    }

    #[test]
    fn nothing_times_nothing_is_nothing() -> Result<()> {
        let panels = Panels::of(&Tensor::zeros((3, 4), DType::F16, &Device::Cpu)?)?;
        assert!(panels.product(&[], Then::default()).is_empty());
        assert!(Panels::of(&Tensor::zeros((3, 4), DType::U8, &Device::Cpu)?).is_err());
        Ok(())
    }
}
