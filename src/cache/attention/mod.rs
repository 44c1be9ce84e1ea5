//! Attention over the cached keys of one layer, and the probability that each key gets.
//!
//! - this file: what all ways share, and the choice between them
//! - `fused`: the kernel of the CPU as operations of candle
//! - `device`: the kernels of a GPU
//! - `scored`: those that score the slots of several layers at once
//! - `eager`: candle's own operations, on any device; what the fused kernel is compared with

mod device;
mod eager;
mod fused;
mod scored;

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::rotary::RotaryTable;
use super::storage::{KvBuffer, Storage};
use super::turns::LayerTurns;
use crate::gpu::Gpu;

pub use super::kernel::Sums;
pub use scored::Asked;

/// Softmax of `logits` (`[.., len]`) over the last dimension; on the CPU as f32.
///
/// There candle sums f16 in f16, where a sum of 2048 no longer grows by 1; on a GPU its sums are in f32 for any type.
pub fn shares(logits: &Tensor) -> Result<Tensor> {
    softmax_last_dim(&wide_on_cpu(logits)?)
}

/// `values` (`[.., len, width]`) summed with the weights `shares` (`[.., rows, len]`), as the type of `values`.
///
/// The sums are in f32 whatever the types are; of a single row, candle's product of f16 on the CPU would sum in f16.
pub fn weighted_sums(shares: &Tensor, values: &Tensor) -> Result<Tensor> {
    let wide = wide_on_cpu(values)?;
    let sums = shares.to_dtype(wide.dtype())?.matmul(&wide)?;
    sums.to_dtype(values.dtype())
}

/// As f32 on the CPU, as it is on a GPU.
fn wide_on_cpu(x: &Tensor) -> Result<Tensor> {
    match x.device().is_cpu() {
        true => x.to_dtype(DType::F32),
        false => Ok(x.clone()),
    }
}

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// One pass over the keys as they are stored; where there is no such kernel, eager.
    Fused,
    /// One operation of candle after the other.
    Eager,
}

/// Whether the kernels of a GPU attend with queries of `dtype` to keys that are stored as `storage`.
pub fn in_kernels(kernel: Kernel, dtype: DType, storage: Storage, head_dim: usize) -> bool {
    kernel == Kernel::Fused && device::fits(dtype, storage, head_dim)
}

/// The keys and values of one layer, and where they stand.
#[derive(Clone)]
pub struct Past<'a> {
    /// Not rotated.
    pub keys: &'a KvBuffer,
    pub values: &'a KvBuffer,
    /// Rank in time of each slot in use, for each kept set: one, or one per KV head.
    pub positions: Vec<&'a [u32]>,
    /// What ranks turn by: the same for all kept sets, or a table for each.
    pub rotary: Vec<&'a RotaryTable>,
    /// The same where the tables lie in the memory of a GPU.
    pub turns: Option<LayerTurns<'a>>,
    pub kernel: Kernel,
    /// What runs the kernels of the device, if there are such.
    pub gpu: Option<&'a Arc<dyn Gpu>>,
}

impl Past<'_> {
    /// Slots in use.
    fn len(&self) -> usize {
        self.positions[0].len()
    }

    fn fuses(&self, q: &Tensor) -> bool {
        let known = [DType::F32, DType::F16, DType::BF16].contains(&q.dtype());
        self.kernel == Kernel::Fused && q.device().is_cpu() && known
    }

    /// What runs a kernel of the device for these queries.
    fn gpu_for(&self, q: &Tensor) -> Option<&Arc<dyn Gpu>> {
        let head_dim = q.dims().last().copied().unwrap_or(0);
        self.gpu
            .filter(|_| in_kernels(self.kernel, q.dtype(), self.keys.storage(), head_dim))
    }

    /// Causal attention of the queries `q` (`[heads, tokens, head_dim]`, not rotated) at `positions` (`[tokens]`) over every slot.
    ///
    /// A query sees the slots whose position is not above its own. Returns `[heads, tokens, head_dim]`. With
    /// `sums`, the probability that each slot gets is added there: the sum over the queries that count of the mean over the heads that
    /// share the KV head. Softmax and sums over the slots are in f32, whatever the queries are.
    pub fn attend(&self, q: &Tensor, positions: &[u32], sums: Option<Sums>) -> Result<Tensor> {
        match self.gpu_for(q) {
            Some(gpu) => device::attend(self, gpu, q, positions, sums),
            None if self.fuses(q) => fused::attend(self, q, positions, sums),
            None => eager::attend(self, q, positions, sums),
        }
    }

    /// What [`Self::attend`] adds to `sums`, without the attention: `[kv_heads, len]`.
    fn sums(&self, q: &Tensor, positions: &[u32]) -> Result<Vec<f32>> {
        match self.fuses(q) {
            true => fused::sums(self, q, positions),
            false => eager::sums(self, q, positions),
        }
    }
}

/// What attention would add to the sums of each layer, without the attention: of each `[kv_heads, len]`. All have the same shape.
pub fn sums(layers: &[Asked]) -> Result<Vec<Vec<f32>>> {
    let first = layers.first();
    if let Some(gpu) = first.and_then(|asked| asked.past.gpu_for(asked.queries)) {
        return scored::sums(layers, gpu, None);
    }
    let layers = layers.iter().map(|asked| {
        let queries = asked.queries.narrow(1, 0, asked.positions.len())?;
        asked.past.sums(&queries.contiguous()?, &asked.positions)
    });
    layers.collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn shares_of_many_equal_logits_add_up_to_one() {
        let logits = Tensor::zeros((2, 8192), DType::F16, &Device::Cpu).unwrap();
        let shares = shares(&logits).unwrap();
        let sums = shares.sum(1).unwrap().to_vec1::<f32>().unwrap();
        assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-3), "{sums:?}");
        let values = Tensor::ones((8192, 4), DType::F16, &Device::Cpu).unwrap();
        let sums = weighted_sums(&shares.narrow(0, 0, 1).unwrap(), &values).unwrap();
        assert_eq!(sums.dtype(), DType::F16);
        let sums = sums.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        assert!(
            sums[0].iter().all(|sum| (sum - 1.0).abs() < 1e-3),
            "{sums:?}"
        );
    }
}
