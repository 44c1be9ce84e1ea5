//! Numbers that are none in what a model has computed: of weights that are broken, or too large for the type of the arithmetic.

use candle_core::{DType, Tensor};

use super::ModelError;

/// Fails for the first of `tensors`, each with what it is, that holds NaN or infinity.
///
/// One number is read from the device for all of them: a finite number times zero is zero, and everything else is NaN.
pub fn check_finite(tensors: &[(&'static str, &Tensor)]) -> Result<(), ModelError> {
    let sums = tensors
        .iter()
        .map(|(_, tensor)| tensor.affine(0.0, 0.0)?.sum_all()?.to_dtype(DType::F32))
        .collect::<candle_core::Result<Vec<_>>>()?;
    if sums.is_empty() || Tensor::stack(&sums, 0)?.sum_all()?.to_scalar::<f32>()? == 0.0 {
        return Ok(());
    }
    for &(what, tensor) in tensors {
        let values = tensor.flatten_all()?.to_dtype(DType::F32)?;
        let mut values = values.to_vec1::<f32>()?.into_iter();
        if let Some(value) = values.find(|value| !value.is_finite()) {
            let dtype = tensor.dtype();
            return Err(ModelError::NotFinite { what, value, dtype });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn what_is_no_number_is_named_wherever_it_is_and_large_numbers_are_fine() {
        let tensor = |value: f32, dtype| {
            let values = vec![1.0, value, 60_000.0, 60_000.0];
            let tensor = Tensor::from_vec(values, (2, 2), &Device::Cpu).unwrap();
            tensor.to_dtype(dtype).unwrap()
        };
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let fine = tensor(2.0, dtype);
            assert!(check_finite(&[("one", &fine), ("two", &fine)]).is_ok());
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let error = check_finite(&[("one", &fine), ("two", &tensor(value, dtype))]);
                let error = error.unwrap_err().to_string();
                let said = format!("two: {value} is among its numbers");
                assert!(error.starts_with(&said), "{dtype:?}: {error}");
            }
        }
        // The sum of these is not.
        let large = Tensor::full(f32::MAX, 9, &Device::Cpu).unwrap();
        assert!(check_finite(&[("large", &large)]).is_ok());
        assert!(check_finite(&[]).is_ok());
    }
}
