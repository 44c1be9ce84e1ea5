//! Sums of tensors in the model's own threads.

use candle_core::{bail, CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Elements that a thread takes at a time.
const PART: usize = 16 << 10;

/// `a + b`, of one shape: what a layer adds to the stream that goes through it.
///
/// On the CPU in the threads of the pool that it is called in: candle hands long tensors to threads of its own and waits for them without
/// sleeping, also where the model has one thread.
pub fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let plain = |x: &Tensor| x.device().is_cpu() && x.dtype() == DType::F32 && x.is_contiguous();
    match plain(a) && plain(b) {
        true => a.apply_op2_no_bwd(b, &Sum),
        false => a + b,
    }
}

struct Sum;

impl CustomOp2 for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = a_layout.shape();
        if b_layout.shape() != shape {
            bail!(
                "sum: {:?} and {shape:?}, expected one shape",
                b_layout.shape()
            );
        }
        let (Some((from, to)), Some((b_from, b_to))) =
            (a_layout.contiguous_offsets(), b_layout.contiguous_offsets())
        else {
            bail!("sum: a tensor is not contiguous");
        };
        let mut out = a.as_slice::<f32>()?[from..to].to_vec();
        let parts = out.par_chunks_mut(PART);
        let added = b.as_slice::<f32>()?[b_from..b_to].par_chunks(PART);
        parts.zip(added).for_each(|(out, added)| {
            for (out, added) in out.iter_mut().zip(added) {
                *out += added;
            }
        });
        Ok((CpuStorage::F32(out), shape.clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_sum_is_candles_for_parts_of_tensors_and_other_types_too() -> Result<()> {
        // Longer than a thread takes at a time.
        let a = Tensor::arange(-30_000f32, 30_000.0, &Device::Cpu)?.reshape((600, 100))?;
        let b = a.affine(0.37, 0.01)?;
        let (part, other) = (a.narrow(0, 50, 400)?, b.narrow(0, 7, 400)?);
        let half = a.affine(1e-3, 0.0)?.to_dtype(DType::F16)?;
        for (a, b) in [
            (&a, &b),
            (&part, &other),
            (&a.t()?, &b.t()?),
            (&half, &half),
        ] {
            let wide = |x: Tensor| x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
            let got = sum(a, b)?;
            assert_eq!((got.dims(), got.dtype()), (a.dims(), a.dtype()));
            assert_eq!(wide(got)?, wide((a + b)?)?);
        }
        assert!(sum(&a, &part).is_err());
        Ok(())
    }
}
