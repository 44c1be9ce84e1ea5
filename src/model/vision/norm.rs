//! The norms of rows. That by mean and variance is our own on the CPU: candle's sums one number after the other.

use candle_core::{bail, CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use candle_nn::{rms_norm, Module, RmsNorm};
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use crate::model::weights::Weights;

/// The norm of a row by its mean and variance.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    norm: candle_nn::LayerNorm,
    epsilon: f64,
}

/// Takes `weight` and `bias`, `[width]`.
pub fn layer_norm(width: usize, epsilon: f64, w: &Weights) -> Result<LayerNorm> {
    let norm = candle_nn::layer_norm(width, epsilon, w.var_builder())?;
    Ok(LayerNorm { norm, epsilon })
}

impl Module for LayerNorm {
    /// `[.., width]`, each row for itself. On the CPU with vector instructions, in the threads of the pool that it is called in.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let plain =
            |x: &Tensor| x.device().is_cpu() && x.dtype() == DType::F32 && x.is_contiguous();
        let weight = self.norm.weight();
        match self.norm.bias() {
            Some(bias) if plain(x) && plain(weight) && plain(bias) => {
                x.apply_op3_no_bwd(weight, bias, &OfRows(self.epsilon as f32))
            }
            _ => self.norm.forward(x),
        }
    }
}

/// A norm of either kind.
#[derive(Debug, Clone)]
pub enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
}

impl Norm {
    pub fn layer(width: usize, epsilon: f64, w: &Weights) -> Result<Self> {
        Ok(Self::Layer(layer_norm(width, epsilon, w)?))
    }

    pub fn rms(width: usize, epsilon: f64, w: &Weights) -> Result<Self> {
        Ok(Self::Rms(rms_norm(width, epsilon, w.var_builder())?))
    }
}

impl Module for Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }
}

/// With this epsilon; inputs are the rows, `[.., width]`, weight and bias, `[width]`.
struct OfRows(f32);

impl CustomOp3 for OfRows {
    fn name(&self) -> &'static str {
        "norm-of-rows"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = whole(x, x_layout)?;
        let (weight, bias) = (whole(weight, weight_layout)?, whole(bias, bias_layout)?);
        let width = weight.len();
        let last = x_layout.dims().last().copied();
        if width == 0 || bias.len() != width || last != Some(width) {
            bail!("a norm of {width} numbers of {:?}", x_layout.dims());
        }
        let mut out = vec![0.0f32; x.len()];
        let rows = out.par_chunks_mut(width).zip(x.par_chunks(width));
        rows.with_min_len(16).for_each(|(out, x)| {
            Arch::new().dispatch(Row {
                x,
                weight,
                bias,
                epsilon: self.0,
                out,
            });
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

fn whole<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("a norm of a tensor that is not contiguous"),
    }
}

struct Row<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl NullaryFnOnce for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self {
            x,
            weight,
            bias,
            epsilon,
            out,
        } = self;
        let width = x.len() as f32;
        let mean = sum_of(x, |x| x) / width;
        let variance = sum_of(x, |x| (x - mean) * (x - mean)) / width;
        let scale = 1.0 / (variance + epsilon).sqrt();
        for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = (x - mean) * scale * weight + bias;
        }
    }
}

/// The sum of what `of` makes of each number; the order of the additions depends on their count alone.
#[inline(always)]
fn sum_of(x: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (lanes, rest) = x.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for lane in lanes {
        for i in 0..16 {
            sums[i] += of(lane[i]);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|&x| of(x)).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn rows_of_any_width_have_the_norm_of_exact_sums() -> Result<()> {
        const EPSILON: f64 = 1e-5;
        for width in [1, 7, 16, 768, 1155] {
            let random = |shape| Tensor::randn(3f32, 2., shape, &Device::Cpu);
            let x = random(vec![2, 19, width])?;
            let (weight, bias) = (random(vec![width])?, random(vec![width])?);
            let norm = LayerNorm {
                norm: candle_nn::LayerNorm::new(weight.clone(), bias.clone(), EPSILON),
                epsilon: EPSILON,
            };
            let got = norm.forward(&x)?;
            assert_eq!(got.dims(), x.dims());
            let wide = |x: &Tensor| x.to_dtype(DType::F64);
            let x = wide(&x)?;
            let centred = x.broadcast_sub(&x.mean_keepdim(2)?)?;
            let deviation = (centred.sqr()?.mean_keepdim(2)? + EPSILON)?.sqrt()?;
            let normed = centred.broadcast_div(&deviation)?;
            let want = normed.broadcast_mul(&wide(&weight)?)?;
            let want = want.broadcast_add(&wide(&bias)?)?;
            let off = (wide(&got)? - want)?.abs()?.max_all()?;
            let off = off.to_scalar::<f64>()?;
            assert!(off < 2e-5, "{width}: off by {off:e}");
        }
        Ok(())
    }
}
