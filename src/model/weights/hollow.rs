//! Shapes without numbers: a model can be built from them to see whether a checkpoint holds all that it needs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Result, Tensor};

use super::{Listed, Matrix, Source};

/// What a tensor becomes in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub elements: usize,
    /// Asked for, of floats; that of blocks is that of what they are multiplied with.
    pub dtype: DType,
    /// None: floats.
    pub blocks: Option<GgmlDType>,
    /// Length of its rows.
    pub width: usize,
}

/// The tensors of another source, every one a single zero that is stretched to its shape.
pub struct Hollow {
    source: Arc<dyn Source>,
    seen: Mutex<BTreeMap<String, Kept>>,
}

impl Hollow {
    pub fn new(source: Arc<dyn Source>) -> Self {
        Self {
            source,
            seen: Mutex::default(),
        }
    }

    /// What has been asked for so far, by name.
    pub fn seen(&self) -> BTreeMap<String, Kept> {
        let seen = self.seen.lock();
        seen.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn zeros(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        blocks: Option<GgmlDType>,
        (dtype, device): (DType, &Device),
    ) -> Result<Tensor> {
        let Some(mut dims) = self.source.shape(name) else {
            candle_core::bail!("the tensor {} is missing", self.source.describe(name));
        };
        self.source.check(name)?;
        let kept = Kept {
            elements: dims.iter().product(),
            dtype,
            blocks,
            width: dims.last().copied().unwrap_or(1),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(name.to_string(), kept);
        if let (Some(rows), Some(first)) = (rows, dims.first_mut()) {
            *first = rows.len();
        }
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
        self.zeros(name, rows, None, (dtype, device))
    }

    fn matrix(
        &self,
        name: &str,
        rows: Option<&[u32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Matrix> {
        let blocks = self.source.blocks(name);
        Ok(Matrix::Dense(self.zeros(
            name,
            rows,
            blocks,
            (dtype, device),
        )?))
    }

    fn check(&self, name: &str) -> Result<()> {
        self.source.check(name)
    }

    fn blocks(&self, name: &str) -> Option<GgmlDType> {
        self.source.blocks(name)
    }

    fn half(&self, name: &str) -> Option<DType> {
        self.source.half(name)
    }

    fn stored_blocks(&self, name: &str) -> Option<GgmlDType> {
        self.source.stored_blocks(name)
    }

    fn same(&self, one: &str, other: &str) -> bool {
        self.source.same(one, other)
    }

    fn describe(&self, name: &str) -> String {
        self.source.describe(name)
    }

    fn list(&self) -> Vec<Listed> {
        self.source.list()
    }
}
