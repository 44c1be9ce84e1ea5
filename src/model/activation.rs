//! The activation functions that configurations name.

use candle_core::{bail, CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};
use candle_nn::Module;
use rayon::prelude::*;
use serde::Deserialize;

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
}

impl Module for Activation {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh if x.device().is_cpu() => gelu_by_sigmoid(x),
            Self::GeluTanh => x.gelu(),
            Self::QuickGelu => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
        }
    }
}

/// `x / 2 (1 + tanh(y / 2))` is `x sigmoid(y)`, and candle's tanh takes four times as long on the CPU.
fn gelu_by_sigmoid(x: &Tensor) -> Result<Tensor> {
    const SCALE: f64 = 2.0 * std::f64::consts::FRAC_2_SQRT_PI / std::f64::consts::SQRT_2;
    let y = (x * x.sqr()?.affine(0.044715 * SCALE, SCALE)?)?;
    x * candle_nn::ops::sigmoid(&y)?
}

/// `silu(gate) * up`, of one shape: the gated unit of Llama's MLP (arXiv 2002.05202).
///
/// On the CPU in one pass, in the threads of the pool that it is called in: candle hands long tensors to threads of its own and waits for
/// them without sleeping, also where the model has one thread.
pub fn gated_silu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let plain = |x: &Tensor| x.device().is_cpu() && x.dtype() == DType::F32 && x.is_contiguous();
    match plain(gate) && plain(up) {
        true => gate.apply_op2_no_bwd(up, &GatedSilu),
        false => gate.silu()? * up,
    }
}

struct GatedSilu;

impl CustomOp2 for GatedSilu {
    fn name(&self) -> &'static str {
        "gated-silu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        /// Elements that a thread takes at a time.
        const PART: usize = 16 << 10;
        let shape = gate_layout.shape();
        if up_layout.shape() != shape {
            bail!(
                "gated silu: {:?} and {shape:?}, expected one shape",
                up_layout.shape()
            );
        }
        let (Some((from, to)), Some((up_from, up_to))) = (
            gate_layout.contiguous_offsets(),
            up_layout.contiguous_offsets(),
        ) else {
            bail!("gated silu: a tensor is not contiguous");
        };
        let gate = &gate.as_slice::<f32>()?[from..to];
        let up = &up.as_slice::<f32>()?[up_from..up_to];
        let mut out = vec![0.0f32; gate.len()];
        let parts = out.par_chunks_mut(PART);
        let inputs = gate.par_chunks(PART).zip(up.par_chunks(PART));
        parts.zip(inputs).for_each(|(out, (gate, up))| {
            for ((out, x), up) in out.iter_mut().zip(gate).zip(up) {
                *out = x / (1.0 + (-x).exp()) * up;
            }
        });
        Ok((CpuStorage::F32(out), shape.clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_gated_unit_is_silu_times_the_other_half() -> Result<()> {
        // Longer than a thread takes at a time.
        let gate = Tensor::arange(-20f32, 20.0, &Device::Cpu)?.repeat((600, 1))?;
        let up = gate.affine(0.37, 0.01)?;
        let got = gated_silu(&gate, &up)?.flatten_all()?.to_vec1::<f32>()?;
        let want = (gate.silu()? * &up)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(got, want);
        // Other types, and tensors that do not lie in one piece.
        let (half, across) = (gate.to_dtype(DType::F16)?, gate.t()?);
        assert_eq!(gated_silu(&half, &half)?.dtype(), DType::F16);
        assert_eq!(gated_silu(&across, &across)?.dims(), [40, 600]);
        assert!(gated_silu(&gate, &up.narrow(0, 0, 3)?).is_err());
        Ok(())
    }

    #[test]
    fn gelu_by_a_sigmoid_is_gelu_by_tanh() -> Result<()> {
        let x = Tensor::arange(-30f32, 30.0, &Device::Cpu)?.affine(0.37, 0.01)?;
        let off = (gelu_by_sigmoid(&x)? - x.gelu()?)?.abs()?.max_all()?;
        assert!(off.to_scalar::<f32>()? < 2e-6);
        Ok(())
    }
}
