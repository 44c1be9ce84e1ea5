//! Where a tensor's elements lie.

use std::cell::Cell;

use candle_core::{bail, CpuStorage, CudaStorage, InplaceOp1, Layout, Result, Tensor};

/// Address of the first element of a contiguous tensor, on its device. It holds as long as the tensor's storage does.
pub fn address(tensor: &Tensor) -> Result<u64> {
    let found = Find(Cell::new(0));
    tensor.inplace_op1(&found)?;
    Ok(found.0.get())
}

/// The same as two words, the lower first, for tables in the memory of the device.
pub fn address_words(tensor: &Tensor) -> Result<[u32; 2]> {
    let address = address(tensor)?;
    Ok([address as u32, (address >> 32) as u32])
}

/// An operation that only looks, in place, because what is looked up is written to later.
struct Find(Cell<u64>);

impl Find {
    fn found(&self, start: u64, layout: &Layout, size: usize) -> Result<()> {
        if !layout.is_contiguous() {
            bail!("a kernel was given a tensor that is not contiguous: {layout:?}");
        }
        self.0.set(start + (layout.start_offset() * size) as u64);
        Ok(())
    }
}

impl InplaceOp1 for Find {
    fn name(&self) -> &'static str {
        "address"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        fn start<T>(values: &mut [T]) -> (u64, usize) {
            (values.as_mut_ptr() as u64, size_of::<T>())
        }
        let (start, size) = match storage {
            CpuStorage::U8(values) => start(values),
            CpuStorage::U32(values) => start(values),
            CpuStorage::F16(values) => start(values),
            CpuStorage::BF16(values) => start(values),
            CpuStorage::F32(values) => start(values),
            _ => bail!("a kernel was given a tensor of a type that none takes"),
        };
        self.found(start, layout, size)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        use candle_core::cuda_backend::CudaStorageSlice as Slice;
        use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};

        fn start<T>(values: &mut CudaSlice<T>, stream: &CudaStream) -> (u64, usize) {
            (values.device_ptr_mut(stream).0, size_of::<T>())
        }
        let stream = storage.device.cuda_stream();
        let (start, size) = match &mut storage.slice {
            Slice::U8(values) => start(values, &stream),
            Slice::U32(values) => start(values, &stream),
            Slice::F16(values) => start(values, &stream),
            Slice::BF16(values) => start(values, &stream),
            Slice::F32(values) => start(values, &stream),
            _ => bail!("a kernel was given a tensor of a type that none takes"),
        };
        self.found(start, layout, size)
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(&self, _: &mut CudaStorage, _: &Layout) -> Result<()> {
        bail!("this build has no CUDA")
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn a_part_of_a_tensor_lies_behind_its_beginning_and_a_transposed_one_nowhere() {
        for (dtype, size) in [
            (DType::F32, 4),
            (DType::BF16, 2),
            (DType::U32, 4),
            (DType::U8, 1),
        ] {
            let whole = Tensor::zeros((4, 6), dtype, &Device::Cpu).unwrap();
            let part = whole.narrow(0, 2, 2).unwrap();
            let start = address(&whole).unwrap();
            assert_eq!(address(&part).unwrap(), start + 2 * 6 * size);
            let error = address(&whole.t().unwrap()).unwrap_err().to_string();
            assert!(error.contains("not contiguous"), "{error}");
        }
        let wide = Tensor::zeros(2, DType::F64, &Device::Cpu).unwrap();
        assert!(address(&wide).is_err());
    }
}
