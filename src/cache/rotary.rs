//! The rotary table: angles by a key's rank in time among the kept keys, so that the table ends at the budget.

use candle_core::{DType, Device, Result, Tensor};

use super::rope::Rope;

/// Cosines and sines of the rotary embedding (RoFormer, arXiv 2104.09864), halves layout as in Llama checkpoints.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    /// `[positions, head_dim / 2]`
    cos: Tensor,
    /// `[positions, head_dim / 2]`
    sin: Tensor,
    /// The same numbers for the kernel of the CPU.
    host_cos: Vec<f32>,
    host_sin: Vec<f32>,
}

impl RotaryTable {
    /// The table whose row `i` turns to the `i`-th of `positions`; angles are computed in f64, whatever `dtype` is.
    pub fn new(
        rope: &Rope,
        head_dim: usize,
        positions: impl ExactSizeIterator<Item = usize>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let frequencies = rope.frequencies(head_dim);
        let (rows, half) = (positions.len(), frequencies.len());
        let mut angles = Vec::with_capacity(rows * half);
        for position in positions {
            angles.extend(frequencies.iter().map(|f| position as f64 * f));
        }
        let values = |f: fn(f64) -> f64| angles.iter().map(|&a| f(a) as f32).collect::<Vec<_>>();
        let (host_cos, host_sin) = (values(f64::cos), values(f64::sin));
        let table =
            |values: &[f32]| Tensor::from_slice(values, (rows, half), device)?.to_dtype(dtype);
        Ok(Self {
            cos: table(&host_cos)?,
            sin: table(&host_sin)?,
            host_cos,
            host_sin,
        })
    }

    /// What the table is made of, and where it lies.
    pub fn kind(&self) -> (DType, &Device) {
        (self.cos.dtype(), self.cos.device())
    }

    /// Cosines and sines, `[positions, head_dim / 2]` each.
    pub fn host(&self) -> (&[f32], &[f32]) {
        (&self.host_cos, &self.host_sin)
    }

    /// Rotates `x` (`[heads, tokens, head_dim]`, contiguous) to the positions of one set (`[tokens]`) or of each head's set.
    pub fn rotate(&self, x: &Tensor, positions: &[&[u32]]) -> Result<Tensor> {
        let (_, tokens, _) = x.dims3()?;
        let index = Tensor::from_vec(positions.concat(), positions.len() * tokens, x.device())?;
        let (cos, sin) = (
            self.cos.index_select(&index, 0)?,
            self.sin.index_select(&index, 0)?,
        );
        if positions.len() == 1 {
            return candle_nn::rotary_emb::rope(&x.unsqueeze(0)?, &cos, &sin)?.squeeze(0);
        }
        // One head is one batch entry, with its own positions.
        let shape = (positions.len(), tokens, cos.dim(1)?);
        let (cos, sin) = (cos.reshape(shape)?, sin.reshape(shape)?);
        candle_nn::rotary_emb::rope(&x.unsqueeze(1)?, &cos, &sin)?.squeeze(1)
    }
}
