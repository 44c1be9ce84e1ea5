//! Where the model runs.
//!
//! - this file: the choice between CPU and GPU
//! - `gpu`: the GPU, opened once, with what stands in its way told
//! - `on_demand`: the libraries of CUDA, loaded when a GPU is asked for and not when the program starts

#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "cuda")]
mod on_demand;

use candle_core::{Device, DeviceLocation};

use super::ModelError;
use crate::cache::parameter::choice;

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// The GPU if there is one, else the CPU.
    Auto,
    Cpu,
    Cuda,
}

impl DeviceKind {
    pub const ALL: [Self; 3] = [Self::Auto, Self::Cpu, Self::Cuda];

    /// As parameters name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }

    /// The device: of a GPU always the same one, whose operations follow one another in one order, whichever thread starts them.
    pub fn open(self) -> Result<Device, ModelError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => open_gpu().map_err(|what| ModelError::Device { name: "cuda", what }),
            Self::Auto if cfg!(feature = "cuda") => Ok(open_gpu().unwrap_or_else(|what| {
                tracing::warn!("no usable GPU, running on the CPU: {what}");
                Device::Cpu
            })),
            Self::Auto => Ok(Device::Cpu),
        }
    }
}

choice!(DeviceKind);

/// Where a tower runs whose decoder runs on `device`: on a GPU in a stream of its own, so that the two can work at the same time.
pub fn beside(device: &Device) -> Device {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => gpu::open_beside().unwrap_or_else(|what| {
            tracing::warn!("frames and answers take turns on the GPU: {what}");
            device.clone()
        }),
        device => device.clone(),
    }
}

/// Copies what has been made on `own` to `home`. It is waited for here, so that the stream of `home` need not wait; and what `own` lets go
/// afterwards stays until `home` has copied it.
pub fn hand_over<T>(
    own: &Device,
    home: &Device,
    copy: impl FnOnce() -> candle_core::Result<T>,
) -> candle_core::Result<T> {
    own.synchronize()?;
    let copied = copy()?;
    #[cfg(feature = "cuda")]
    if let (Device::Cuda(own), Device::Cuda(home)) = (own, home) {
        let waits = own.cuda_stream().join(&home.cuda_stream());
        waits.map_err(candle_core::Error::wrap)?;
    }
    #[cfg(not(feature = "cuda"))]
    let _ = home;
    Ok(copied)
}

/// The first GPU, or why it cannot be used.
#[cfg(feature = "cuda")]
fn open_gpu() -> Result<Device, String> {
    gpu::open()
}

/// The first GPU, or why it cannot be used.
#[cfg(not(feature = "cuda"))]
fn open_gpu() -> Result<Device, String> {
    Err("this build has no CUDA; build with the feature cuda".to_string())
}

/// A device's name as the parameter `device` and `nvidia-smi` have it: cpu, cuda:0.
pub fn device_name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_string(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}
