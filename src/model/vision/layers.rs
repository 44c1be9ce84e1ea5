//! Linear layers of towers. On the CPU a product is added to its bias, or to what goes past the layer, where that lies.

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};
use candle_nn::{Module, VarBuilder};
use rayon::prelude::*;

use crate::simd::add_many_products;

/// `y = x W^T + b`
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`
    weight: Tensor,
    /// `[out]`
    bias: Option<Tensor>,
}

impl Linear {
    /// `weight` is `[out, in]`, `bias` is `[out]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Takes `weight`, and `bias` if `bias`.
    pub fn load(inputs: usize, outputs: usize, bias: bool, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get((outputs, inputs), "weight")?;
        let bias = match bias {
            true => Some(vb.get(outputs, "bias")?),
            false => None,
        };
        Ok(Self::new(weight, bias))
    }

    /// The layer's outputs added to `past`, which has their shape.
    pub fn onto(&self, x: &Tensor, past: &Tensor) -> Result<Tensor> {
        match self.on_cpu(x, Some(past))? {
            Some(sum) => Ok(sum),
            None => past + self.product(x)?,
        }
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::Linear::new(self.weight.clone(), self.bias.clone()).forward(x)
    }

    /// The outputs, on top of `past` if it is given; nothing where candle's product is the one to use: another type or device.
    fn on_cpu(&self, x: &Tensor, past: Option<&Tensor>) -> Result<Option<Tensor>> {
        let (outputs, inputs) = self.weight.dims2()?;
        let mut dims = x.dims().to_vec();
        let Some(width) = dims.last_mut() else {
            return Ok(None);
        };
        if *width != inputs || inputs == 0 || outputs == 0 {
            return Ok(None);
        }
        *width = outputs;
        let operands = [Some(x), Some(&self.weight), past];
        if !operands.into_iter().flatten().all(plain)
            || past.is_some_and(|past| past.dims() != dims)
        {
            return Ok(None);
        }
        let bias = match &self.bias {
            Some(bias) => bias.to_vec1()?,
            None => vec![0.0; outputs],
        };
        let rows = x.elem_count() / inputs;
        let mut out = vec![0.0f32; rows * outputs];
        match past {
            Some(past) => with_values(past, |past| {
                let rows = out.par_chunks_mut(outputs).zip(past.par_chunks(outputs));
                rows.for_each(|(out, past)| {
                    for ((out, past), bias) in out.iter_mut().zip(past).zip(&bias) {
                        *out = past + bias;
                    }
                });
            })?,
            None => {
                let rows = out.par_chunks_mut(outputs);
                rows.for_each(|out| out.copy_from_slice(&bias));
            }
        }
        with_values(x, |x| {
            with_values(&self.weight, |weight| {
                add_many_products(x, weight, inputs, &mut out)
            })
        })??;
        Tensor::from_vec(out, dims, &Device::Cpu).map(Some)
    }
}

impl Module for Linear {
    /// `[.., in]` -> `[.., out]`
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.on_cpu(x, None)? {
            Some(out) => Ok(out),
            None => self.product(x),
        }
    }
}

/// f32 in one piece on the CPU.
fn plain(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32 && x.is_contiguous()
}

/// What `run` makes of the numbers of a tensor that is [`plain`].
fn with_values<R>(x: &Tensor, run: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => {
            Ok(run(&values[layout.start_offset()..][..x.elem_count()]))
        }
        _ => candle_core::bail!("a product on the CPU of numbers that are not f32 on the CPU"),
    }
}
