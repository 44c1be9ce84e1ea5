//! Linear layers, with products of their own on the CPU.
//!
//! Decoding multiplies every weight with one row, so its time is that of reading the weights. candle's product reads them with
//! one thread when there is one row; here several threads do, with one hand-over for all layers that take the same input. Of many rows
//! the product is the one that candle uses, without its asking the system how many cores there are.
//!
//! - `blocks`: products with weights as blocks

mod blocks;

use std::sync::Arc;

use candle_core::{bail, CpuStorage, DType, Device, Error, Result, Storage, Tensor};
use candle_nn::Module;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::weights::{Matrix, Weights};
use crate::gpu::Gpu;
use crate::simd::{self, dot_products, many_products};

/// The most rows that the own product takes. `examples/decode_speed.rs` times both: for 576 -> 1536 the one of gemm, which is candle's, is
/// faster from 32 rows on with one thread and from 48 on with two.
const MAX_ROWS: usize = 24;

/// Rows that are multiplied while a weight is in a register; of more rows, each so many read the weights again.
const GROUP: usize = simd::MAX_ROWS;

/// Weights that are read faster than a second thread wakes up, bytes.
const SMALL_BYTES: usize = 64 << 10;

/// Parts per thread, so that a thread which starts late or is held up leaves some of its share to the others.
const PARTS: usize = 2;

/// `y = x W^T + b` with `W` of `[out, in]` and `b`, if there is one, of `[out]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    /// `weight` is `[out, in]`; there is no bias.
    pub fn new(weight: Tensor) -> Self {
        Self::of(Matrix::Dense(weight), None)
    }

    /// `weight` is `[out, in]`, `bias` is `[out]`.
    pub fn of(weight: Matrix, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Takes the tensor `weight` of `weights`, `[outputs, inputs]`.
    pub fn load(inputs: usize, outputs: usize, weights: &Weights) -> Result<Self> {
        Self::load_with(inputs, outputs, false, weights)
    }

    /// As [`Self::load`], and the tensor `bias`, `[outputs]`, if `bias`.
    pub fn load_with(inputs: usize, outputs: usize, bias: bool, weights: &Weights) -> Result<Self> {
        let bias = match bias {
            true => Some(weights.get(outputs, "bias")?),
            false => None,
        };
        Ok(Self::of(
            weights.matrix((outputs, inputs), "weight", None)?,
            bias,
        ))
    }

    /// `[out, in]`
    pub fn weight(&self) -> &Matrix {
        &self.weight
    }

    /// `[out]`
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The same as a GPU's kernels take it, see [`Matrix::for_kernels`].
    pub fn for_kernels(&self, gpu: &Arc<dyn Gpu>) -> Result<Self> {
        Ok(Self::of(self.weight.for_kernels(gpu)?, self.bias.clone()))
    }

    /// The same as the CPU's own products take it, see [`Matrix::for_cpu`].
    pub fn for_cpu(&self) -> Result<Self> {
        Ok(Self::of(self.weight.for_cpu()?, self.bias.clone()))
    }

    /// `[rows, out]` without the bias, for any kind of weight and number of rows.
    fn product(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Matrix::Dense(weight) => x.matmul(&weight.t()?),
            Matrix::Panels(weight) => blocks::in_panels(x, weight),
            Matrix::Planes(weight) => weight.product(x),
            Matrix::Quantised(weight) => blocks::in_blocks(x, weight),
        }
    }

    fn add_bias(&self, product: Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

impl Module for Linear {
    /// `x` is `[rows, in]`; returns `[rows, out]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [out] = forward_all(x, &[self])?;
        Ok(out)
    }
}

/// Several layers on the same input: `x` is `[rows, in]`; returns `[rows, out]` for each.
pub fn forward_all<const N: usize>(x: &Tensor, layers: &[&Linear; N]) -> Result<[Tensor; N]> {
    let products = match on_cpu(x, layers)? {
        Some(outs) => outs.to_vec(),
        None => match blocks::together(x, layers)? {
            Some(outs) => outs,
            None => layers
                .iter()
                .map(|layer| layer.product(x))
                .collect::<Result<_>>()?,
        },
    };
    let outs = layers
        .iter()
        .zip(products)
        .map(|(layer, product)| layer.add_bias(product))
        .collect::<Result<Vec<_>>>()?;
    outs.try_into()
        .map_err(|_| Error::msg("one output per layer"))
}

