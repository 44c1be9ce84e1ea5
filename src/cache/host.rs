//! Tensors into memory of the host.

use candle_core::{DType, Result, Tensor};

/// The numbers of a tensor of any shape, in its order, as f32.
///
/// From a GPU nothing else is copied: of a tensor that is a part of another one, candle would copy the whole of that.
pub fn floats(x: &Tensor) -> Result<Vec<f32>> {
    let x = x.to_dtype(DType::F32)?.flatten_all()?;
    match x.device().is_cpu() {
        true => x.to_vec1(),
        false => x.force_contiguous()?.to_vec1(),
    }
}
