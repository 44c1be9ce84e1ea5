//! The activation functions that configurations name.

use candle_core::{bail, CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor};
use candle_nn::Module;
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;
use serde::Deserialize;

use crate::simd::tiles::exp;

/// An activation function, by the names of transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Activation {
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    /// With the error function.
    #[serde(rename = "gelu")]
    Gelu,
    /// By tanh.
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_new", alias = "gelu_fast")]
    GeluTanh,
    /// `x * sigmoid(1.702 x)`, CLIP's.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
}

impl Activation {
    /// By the name in a configuration.
    pub fn parse(name: &str) -> Option<Self> {
        serde_json::from_value(name.into()).ok()
    }

    /// Of each of the values, with the vector instructions of the caller.
    #[inline(always)]
    pub fn apply(self, values: &mut [f32]) {
        match self {
            Self::Silu => each(values, silu),
            Self::Gelu => each(values, gelu),
            Self::GeluTanh => each(values, gelu_tanh),
            Self::QuickGelu => each(values, quick_gelu),
        }
    }

    /// `self(gate) * up`, of one shape: a gated unit (arXiv 2002.05202).
    ///
    /// On the CPU in one pass with vector instructions, in the threads of the pool that it is called in: candle hands long tensors to threads
    /// of its own and waits for them without sleeping, also where the model has one thread.
    pub fn gated(self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        match plain(gate) && plain(up) {
            true => gate.apply_op2_no_bwd(up, &Gated(self)),
            false => self.forward(gate)? * up,
        }
    }
}

impl Module for Activation {
    /// On the CPU in one pass with vector instructions, in the threads of the pool that it is called in.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if plain(x) {
            return x.apply_op1_no_bwd(self);
        }
        match self {
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::QuickGelu => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
        }
    }
}

/// f32 in one piece on the CPU.
fn plain(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32 && x.is_contiguous()
}

/// Elements that a thread takes at a time.
const PART: usize = 16 << 10;

impl CustomOp1 for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("activation: a tensor is not contiguous");
        };
        let x = &x.as_slice::<f32>()?[from..to];
        let mut out = vec![0.0f32; x.len()];
        let parts = out.par_chunks_mut(PART).zip(x.par_chunks(PART));
        parts.for_each(|(out, x)| {
            Arch::new().dispatch(Part {
                activation: *self,
                x,
                out,
                up: None,
            });
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// A part of a tensor.
struct Part<'a> {
    activation: Activation,
    x: &'a [f32],
    out: &'a mut [f32],
    /// What is multiplied with, if anything.
    up: Option<&'a [f32]>,
}

impl NullaryFnOnce for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self {
            activation,
            x,
            out,
            up,
        } = self;
        out.copy_from_slice(x);
        activation.apply(out);
        for (out, up) in out.iter_mut().zip(up.into_iter().flatten()) {
            *out *= up;
        }
    }
}

#[inline(always)]
fn each(values: &mut [f32], function: impl Fn(f32) -> f32) {
    let (lanes, rest) = values.as_chunks_mut::<16>();
    for lane in lanes {
        for x in lane.iter_mut() {
            *x = function(*x);
        }
    }
    for x in rest {
        *x = function(*x);
    }
}

/// 1 / (1 + e^-x)
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    let small = exp(-x.abs());
    let of_negative = small / (1.0 + small);
    if x < 0.0 {
        of_negative
    } else {
        1.0 - of_negative
    }
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

#[inline(always)]
fn quick_gelu(x: f32) -> f32 {
    x * sigmoid(1.702 * x)
}

/// `x / 2 (1 + tanh(y / 2))` is `x sigmoid(y)`.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const SCALE: f32 = 2.0 * std::f32::consts::FRAC_2_SQRT_PI / std::f32::consts::SQRT_2;
    x * sigmoid(SCALE * (x + 0.044_715 * x * x * x))
}