/// The product of f32 on the CPU, or nothing where candle's is the one to use: another type, another device.
/// (A GPU runs these products in one launch each; what is gained here is threads, so there is nothing to add there.)
fn on_cpu<const N: usize>(x: &Tensor, layers: &[&Linear; N]) -> Result<Option<[Tensor; N]>> {
    let (rows, width) = x.dims2()?;
    let fits = |t: &Tensor| t.device().is_cpu() && t.dtype() == DType::F32 && t.is_contiguous();
    if rows == 0 || !fits(x) {
        return Ok(None);
    }
    let mut dense = Vec::with_capacity(N);
    for layer in layers {
        match &layer.weight {
            Matrix::Dense(weight) if fits(weight) => dense.push(weight),
            _ => return Ok(None),
        }
    }
    let mut outs = Vec::with_capacity(N);
    for weight in &dense {
        let (outputs, inputs) = weight.dims2()?;
        if inputs != width || inputs == 0 || outputs == 0 {
            // candle's error names both shapes; nothing times nothing is its business too.
            return Ok(None);
        }
        outs.push(vec![0.0f32; rows * outputs]);
    }
    let input = x.storage_and_layout();
    let weights = dense
        .iter()
        .map(|weight| weight.storage_and_layout())
        .collect::<Vec<_>>();
    let views = weights
        .iter()
        .map(|(storage, layout)| values(storage, layout.start_offset()))
        .collect::<Result<Vec<_>>>()?;
    let x = &values(&input.0, input.1.start_offset())?[..rows * width];
    if rows > MAX_ROWS {
        for (weight, out) in views.iter().zip(&mut outs) {
            let outputs = out.len() / rows;
            many_products(x, &weight[..outputs * width], width, out);
        }
    } else {
        for (group, x) in x.chunks(GROUP * width).enumerate() {
            let outs = outs.iter_mut().map(|out| {
                let outputs = out.len() / rows;
                &mut out[group * GROUP * outputs..][..x.len() / width * outputs]
            });
            multiply(x, width, &views, outs.collect());
        }
    }
    let mut tensors = Vec::with_capacity(N);
    for out in outs {
        let outputs = out.len() / rows;
        tensors.push(Tensor::from_vec(out, (rows, outputs), &Device::Cpu)?);
    }
    Ok(tensors.try_into().ok())
}

/// What a contiguous tensor on the CPU holds, from `start` on.
fn values(storage: &Storage, start: usize) -> Result<&[f32]> {
    match storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(&values[start..]),
        _ => bail!("a product on the CPU of weights that are not f32 on the CPU"),
    }
}

/// At most [`GROUP`] rows: `outs[i]` (`[rows, outputs]`) = `x` (`[rows, width]`) times the transpose of `weights[i]`
/// (`[outputs, width]`, and what follows in its storage).
///
/// The threads share the outputs; a sum is never split, so the result does not depend on their number.
fn multiply(x: &[f32], width: usize, weights: &[&[f32]], outs: Vec<&mut [f32]>) {
    let rows = x.len() / width;
    let elements: usize = outs.iter().map(|out| out.len() / rows * width).sum();
    let threads = rayon::current_num_threads();
    let parts = if threads == 1 || elements * size_of::<f32>() < SMALL_BYTES {
        1
    } else {
        threads * PARTS
    };
    let arch = Arch::new();
    let share = elements.div_ceil(parts).div_ceil(width);
    let mut tasks = Vec::new();
    for (weight, out) in weights.iter().zip(outs) {
        let outputs = out.len() / rows;
        let mut strips = out
            .chunks_mut(outputs)
            .map(|row| row.chunks_mut(share))
            .collect::<Vec<_>>();
        for weight in weight[..outputs * width].chunks(share * width) {
            tasks.push(Strip {
                x,
                weight,
                outs: strips.iter_mut().filter_map(Iterator::next).collect(),
            });
        }
    }
    if parts == 1 {
        tasks.into_iter().for_each(|task| arch.dispatch(task));
    } else {
        tasks
            .into_par_iter()
            .with_max_len(1)
            .for_each(|task| arch.dispatch(task));
    }
}

/// Some of the outputs of a product, with the widest instructions that this machine has.
struct Strip<'a> {
    /// `[rows, width]`
    x: &'a [f32],
    /// `[outputs of this strip, width]`
    weight: &'a [f32],
    /// For each row of `x`, these outputs.
    outs: Vec<&'a mut [f32]>,
}

