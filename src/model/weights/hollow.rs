//! Shapes without numbers: a model can be built from them to see whether a checkpoint holds all that it needs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor};

use super::{Matrix, Quantization, Source};

/// What a model has asked for: by name, the shape and the blocks that its numbers become, if any.
pub type Seen = BTreeMap<String, (Vec<usize>, Option<candle_core::quantized::GgmlDType>)>;

/// The tensors of another source, every one a single zero that is stretched to its shape.
pub struct Hollow {
    source: Arc<dyn Source>,
    quantization: Quantization,
    seen: Mutex<Seen>,
}

impl Hollow {
    pub fn new(source: Arc<dyn Source>, quantization: Quantization) -> Self {
        Self {
            source,
            quantization,
            seen: Mutex::default(),
        }
    }

    /// What has been asked for so far.
    pub fn seen(&self) -> Seen {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn zeros(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        matrix: bool,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let Some(mut dims) = self.source.shape(name) else {
            candle_core::bail!("the tensor {} is missing", self.source.describe(name));
        };
        if let (Some(rows), Some(first)) = (rows, dims.first_mut()) {
            *first = rows.len();
        }
        let blocks = match (matrix, dims.last()) {
            (true, Some(&width)) => self.quantization.blocks(width),
            _ => None,
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(name.to_string(), (dims.clone(), blocks));
        Tensor::zeros(vec![1; dims.len()], dtype, device)?.broadcast_as(dims)
    }
}

impl Source for Hollow {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn tensor(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        self.zeros(name, rows, false, dtype, device)
    }

    fn matrix(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Matrix> {
        Ok(Matrix::Dense(self.zeros(name, rows, true, dtype, device)?))
    }

    fn describe(&self, name: &str) -> String {
        self.source.describe(name)
    }
}
