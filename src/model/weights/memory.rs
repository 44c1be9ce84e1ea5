//! Tensors that are in memory already, by name.

use std::collections::HashMap;

use candle_core::quantized::GgmlDType;
use candle_core::{bail, DType, Device, Result, Tensor};

use super::{Listed, Matrix, Source};

/// Tensors by name, and what errors call the place that they come from.
pub struct TensorMap {
    pub tensors: HashMap<String, Tensor>,
    pub place: String,
}

impl Source for TensorMap {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|tensor| tensor.dims().to_vec())
    }

    fn tensor(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let Some(tensor) = self.tensors.get(name) else {
            bail!("the tensor {} is missing", self.describe(name));
        };
        let tensor = match rows {
            None => tensor.copy()?,
            Some(rows) => {
                let index = Tensor::from_slice(rows, rows.len(), tensor.device())?;
                tensor.index_select(&index, 0)?
            }
        };
        tensor.to_dtype(dtype)?.to_device(device)
    }

    fn matrix(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Matrix> {
        Ok(Matrix::Dense(self.tensor(name, rows, dtype, device)?))
    }

    fn check(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn blocks(&self, _: &str) -> Option<GgmlDType> {
        None
    }

    fn same(&self, one: &str, other: &str) -> bool {
        one == other
    }

    fn list(&self) -> Vec<Listed> {
        let one = |(name, tensor): (&String, &Tensor)| Listed {
            name: name.clone(),
            dtype: tensor.dtype().as_str().to_uppercase(),
            bytes: tensor.elem_count() * tensor.dtype().size_in_bytes(),
        };
        self.tensors.iter().map(one).collect()
    }

    fn describe(&self, name: &str) -> String {
        format!("{name} in {}", self.place)
    }
}