impl WithSimd for Strip<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            x,
            weight,
            mut outs,
        } = self;
        let width = x.len() / outs.len();
        dot_products(simd, x, weight, width, &mut outs);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use rayon::ThreadPoolBuilder;

    use super::blocks::WIDENING_ROWS;
    use super::*;

    fn random(rows: usize, width: usize, salt: usize) -> Tensor {
        let values = (0..rows * width).map(|i| {
            let mixed = (i + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            mixed as f32 / (1 << 23) as f32 - 1.0
        });
        let values = values.collect::<Vec<_>>();
        Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
    }

    fn dense(layer: &Linear) -> &Tensor {
        match &layer.weight {
            Matrix::Dense(weight) => weight,
            _ => panic!("a dense layer is quantised"),
        }
    }

    fn in_pool<R: Send>(threads: usize, run: impl FnOnce() -> R + Send) -> R {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(run)
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// Largest difference to candle's product, relative to what the sum of magnitudes allows.
    fn deviation(x: &Tensor, weight: &Tensor, got: &Tensor) -> f32 {
        let wanted = x.matmul(&weight.t().unwrap()).unwrap();
        let scale = x
            .abs()
            .unwrap()
            .matmul(&weight.abs().unwrap().t().unwrap())
            .unwrap();
        let off = (got - wanted).unwrap().abs().unwrap();
        let relative = (off / scale).unwrap().max_all().unwrap();
        relative.to_scalar::<f32>().unwrap()
    }

    #[test]
    fn the_product_is_candles_for_odd_shapes_and_the_same_for_any_number_of_threads() {
        for rows in (1..=9).chain([MAX_ROWS, MAX_ROWS + 1, 171]) {
            for width in [1, 7, 576, 1536, 577] {
                let x = random(rows, width, 1);
                let layers = [31, 576, 130].map(|out| Linear::new(random(out, width, out)));
                let run = || forward_all(&x, &layers.each_ref()).unwrap();
                let one = in_pool(1, run);
                for (layer, got) in layers.iter().zip(&one) {
                    let off = deviation(&x, dense(layer), got);
                    assert!(off < 1e-5, "{rows} rows of {width}: off by {off}");
                    assert_eq!(bits(&layer.forward(&x).unwrap()), bits(got));
                }
                for threads in [2, 3] {
                    for (one, several) in one.iter().zip(&in_pool(threads, run)) {
                        assert_eq!(bits(one), bits(several), "{rows} rows of {width}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_part_of_a_tensor_is_read_where_it_lies() {
        let (x, weight) = (random(4, 40, 1), random(70, 40, 2));
        let part = Linear::new(weight.narrow(0, 3, 60).unwrap());
        let row = x.narrow(0, 2, 1).unwrap();
        let got = part.forward(&row).unwrap();
        assert!(deviation(&row, dense(&part), &got) < 1e-6);
        // A transposed view has no rows to read.
        let across = Linear::new(random(40, 70, 3).t().unwrap());
        let got = across.forward(&row).unwrap();
        assert!(deviation(&row, &dense(&across).contiguous().unwrap(), &got) < 1e-6);
    }

    #[test]
    fn products_with_blocks_are_those_of_the_widened_weight_for_few_rows_and_many() {
        for (blocks, width) in [(GgmlDType::Q4_1, 96), (GgmlDType::Q8_0, 256)] {
            let weight = QTensor::quantize(&random(40, width, 1), blocks).unwrap();
            let wide = weight.dequantize(&Device::Cpu).unwrap();
            let layer = Linear::of(Matrix::Quantised(std::sync::Arc::new(weight)), None);
            for rows in [1, WIDENING_ROWS - 1, WIDENING_ROWS, 40] {
                let x = random(rows, width, 2);
                let off = deviation(&x, &wide, &layer.forward(&x).unwrap());
                assert!(off < 5e-3, "{blocks:?}, {rows} rows: off by {off}");
            }
        }
    }

    #[test]
    fn sums_of_f16_are_whole() {
        const WIDTH: usize = 8192;
        let ones = |rows| Tensor::ones((rows, WIDTH), DType::F16, &Device::Cpu).unwrap();
        let layer = Linear::new(ones(3));
        for rows in [1, 2, 5, 40] {
            let sums = layer.forward(&ones(rows)).unwrap();
            let sums = sums.flatten_all().unwrap().to_vec1::<half::f16>().unwrap();
            assert!(
                sums.iter().all(|sum| sum.to_f32() == WIDTH as f32),
                "{rows} rows"
            );
        }
    }

    #[test]
    fn shapes_and_types_that_do_not_fit_are_errors_or_candles() {
        let layer = Linear::new(random(5, 8, 1));
        let error = layer.forward(&random(1, 7, 1)).unwrap_err().to_string();
        assert!(error.contains("shape mismatch"), "{error}");
        let none = layer.forward(&random(0, 8, 1)).unwrap();
        assert_eq!(none.dims(), [0, 5]);
        assert_eq!(
            Linear::new(random(5, 0, 1))
                .forward(&random(2, 0, 1))
                .unwrap()
                .dims(),
            [2, 5]
        );
        let wide = Linear::new(random(5, 8, 1).to_dtype(DType::F64).unwrap());
        let x = random(1, 8, 1).to_dtype(DType::F64).unwrap();
        assert_eq!(wide.forward(&x).unwrap().dtype(), DType::F64);
    }
}