/// `x / 2 erfc(-x / sqrt 2)`, with erfc to 1.5e-7 by formula 7.1.26 of Abramowitz and Stegun.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut series = 1.061_405_4;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        series = series * t + coefficient;
    }
    let half = 0.5 * series * t * exp(-z * z);
    if x < 0.0 {
        x * half
    } else {
        x * (1.0 - half)
    }
}

/// Inputs are the gate and what it is multiplied with.
struct Gated(Activation);

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = gate_layout.shape();
        if up_layout.shape() != shape {
            bail!(
                "gated unit: {:?} and {shape:?}, expected one shape",
                up_layout.shape()
            );
        }
        let (Some((from, to)), Some((up_from, up_to))) = (
            gate_layout.contiguous_offsets(),
            up_layout.contiguous_offsets(),
        ) else {
            bail!("gated unit: a tensor is not contiguous");
        };
        let gate = &gate.as_slice::<f32>()?[from..to];
        let up = &up.as_slice::<f32>()?[up_from..up_to];
        let mut out = vec![0.0f32; gate.len()];
        let parts = out.par_chunks_mut(PART);
        let inputs = gate.par_chunks(PART).zip(up.par_chunks(PART));
        parts.zip(inputs).for_each(|(out, (x, up))| {
            Arch::new().dispatch(Part {
                activation: self.0,
                x,
                out,
                up: Some(up),
            });
        });
        Ok((CpuStorage::F32(out), shape.clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_gated_unit_is_the_activation_times_the_other_half() -> Result<()> {
        // Longer than a thread takes at a time.
        let gate = Tensor::arange(-20f32, 20.0, &Device::Cpu)?.repeat((600, 1))?;
        let up = gate.affine(0.37, 0.01)?;
        for (activation, want) in [
            (Activation::Silu, gate.silu()?),
            (Activation::GeluTanh, gate.gelu()?),
        ] {
            let off = (activation.gated(&gate, &up)? - (want * &up)?)?.abs()?;
            // Of products up to 20 x 7.41.
            let off = off.max_all()?.to_scalar::<f32>()?;
            assert!(off < 2e-5, "{activation:?} is off by {off:e}");
        }
        // Other types, and tensors that do not lie in one piece.
        let (half, across) = (gate.to_dtype(DType::F16)?, gate.t()?);
        let gated = |gate, up| Activation::Silu.gated(gate, up);
        assert_eq!(gated(&half, &half)?.dtype(), DType::F16);
        assert_eq!(gated(&across, &across)?.dims(), [40, 600]);
        assert!(gated(&gate, &up.narrow(0, 0, 3)?).is_err());
        Ok(())
    }

    #[test]
    fn activations_in_one_pass_are_candles() -> Result<()> {
        // Longer than a thread takes at a time, and not whole vectors.
        let x = Tensor::arange(-30_003f32, 30_000.0, &Device::Cpu)?.affine(1e-3, 1e-4)?;
        let quick = (&x * candle_nn::ops::sigmoid(&(&x * 1.702)?)?)?;
        for (activation, want) in [
            (Activation::Silu, x.silu()?),
            (Activation::Gelu, x.gelu_erf()?),
            (Activation::GeluTanh, x.gelu()?),
            (Activation::QuickGelu, quick),
        ] {
            let off = (activation.forward(&x)? - &want)?.abs()?;
            let off = off.max_all()?.to_scalar::<f32>()?;
            assert!(off < 2e-6, "{activation:?} is off by {off:e}");
            let far = Tensor::new(&[-1e4f32, 1e4, f32::INFINITY], &Device::Cpu)?;
            let far = activation.forward(&far)?.to_vec1::<f32>()?;
            assert_eq!(far, [0.0, 1e4, f32::INFINITY], "{activation:?}");
            let half = activation.forward(&x.to_dtype(DType::F16)?)?;
            assert_eq!(half.dtype(), DType::F16);
        }
        let nan = Tensor::new(&[f32::NAN], &Device::Cpu)?;
        assert!(Activation::GeluTanh.forward(&nan)?.to_vec1::<f32>()?[0].is_nan());
        Ok(())
    }
}
