//! Weights as blocks of small integers with a scale, in the block formats of ggml.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Result, Tensor};

use super::{Instructions, Panels, Planes};
use crate::cache::parameter::choice;
use crate::gpu::Gpu;

/// A matrix `[out, in]` to multiply with.
#[derive(Debug, Clone)]
pub enum Matrix {
    Dense(Tensor),
    /// Its products are those of ggml: a row of the input is rounded to 8-bit blocks, sums are f32.
    Quantised(Arc<QTensor>),
    /// The same for the CPU's own products.
    Panels(Arc<Panels>),
    /// The same for a GPU's own kernels.
    Planes(Arc<Planes>),
}

impl Matrix {
    /// `[out, in]`
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(tensor) => tensor.dims2(),
            Self::Quantised(tensor) => tensor.shape().dims2(),
            Self::Panels(panels) => Ok(panels.dims2()),
            Self::Planes(planes) => Ok(planes.dims2()),
        }
    }

    /// Memory, bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            Self::Quantised(tensor) => tensor.storage_size_in_bytes(),
            Self::Panels(panels) => panels.size(),
            Self::Planes(planes) => planes.size(),
        }
    }

    /// As a GPU's kernels take it: blocks that they know in planes, everything else as it is.
    pub fn for_kernels(&self, gpu: &Arc<dyn Gpu>) -> Result<Self> {
        let planes = match self {
            Self::Quantised(blocks) => Planes::of(blocks, gpu)?,
            Self::Dense(_) | Self::Panels(_) | Self::Planes(_) => None,
        };
        Ok(match planes {
            Some(planes) => Self::Planes(Arc::new(planes)),
            None => self.clone(),
        })
    }

    /// Memory of a matrix `[rows, width]` of blocks as [`Self::for_cpu`] lays it out, bytes; none where it stays as it is: of other blocks,
    /// and on a processor without the instructions, where candle's products are faster.
    pub fn bytes_for_cpu(blocks: GgmlDType, shape: (usize, usize)) -> Option<usize> {
        match Instructions::best() {
            Instructions::Portable => None,
            _ => Panels::bytes_of(blocks, shape),
        }
    }

    /// As the products of the CPU take it: blocks that they know in panels, everything else as it is.
    pub fn for_cpu(&self) -> Result<Self> {
        let panels = match self {
            Self::Quantised(blocks) => {
                match Self::bytes_for_cpu(blocks.dtype(), blocks.shape().dims2()?) {
                    Some(_) => Panels::of(blocks)?,
                    None => None,
                }
            }
            Self::Dense(_) | Self::Panels(_) | Self::Planes(_) => None,
        };
        Ok(match panels {
            Some(panels) => Self::Panels(Arc::new(panels)),
            None => self.clone(),
        })
    }
}

/// A type of floats or blocks as GGUF files and their users call it: `Q4_K`.
pub fn block_name(dtype: GgmlDType) -> &'static str {
    match dtype {
        GgmlDType::F32 => "F32",
        GgmlDType::F16 => "F16",
        GgmlDType::BF16 => "BF16",
        GgmlDType::Q4_0 => "Q4_0",
        GgmlDType::Q4_1 => "Q4_1",
        GgmlDType::Q5_0 => "Q5_0",
        GgmlDType::Q5_1 => "Q5_1",
        GgmlDType::Q8_0 => "Q8_0",
        GgmlDType::Q8_1 => "Q8_1",
        GgmlDType::Q2K => "Q2_K",
        GgmlDType::Q3K => "Q3_K",
        GgmlDType::Q4K => "Q4_K",
        GgmlDType::Q5K => "Q5_K",
        GgmlDType::Q6K => "Q6_K",
        GgmlDType::Q8K => "Q8_K",
    }
}

/// What becomes of a decoder's matrices when they are loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Quantization {
    /// As stored: blocks stay blocks, floats stay floats.
    #[default]
    Auto,
    /// Floats, whatever is stored.
    None,
    /// Floats become blocks of 32 8-bit integers.
    Q8_0,
    /// Floats become blocks of 256 4-bit integers.
    Q4K,
}

impl Quantization {
    pub const ALL: [Self; 4] = [Self::Auto, Self::None, Self::Q8_0, Self::Q4K];

    /// As parameters name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
        }
    }

    /// The blocks that a matrix of floats with rows of `width` becomes; none: it stays as it is.
    ///
    /// Where rows do not fill blocks of 256, the 32-wide blocks with the next larger size take their place, as in llama.cpp.
    pub fn blocks(self, width: usize) -> Option<GgmlDType> {
        let wanted = match self {
            Self::Auto | Self::None => return None,
            Self::Q8_0 => [GgmlDType::Q8_0, GgmlDType::Q8_0],
            Self::Q4K => [GgmlDType::Q4K, GgmlDType::Q5_0],
        };
        wanted
            .into_iter()
            .find(|blocks| width > 0 && width.is_multiple_of(blocks.block_size()))
    }
}

impl std::fmt::Display for Quantization {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

choice!(Quantization);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_do_not_fill_large_blocks_get_smaller_ones_or_none() {
        for (kind, blocks) in [
            (Quantization::Auto, [None; 4]),
            (Quantization::None, [None; 4]),
            (
                Quantization::Q8_0,
                [Some(GgmlDType::Q8_0), Some(GgmlDType::Q8_0), None, None],
            ),
            (
                Quantization::Q4K,
                [Some(GgmlDType::Q4K), Some(GgmlDType::Q5_0), None, None],
            ),
        ] {
            assert_eq!(
                [512, 576, 48, 0].map(|width| kind.blocks(width)),
                blocks,
                "{kind}"
            );
        }
    }
}
