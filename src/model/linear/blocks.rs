//! Products with weights as blocks: our own on the CPU, candle's elsewhere and for kinds of blocks that there are none for.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{bail, DType, Device, Error, Result, Tensor};

use super::{values, Linear};
use crate::model::weights::{products, Instructions, Matrix, Panels, Rounded};

/// Rows from which it pays to widen a quantised weight for one product.
pub const WIDENING_ROWS: usize = 16;

/// The product of `x` (`[rows, width]`) with blocks as candle has them.
pub fn in_blocks(x: &Tensor, weight: &QTensor) -> Result<Tensor> {
    if pays_to_widen(weight, x)? {
        let weight = weight.dequantize(x.device())?;
        return x.matmul(&weight.to_dtype(x.dtype())?.t()?);
    }
    if takes_as_it_is(weight, x)? {
        return x.apply_op1_no_bwd(weight);
    }
    let product = x.to_dtype(DType::F32)?.apply_op1_no_bwd(weight)?;
    product.to_dtype(x.dtype())
}

/// The product of `x` (`[rows, width]`) with a weight in panels.
pub fn in_panels(x: &Tensor, weight: &Panels) -> Result<Tensor> {
    let product = all_in_panels(x, &[weight])?.pop();
    product.ok_or_else(|| Error::msg("no product"))
}

/// Whether the product of `weight` with the rows of `x` is faster with the weight as floats for a moment: on the CPU candle multiplies
/// blocks with one row after the other, but for blocks of 256 and Q8_0 in rows of whole 256, for which it has a kernel.
fn pays_to_widen(weight: &QTensor, x: &Tensor) -> Result<bool> {
    let (rows, width) = x.dims2()?;
    let plain = [GgmlDType::Q4_1, GgmlDType::Q5_0, GgmlDType::Q5_1];
    let slow = !width.is_multiple_of(256) || plain.contains(&weight.dtype());
    Ok(x.device().is_cpu() && rows >= WIDENING_ROWS && slow)
}

/// The most rows for which candle's kernels on a GPU take floats of any type.
const ROWS_AS_THEY_ARE: usize = 8;

/// Whether candle multiplies `weight` with `x` without its being f32: on a GPU, a few rows of any float type with the blocks that there are
/// kernels for, which make 8-bit blocks of the rows first and sum in f32 (candle-core 0.11.1, `quantized/fast_mmvq.rs`).
fn takes_as_it_is(weight: &QTensor, x: &Tensor) -> Result<bool> {
    use GgmlDType::{Q2K, Q3K, Q4K, Q4_0, Q4_1, Q5K, Q5_0, Q5_1, Q6K, Q8_0};

    let blocks = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K];
    let floats = [DType::F32, DType::F16, DType::BF16];
    Ok(x.device().is_cuda()
        && (1..=ROWS_AS_THEY_ARE).contains(&x.dim(0)?)
        && x.is_contiguous()
        && blocks.contains(&weight.dtype())
        && floats.contains(&x.dtype()))
}

/// The joint product of quantised layers, where there is one for them: the input is rounded once.
pub fn together<const N: usize>(x: &Tensor, layers: &[&Linear; N]) -> Result<Option<Vec<Tensor>>> {
    let mut blocks = Vec::with_capacity(N);
    let mut panels = Vec::with_capacity(N);
    for layer in layers {
        match &layer.weight {
            Matrix::Quantised(weight) if N > 1 => blocks.push(weight.as_ref()),
            Matrix::Panels(weight) => panels.push(weight.as_ref()),
            _ => return Ok(None),
        }
    }
    match (panels.len(), blocks.len()) {
        (0, _) => QTensor::gemv_fused_shared_lhs(&blocks, x),
        (_, 0) => Ok(Some(all_in_panels(x, &panels)?)),
        _ => Ok(None),
    }
}

/// The products of `x` (`[rows, width]`) with weights in panels, of its type.
fn all_in_panels(x: &Tensor, weights: &[&Panels]) -> Result<Vec<Tensor>> {
    let (rows, width) = x.dims2()?;
    for weight in weights {
        let (outputs, inputs) = weight.dims2();
        if inputs != width {
            bail!("rows of {width} numbers times a matrix of [{outputs}, {inputs}], expected {inputs}");
        }
    }
    if rows == 0 {
        let empty = |weight: &&Panels| Tensor::zeros((0, weight.dims2().0), x.dtype(), x.device());
        return weights.iter().map(empty).collect();
    }
    let input = x.to_dtype(DType::F32)?.contiguous()?;
    let input = input.storage_and_layout();
    let input = &values(&input.0, input.1.start_offset())?[..rows * width];
    let products = products(&Rounded::new(input, width), weights, Instructions::best());
    let tensors = weights.iter().zip(products).map(|(weight, product)| {
        let product = Tensor::from_vec(product, (rows, weight.dims2().0), &Device::Cpu)?;
        product.to_dtype(x.dtype())
    });
    tensors.collect()
}
