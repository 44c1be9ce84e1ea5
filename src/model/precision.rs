//! The type that a model computes in.

use std::fmt::{self, Display, Formatter};

use candle_core::{DType, Device};

use super::weights::Source;
use crate::cache::parameter::choice;

/// The type of the arithmetic, as parameters name it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32 on the CPU, on a GPU what most of the weights are stored as.
    #[default]
    Auto,
    F32,
    F16,
    /// On the CPU the weights are rounded to bf16 and the products are those of f32.
    Bf16,
}

impl Precision {
    pub const ALL: [Self; 4] = [Self::Auto, Self::F32, Self::F16, Self::Bf16];

    /// As parameters name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// The type for the weights of `source` on `device`.
    pub fn dtype(self, source: &dyn Source, device: &Device) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
            Self::Auto if device.is_cpu() => DType::F32,
            Self::Auto => {
                let stored = source.list();
                let bytes = |kind: &str| -> usize {
                    let of_kind = stored.iter().filter(|tensor| tensor.dtype == kind);
                    of_kind.map(|tensor| tensor.bytes).sum()
                };
                let kinds = [
                    (bytes("F32"), DType::F32),
                    (bytes("F16"), DType::F16),
                    (bytes("BF16"), DType::BF16),
                ];
                let most = kinds.into_iter().max_by_key(|(bytes, _)| *bytes);
                most.map_or(DType::F32, |(_, dtype)| dtype)
            }
        }
    }
}

impl Display for Precision {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

choice!(Precision);
