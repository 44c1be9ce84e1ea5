//! How fast a published shape decodes and takes frames on this machine, with random weights: no files are needed.
//!
//! - `shapes`: the configurations and tensors of published checkpoints
//! - `weights`: what the weights are kept as, and random ones
//! - `built`: a decoder of such a shape with its cache, and the step of a token
//! - `decode`: milliseconds per token
//! - `frames`: frames per second into the cache while tokens are decoded
//! - `floor`: the bandwidth of the device's memory, which decoding cannot be faster than
//! - `device`: the device's name and memory
//! - `spread`: medians and what surrounds them

mod built;
pub mod decode;
pub mod device;
pub mod floor;
pub mod frames;
pub mod shapes;
pub mod spread;
pub mod weights;

use serde::Serialize;

use crate::cache::parameter::choice;
use crate::cache::CacheConfig;
use crate::model::precision::Precision;
use candle_core::Device;

use device::DeviceInfo;
use weights::WeightKind;

/// What is built, and where.
#[derive(Debug, Clone)]
pub struct Bench {
    /// A name of [`shapes::SHAPES`].
    pub shape: String,
    pub weights: WeightKind,
    /// Type of the arithmetic where the weights are blocks; floats are computed in their own.
    pub precision: Precision,
    pub cache: CacheConfig,
    pub device: Device,
    /// 0: as many as the node would take.
    pub threads: usize,
    pub path: Path,
}

/// What decodes a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// The device's own kernels, where it has such for this model, else as below.
    Kernels,
    /// candle's operations, one after the other.
    Operations,
}

choice!(Path);

impl Path {
    pub const ALL: [Self; 2] = [Self::Kernels, Self::Operations];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kernels => "kernels",
            Self::Operations => "operations",
        }
    }
}

/// What was built, and where: the beginning of every result.
#[derive(Debug, Clone, Serialize)]
pub struct About {
    pub shape: String,
    pub weights: String,
    /// Type of the arithmetic.
    pub dtype: String,
    pub device: DeviceInfo,
    /// The code's version, and its commit where the build was told (`INF_MLLM_COMMIT`).
    pub version: &'static str,
    pub commit: Option<&'static str>,
    pub policy: &'static str,
    pub budget: usize,
    /// What decodes a token.
    pub path: &'static str,
}

/// The commit that the executable was built from.
const COMMIT: Option<&str> = option_env!("INF_MLLM_COMMIT");
