//! The matrices of a decoder as the products of a device take them.

use std::cell::Cell;
use std::sync::Arc;

use candle_core::Result;

use super::Decoder;
use crate::gpu::Gpu;
use crate::model::linear::Linear;
use crate::model::weights::Matrix;

/// Lays a matrix out anew.
pub type LayOut<'a> = dyn Fn(&Linear) -> Result<Linear> + 'a;

impl Decoder {
    /// Lays the matrices out as the kernels of `gpu` take them, or the products of the CPU, layer by layer, so that no more than a layer is
    /// there twice. For layers that a GPU's kernels do not know nothing changes.
    pub fn lay_out_for(&mut self, gpu: Option<&Arc<dyn Gpu>>) -> Result<()> {
        match gpu {
            None if !self.device.is_cpu() => Ok(()),
            None => self.lay_out(&Linear::for_cpu),
            Some(_) if self.layers.iter().any(|layer| layer.as_llama().is_none()) => Ok(()),
            Some(gpu) => self.lay_out(&|linear| linear.for_kernels(gpu)),
        }
    }

    fn lay_out(&mut self, change: &LayOut) -> Result<()> {
        let bytes = Cell::new(self.weight_bytes);
        let change = |linear: &Linear| {
            let changed = change(linear)?;
            bytes.set(bytes.get() + changed.weight().bytes() - linear.weight().bytes());
            Ok(changed)
        };
        for layer in &mut self.layers {
            if let Some(laid_out) = layer.laid_out(&change)? {
                *layer = laid_out;
            }
        }
        let one = match (&self.embed_tokens, self.lm_head.weight()) {
            (Matrix::Quantised(embedding), Matrix::Quantised(head)) => Arc::ptr_eq(embedding, head),
            _ => false,
        };
        self.lm_head = change(&self.lm_head)?;
        self.embed_tokens = match one {
            true => self.lm_head.weight().clone(),
            false => change(&Linear::of(self.embed_tokens.clone(), None))?
                .weight()
                .clone(),
        };
        self.weight_bytes = bytes.get();
        Ok(())
    }
}
