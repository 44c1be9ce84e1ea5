//! The rotary table. In a bounded cache a key's position is its slot index, so the table ends at the budget.

use candle_core::{DType, Device, Result, Tensor};

/// Cosines and sines of the rotary embedding (RoFormer, arXiv 2104.09864), halves layout as in Llama checkpoints.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    /// `[positions, head_dim / 2]`
    cos: Tensor,
    /// `[positions, head_dim / 2]`
    sin: Tensor,
}

impl RotaryTable {
    /// The table for positions `0..positions`; angles are computed in f64, whatever `dtype` is.
    pub fn new(
        head_dim: usize,
        theta: f64,
        positions: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let half = head_dim / 2;
        let angles = (0..positions)
            .flat_map(|position| {
                (0..half)
                    .map(move |i| position as f64 / theta.powf(2.0 * i as f64 / head_dim as f64))
            })
            .collect::<Vec<_>>();
        let table = |f: fn(f64) -> f64| {
            let values = angles.iter().map(|&a| f(a) as f32).collect::<Vec<_>>();
            Tensor::from_vec(values, (positions, half), device)?.to_dtype(dtype)
        };
        Ok(Self {
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
        })
    }

    /// Rotates `x` (`[heads, tokens, head_dim]`) to the positions `start..start + tokens`.
    pub fn rotate(&self, x: &Tensor, start: usize) -> Result<Tensor> {
        let tokens = x.dim(1)?;
        let cos = self.cos.narrow(0, start, tokens)?;
        let sin = self.sin.narrow(0, start, tokens)?;
        candle_nn::rotary_emb::rope(&x.unsqueeze(0)?, &cos, &sin)?.squeeze(0)
    }

    /// Rotates `x` (`[heads, tokens, head_dim]`) to the given positions (`[tokens]`, u32).
    pub fn rotate_to(&self, x: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let cos = self.cos.index_select(positions, 0)?;
        let sin = self.sin.index_select(positions, 0)?;
        candle_nn::rotary_emb::rope(&x.unsqueeze(0)?, &cos, &sin)?.squeeze(0)
    }
}
