//! Integers as the blocks that hold the same numbers, so that a matrix takes hardly more memory than in its file.
//!
//! A block's scale is f16, as that of AWQ and GPTQ is; one that is not loses what f16 does not hold. With a zero for each group a block
//! holds `minimum = -zero * scale` as f16, which is off by at most `zero / 2048` of the distance of two integers.

use candle_core::quantized::k_quants::{BlockQ4_0, BlockQ4_1, BlockQ8_0, GgmlType};
use candle_core::quantized::{GgmlDType, QStorage};
use candle_core::{bail, Result};
use half::f16;
use rayon::prelude::*;

use super::integers::BLOCK;
use super::{unpack, Bands, Opened};
use crate::model::weights::blocks::as_bytes;

/// The blocks of the matrix.
pub fn blocks(matrix: &Opened, integers: &unpack::Opened) -> Result<QStorage> {
    match integers.integers.blocks() {
        Some(GgmlDType::Q4_0) => {
            expect_middle(integers, 8)?;
            repacked::<BlockQ4_0>(matrix, integers, |q, scale, _, out| {
                out[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                nibbles(q, &mut out[2..]);
            })
        }
        Some(GgmlDType::Q4_1) => repacked::<BlockQ4_1>(matrix, integers, |q, scale, zero, out| {
            let minimum = -scale * f32::from(zero);
            out[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            out[2..4].copy_from_slice(&f16::from_f32(minimum).to_le_bytes());
            nibbles(q, &mut out[4..]);
        }),
        Some(GgmlDType::Q8_0) => {
            expect_middle(integers, 128)?;
            repacked::<BlockQ8_0>(matrix, integers, |q, scale, _, out| {
                out[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                for (out, q) in out[2..].iter_mut().zip(q) {
                    *out = q ^ 0x80;
                }
            })
        }
        _ => bail!("integers for which there are no blocks"),
    }
}

/// Two integers a byte: the first half of the block in the low bits.
fn nibbles(q: &[u8], out: &mut [u8]) {
    let (low, high) = q.split_at(BLOCK / 2);
    for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
        *out = low | high << 4;
    }
}

/// Fails if a zero is elsewhere than the configuration says.
fn expect_middle(integers: &unpack::Opened, middle: u8) -> Result<()> {
    match integers.zeros.iter().find(|&&zero| zero != middle) {
        Some(zero) => bail!(
            "a zero of its groups is {zero}, but quantization_config says that they are symmetric, where it is {middle}; expected \
             quantization none, which takes them as they are"
        ),
        None => Ok(()),
    }
}

/// `write` gets the integers of a block with their scale and zero.
fn repacked<T: GgmlType + 'static>(
    matrix: &Opened,
    integers: &unpack::Opened,
    write: impl Fn(&[u8], f32, u8, &mut [u8]) + Sync,
) -> Result<QStorage> {
    if integers.indices.is_some() {
        bail!(
            "its columns are in an order of their own, which quantization_config does not say; expected quantization none, which takes \
             them as they are"
        );
    }
    let most = integers
        .scales
        .iter()
        .fold(0f32, |most, scale| most.max(scale.abs()));
    let zero = integers.zeros.iter().copied().max().unwrap_or(0).max(1);
    if !f16::from_f32(most * f32::from(zero)).is_finite() {
        bail!("a scale is {most}, which blocks cannot hold; expected quantization none");
    }
    let width = matrix.width();
    let rows = matrix.shape()?[0];
    let across = width / BLOCK;
    let mut blocks = vec![T::zeros(); rows * across];
    let at_once = matrix.rows_at_once();
    let bands = blocks.par_chunks_mut(at_once * across).enumerate();
    bands.for_each_init(Vec::new, |q, (band, blocks)| {
        let runs = matrix.runs(band * at_once, blocks.len() / across);
        let mut blocks = blocks.chunks_mut(across);
        for run in runs {
            q.clear();
            q.resize(run.len() * width, 0u8);
            integers.unpack(run.clone(), q);
            for ((row, q), blocks) in run.zip(q.chunks(width)).zip(&mut blocks) {
                let bytes = as_bytes(blocks).chunks_mut(size_of::<T>());
                for (at, (q, out)) in q.chunks(BLOCK).zip(bytes).enumerate() {
                    let (scale, zero) = integers.of_block(row, at * BLOCK);
                    write(q, scale, zero, out);
                }
            }
        }
    });
    matrix.finish();
    Ok(QStorage::Cpu(Box::new(blocks)))
}
