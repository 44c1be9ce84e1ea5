//! The bandwidth of the device's memory, measured by copying in the same run: what a token has to read cannot come faster.

use std::time::Instant;

use candle_core::{
    bail, CpuStorage, CudaStorage, DType, Device, InplaceOp2, Layout, Result, Tensor,
};
use rayon::prelude::*;
use serde::Serialize;

/// What one copy takes at least, so that a block of copies is not over before a clock can tell.
const BLOCK_BYTES: usize = 8 << 30;
const BLOCKS: usize = 5;
/// The memory that is copied, at most: far more than any cache of the processor or the GPU holds.
const GPU_BYTES: usize = 1 << 30;
const CPU_BYTES: usize = 128 << 20;
/// The least that says anything.
const LEAST_BYTES: usize = 16 << 20;
/// What a thread copies at a time.
const PART: usize = 1 << 18;

/// How fast memory is copied.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Bandwidth {
    /// Bytes read and written per second, 1e9, in the fastest block of copies.
    pub gb_per_s: f64,
    /// Of the buffer that was copied.
    pub buffer_bytes: usize,
}

impl Bandwidth {
    /// Milliseconds that so many bytes take.
    pub fn ms(&self, bytes: f64) -> f64 {
        bytes / self.gb_per_s * 1e-6
    }
}

/// Copies a large buffer, smaller where the device has no room for two.
pub fn measure(device: &Device) -> Result<Bandwidth> {
    let mut bytes = match device.is_cpu() {
        true => CPU_BYTES,
        false => GPU_BYTES,
    };
    loop {
        match measure_with(device, bytes) {
            Err(error) if bytes / 2 < LEAST_BYTES => return Err(error),
            Err(_) => bytes /= 2,
            measured => return measured,
        }
    }
}

fn measure_with(device: &Device, bytes: usize) -> Result<Bandwidth> {
    let buffer = |value: f32| Tensor::full(value, bytes / size_of::<f32>(), device);
    let (from, to) = (buffer(1.0)?, buffer(0.0)?);
    let copies = match device.is_cpu() {
        true => 1,
        false => BLOCK_BYTES / bytes,
    };
    let mut fastest = 0f64;
    // The first block warms up.
    for block in 0..=BLOCKS {
        device.synchronize()?;
        let started = Instant::now();
        for _ in 0..copies {
            to.inplace_op2(&from, &Copy)?;
        }
        device.synchronize()?;
        let moved = 2 * copies * bytes;
        if block > 0 {
            fastest = fastest.max(moved as f64 / started.elapsed().as_secs_f64() * 1e-9);
        }
    }
    Ok(Bandwidth {
        gb_per_s: fastest,
        buffer_bytes: bytes,
    })
}

/// Copies a contiguous tensor of f32 over another one of its size.
struct Copy;

impl InplaceOp2 for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn cpu_fwd(
        &self,
        to: &mut CpuStorage,
        _: &Layout,
        from: &CpuStorage,
        _: &Layout,
    ) -> Result<()> {
        let (CpuStorage::F32(to), CpuStorage::F32(from)) = (to, from) else {
            bail!("a copy of something else than {:?}", DType::F32);
        };
        to.par_chunks_mut(PART)
            .zip(from.par_chunks(PART))
            .for_each(|(to, from)| to.copy_from_slice(from));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        to: &mut CudaStorage,
        _: &Layout,
        from: &CudaStorage,
        _: &Layout,
    ) -> Result<()> {
        use candle_core::cuda_backend::CudaStorageSlice as Slice;

        let device = from.device.clone();
        match (&mut to.slice, &from.slice) {
            (Slice::F32(to), Slice::F32(from)) => device.memcpy_dtod(from, to),
            _ => bail!("a copy of something else than {:?}", DType::F32),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(&self, _: &mut CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<()> {
        bail!("this build has no CUDA")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_and_takes_time() {
        let count = 3 * PART + 5;
        let from = Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap();
        let to = from.zeros_like().unwrap();
        to.inplace_op2(&from, &Copy).unwrap();
        assert_eq!(to.to_vec1::<f32>().unwrap(), from.to_vec1::<f32>().unwrap());
        let measured = measure_with(&Device::Cpu, LEAST_BYTES).unwrap();
        assert!(measured.gb_per_s.is_finite() && measured.gb_per_s > 0.0);
        let floor = Bandwidth {
            gb_per_s: 2.0,
            buffer_bytes: 1,
        };
        assert!((floor.ms(4e9) - 2000.0).abs() < 1e-9);
    }
}
