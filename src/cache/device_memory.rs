//! The memory of a GPU: how much is left, and whether that is what has failed.

use candle_core::{Device, Error};

use super::config::CacheError;
use super::plan::MIN_BUDGET;
use super::shape::CacheShape;
use super::storage::Storage;

/// Of the free memory, what a step needs beside the cache is taken to fit into this share, at the start.
const WORKING_SHARE: f64 = 0.1;

/// Memory of a GPU, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    pub free: u64,
    pub total: u64,
}

impl DeviceMemory {
    /// That of a GPU; nothing for the CPU, and where the driver does not say.
    #[cfg(feature = "cuda")]
    pub fn of(device: &Device) -> Option<Self> {
        let stream = device.as_cuda_device().ok()?.cuda_stream();
        // What was let go before is free only after the operations that were asked for.
        stream.synchronize().ok()?;
        let (free, total) = stream.context().mem_get_info().ok()?;
        Some(Self {
            free: free as u64,
            total: total as u64,
        })
    }

    /// That of a GPU, of which this build knows none.
    #[cfg(not(feature = "cuda"))]
    pub fn of(_: &Device) -> Option<Self> {
        None
    }

    /// As in "1.5 GB of 8.0 GB are free".
    pub fn told(self) -> String {
        format!(
            "{} of {} are free",
            told_bytes(self.free),
            told_bytes(self.total)
        )
    }

    /// Fails where a cache of `budget` slots of `slot_bytes` each does not fit beside `state_bytes`.
    fn check_cache(
        self,
        budget: usize,
        slot_bytes: u64,
        state_bytes: u64,
    ) -> Result<(), CacheError> {
        let asked = slot_bytes.saturating_mul(budget as u64);
        let asked = asked.saturating_add(state_bytes);
        if asked <= self.free {
            return Ok(());
        }
        let usable = self.free as f64 * (1.0 - WORKING_SHARE);
        let fits = (usable as u64).saturating_sub(state_bytes) / slot_bytes.max(1);
        let expected = match fits >= MIN_BUDGET as u64 {
            true => format!("at most {fits}"),
            false => "more memory, or a smaller model: no budget fits".to_string(),
        };
        let (asked, found) = (told_bytes(asked), self.told());
        let told = format!(
            "a budget of {budget} slots takes {asked} of the GPU's memory, of which {found}, expected {expected}"
        );
        Err(CacheError::Memory(told.into()))
    }
}

/// Fails where the keys and values of a cache of `budget` slots, stored as `slot_bytes` a slot over all layers, and the states of layers
/// that keep none do not fit into the GPU's memory.
pub fn check_cache(
    budget: usize,
    (slot_bytes, state_bytes): (u64, u64),
    device: &Device,
) -> Result<(), CacheError> {
    match DeviceMemory::of(device) {
        Some(memory) => memory.check_cache(budget, slot_bytes, state_bytes),
        None => Ok(()),
    }
}

impl CacheShape {
    /// Keys and values of one token over all layers, bytes.
    pub fn slot_bytes(&self, storage: Storage) -> u64 {
        let rows = self.layers.saturating_mul(2 * self.kv_heads);
        (rows as u64).saturating_mul(storage.row_bytes(self.head_dim) as u64)
    }
}

/// As in "1.5 GB" or "20.0 MB".
pub fn told_bytes(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes < 1e9 {
        true => format!("{:.1} MB", bytes * 1e-6),
        false => format!("{:.1} GB", bytes * 1e-9),
    }
}

/// Whether an error says that the GPU has no memory left.
#[cfg(feature = "cuda")]
pub fn out_of_memory(error: &Error) -> bool {
    use candle_core::cuda::CudaError;
    use cudarc::driver::sys::CUresult;

    match error {
        Error::WithBacktrace { inner, .. }
        | Error::Context { inner, .. }
        | Error::WithPath { inner, .. } => out_of_memory(inner),
        Error::Cuda(error) => match error.downcast_ref::<CudaError>() {
            Some(CudaError::Cuda(error)) => error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY,
            _ => false,
        },
        _ => false,
    }
}

/// Whether an error says that the GPU has no memory left: a build without GPUs has none.
#[cfg(not(feature = "cuda"))]
pub fn out_of_memory(_: &Error) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_does_not_fit_is_refused_with_a_budget_that_does() {
        let memory = DeviceMemory {
            free: 1_000_000_000,
            total: 8_000_000_000,
        };
        assert!(memory.check_cache(1000, 1_000_000, 0).is_ok());
        assert!(memory.check_cache(1000, 1_000_000, 1).is_err());
        let error = memory.check_cache(2000, 1_000_000, 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a budget of 2000 slots takes 2.0 GB of the GPU's memory, of which 1.0 GB of 8.0 GB are free, expected at most 900"
        );
        let error = memory.check_cache(2000, 1_000_000_000, 0).unwrap_err();
        assert!(error.to_string().ends_with("no budget fits"), "{error}");
    }
}
