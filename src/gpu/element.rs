//! What kernels call the types of elements.

use candle_core::{bail, DType, Result};

/// A type of elements that kernels take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    /// What an instance of a kernel for this type is named with.
    pub suffix: &'static str,
    /// `ElementType` in `kernels/gpu.cuh`: the type where a kernel learns of it when it runs.
    pub code: usize,
}

impl Element {
    /// Fails where no kernel takes the type.
    pub fn of(dtype: DType) -> Result<Self> {
        let (suffix, code) = match dtype {
            DType::F32 => ("f32", 0),
            DType::F16 => ("f16", 1),
            DType::BF16 => ("bf16", 2),
            other => bail!("there are no kernels for {}", other.as_str()),
        };
        Ok(Self { suffix, code })
    }
}
