//! Linear layers of towers. On the CPU bias, activation and what goes past a layer are added to a product while it is in the cache.

use candle_core::{bail, CpuStorage, DType, Device, Result, Storage, Tensor};
use candle_nn::Module;

use super::panels::{Panels, Then};
use crate::model::activation::Activation;
use crate::model::weights::{Matrix, Weights};

/// `y = x W^T + b`
#[derive(Debug, Clone)]
pub enum Linear {
    /// As the CPU multiplies.
    Panels {
        weight: Panels,
        /// `[out]`
        bias: Option<Vec<f32>>,
    },
    /// As candle multiplies: on a GPU, and shapes without numbers.
    Dense(candle_nn::Linear),
}

impl Linear {
    /// `weight` is `[out, in]`, `bias` is `[out]`. A shape without numbers stays one.
    pub fn packed(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        if !weight.device().is_cpu() || !weight.is_contiguous() {
            return Ok(Self::Dense(candle_nn::Linear::new(weight, bias)));
        }
        Self::of_panels(Panels::of(&weight)?, bias)
    }

    /// Takes `weight`, which on the CPU stays of 16 bits, or of 8, where it is stored so, and `bias` if `bias`.
    pub fn load(inputs: usize, outputs: usize, bias: bool, w: &Weights) -> Result<Self> {
        let weight = w.narrow_matrix((outputs, inputs), "weight")?;
        let bias = match bias {
            true => Some(w.get(outputs, "bias")?),
            false => None,
        };
        match weight {
            Matrix::Quantised(blocks) => Self::of_panels(Panels::of_blocks(&blocks)?, bias),
            Matrix::Dense(weight) => Self::packed(weight, bias),
            Matrix::Panels(_) | Matrix::Planes(_) => {
                bail!("a matrix of a tower that is laid out for a decoder")
            }
        }
    }

    fn of_panels(weight: Panels, bias: Option<Tensor>) -> Result<Self> {
        let bias = bias.map(|bias| bias.to_dtype(DType::F32)?.to_vec1());
        Ok(Self::Panels {
            weight,
            bias: bias.transpose()?,
        })
    }

    /// `activation` of the outputs.
    pub fn activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        match self {
            Self::Panels { weight, bias } => in_panels(x, weight, bias, Some(activation), None),
            Self::Dense(linear) => activation.forward(&linear.forward(x)?),
        }
    }

    /// The outputs added to `past`, which has their shape.
    pub fn onto(&self, x: &Tensor, past: &Tensor) -> Result<Tensor> {
        match self {
            Self::Panels { weight, bias } => in_panels(x, weight, bias, None, Some(past)),
            Self::Dense(linear) => past + linear.forward(x)?,
        }
    }
}

impl Module for Linear {
    /// `[.., in]` -> `[.., out]`
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Panels { weight, bias } => in_panels(x, weight, bias, None, None),
            Self::Dense(linear) => linear.forward(x),
        }
    }
}

fn in_panels(
    x: &Tensor,
    weight: &Panels,
    bias: &Option<Vec<f32>>,
    activation: Option<Activation>,
    past: Option<&Tensor>,
) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2();
    let mut dims = x.dims().to_vec();
    match dims.last_mut() {
        Some(width) if *width == inputs => *width = outputs,
        _ => bail!("{dims:?} times a matrix of [{outputs}, {inputs}]"),
    }
    if let Some(other) = past.filter(|past| past.dims() != dims) {
        bail!("{dims:?} onto {:?}", other.dims());
    }
    let wide = |x: &Tensor| x.to_dtype(DType::F32)?.contiguous();
    let past = past.map(wide).transpose()?;
    let product = |past: Option<&[f32]>| {
        let then = Then {
            bias: bias.as_deref(),
            activation,
            past,
        };
        with_values(&wide(x)?, |x| weight.product(x, then))
    };
    let out = match &past {
        Some(past) => with_values(past, |past| product(Some(past)))??,
        None => product(None)?,
    };
    Tensor::from_vec(out, dims, &Device::Cpu)?.to_dtype(x.dtype())
}

/// What `run` makes of the numbers of a contiguous f32 tensor on the CPU.
fn with_values<R>(x: &Tensor, run: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => {
            Ok(run(&values[layout.start_offset()..][..x.elem_count()]))
        }
        _ => bail!("a product on the CPU of numbers that are not f32 on the CPU"),
    }
}
