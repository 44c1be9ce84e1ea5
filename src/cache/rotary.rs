//! Rotary tables: cosines and sines by a token's rank in time among the kept tokens, so that a table ends at the budget.

use std::sync::OnceLock;

use candle_core::{bail, DType, Device, Result, Tensor};

use super::rope::{Pair, Rope};

/// Cosines and sines of the rotary embedding (RoFormer, arXiv 2104.09864), halves layout as in Llama checkpoints.
///
/// They are made in f32 in the memory of the CPU, where its kernel reads them; attention by tensor operations makes itself a copy.
#[derive(Debug)]
pub struct RotaryTable {
    /// `[ranks, head_dim / 2]`
    cos: Vec<f32>,
    /// `[ranks, head_dim / 2]`
    sin: Vec<f32>,
    half: usize,
    dtype: DType,
    device: Device,
    /// Cosines and sines as tensors of `dtype` on `device`, once they have been asked for.
    tensors: OnceLock<[Tensor; 2]>,
    /// The same as f32.
    floats: OnceLock<[Tensor; 2]>,
}

impl RotaryTable {
    /// A table of `ranks` rows that turn nothing anywhere yet.
    pub fn empty(ranks: usize, head_dim: usize, dtype: DType, device: &Device) -> Self {
        let half = head_dim / 2;
        Self {
            cos: vec![0.0; ranks * half],
            sin: vec![0.0; ranks * half],
            half,
            dtype,
            device: device.clone(),
            tensors: OnceLock::new(),
            floats: OnceLock::new(),
        }
    }

    /// The table whose row `i` turns to the `i`-th of `positions`; angles are computed in f64, whatever `dtype` is.
    pub fn new(
        rope: &Rope,
        head_dim: usize,
        positions: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Self {
        let mut table = Self::empty(positions.len(), head_dim, dtype, device);
        let pairs = rope.pairs(head_dim);
        let rows = table.cos.chunks_exact_mut(table.half.max(1));
        let rows = rows.zip(table.sin.chunks_exact_mut(table.half.max(1)));
        for (&position, (cos, sin)) in positions.iter().zip(rows) {
            turns(position, &pairs, cos, sin);
        }
        table
    }

    /// The table of these cosines and sines, `[ranks, head_dim / 2]` each.
    pub fn of(cos: Vec<f32>, sin: Vec<f32>, ranks: usize, device: &Device) -> Result<Self> {
        if ranks == 0 || !cos.len().is_multiple_of(ranks) || sin.len() != cos.len() {
            bail!(
                "{} cosines and {} sines are no rotary table of {ranks} ranks",
                cos.len(),
                sin.len()
            );
        }
        Ok(Self {
            half: cos.len() / ranks,
            cos,
            sin,
            dtype: DType::F32,
            device: device.clone(),
            tensors: OnceLock::new(),
            floats: OnceLock::new(),
        })
    }

    /// Cosines and sines, `[ranks, head_dim / 2]` each.
    pub fn host(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// Writes the rows of `count` ranks from `first` on: `row` fills the cosines and sines of one.
    pub fn write(
        &mut self,
        first: usize,
        count: usize,
        mut row: impl FnMut(usize, &mut [f32], &mut [f32]),
    ) -> Result<()> {
        let values = first * self.half..(first + count) * self.half;
        let width = self.half.max(1);
        let rows = self.cos[values.clone()].chunks_exact_mut(width);
        let rows = rows.zip(self.sin[values.clone()].chunks_exact_mut(width));
        for (i, (cos, sin)) in rows.enumerate() {
            row(i, cos, sin);
        }
        let made = [&self.tensors, &self.floats];
        for tensors in made.iter().filter_map(|made| made.get()) {
            for (tensor, host) in tensors.iter().zip([&self.cos, &self.sin]) {
                if count > 0 {
                    let rows = self.tensor(&host[values.clone()], tensor.dtype())?;
                    tensor.slice_set(&rows, 0, first)?;
                }
            }
        }
        Ok(())
    }

    /// `[rows, head_dim / 2]`
    fn tensor(&self, values: &[f32], dtype: DType) -> Result<Tensor> {
        let shape = (values.len() / self.half.max(1), self.half);
        Tensor::from_slice(values, shape, &self.device)?.to_dtype(dtype)
    }

    fn tensors(&self) -> Result<&[Tensor; 2]> {
        self.made(&self.tensors, self.dtype)
    }

    /// Cosines and sines on the device, `[ranks, head_dim / 2]` each, f32.
    pub fn floats(&self) -> Result<&[Tensor; 2]> {
        match self.dtype {
            DType::F32 => self.tensors(),
            _ => self.made(&self.floats, DType::F32),
        }
    }

    fn made<'a>(
        &self,
        tensors: &'a OnceLock<[Tensor; 2]>,
        dtype: DType,
    ) -> Result<&'a [Tensor; 2]> {
        if let Some(tensors) = tensors.get() {
            return Ok(tensors);
        }
        let made = [
            self.tensor(&self.cos, dtype)?,
            self.tensor(&self.sin, dtype)?,
        ];
        Ok(tensors.get_or_init(|| made))
    }

    /// Rotates `x` (`[heads, tokens, head_dim]`, contiguous) to the ranks of one set (`[tokens]`) or of each head's set.
    fn rotate(&self, x: &Tensor, ranks: &[&[u32]]) -> Result<Tensor> {
        let (_, tokens, _) = x.dims3()?;
        let index = Tensor::from_vec(ranks.concat(), ranks.len() * tokens, x.device())?;
        let [cos, sin] = self.tensors()?;
        let (cos, sin) = (cos.index_select(&index, 0)?, sin.index_select(&index, 0)?);
        if ranks.len() == 1 {
            return candle_nn::rotary_emb::rope(&x.unsqueeze(0)?, &cos, &sin)?.squeeze(0);
        }
        // One head is one batch entry, with its own positions.
        let shape = (ranks.len(), tokens, self.half);
        let (cos, sin) = (cos.reshape(shape)?, sin.reshape(shape)?);
        candle_nn::rotary_emb::rope(&x.unsqueeze(1)?, &cos, &sin)?.squeeze(1)
    }
}

/// Rotates `x` (`[heads, tokens, head_dim]`, contiguous) by one table, or by as many as `heads` can be shared among in equal groups,
/// to the ranks of one set (`[tokens]`) or of as many sets.
pub fn rotate(tables: &[&RotaryTable], x: &Tensor, ranks: &[&[u32]]) -> Result<Tensor> {
    if let [table] = tables {
        return table.rotate(x, ranks);
    }
    let group = x.dim(0)? / tables.len();
    let heads = tables.iter().enumerate().map(|(i, table)| {
        let ranks = ranks[i.min(ranks.len() - 1)];
        table.rotate(&x.narrow(0, i * group, group)?, &[ranks])
    });
    Tensor::cat(&heads.collect::<Result<Vec<_>>>()?, 0)
}

/// Cosines and sines of the angles at a position, one for each frequency.
pub fn turns(position: usize, pairs: &[Pair], cos: &mut [f32], sin: &mut [f32]) {
    for (i, pair) in pairs.iter().enumerate() {
        let angle = position as f64 * pair.frequency;
        cos[i] = (angle.cos() * pair.amplitude) as f32;
        sin[i] = (angle.sin() * pair.amplitude) as f32;
    }
}
